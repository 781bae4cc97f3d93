"""Triton's kernels run on the GPU if there is one, else in Triton's interpreter, on the CPU."""

import os
import pathlib

import pytest
import torch

if not torch.cuda.is_available():
    # Read when a kernel is defined, so before the first import of one.
    os.environ["TRITON_INTERPRET"] = "1"

pytest.importorskip("triton", reason="the CUDA kernels are written in Triton")


INTERPRETER_WARNING = "ignore:Conversion of an array with ndim > 0 to a scalar:DeprecationWarning"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = pathlib.Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            # The interpreter of Triton 3.6 makes loop bounds of arrays of one number.
            item.add_marker(pytest.mark.filterwarnings(INTERPRETER_WARNING))


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")

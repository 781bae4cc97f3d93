"""Weights from a checkpoint directory in the type that the machine computes fastest."""

from __future__ import annotations

from pathlib import Path

import torch

from decoding.native.product import Precision, computing_type
from decoding.weights import DecoderShape, DecoderWeights


def load_weights(
    path: Path, precision: Precision = "float32", *, device: torch.device | str = "cpu"
) -> DecoderWeights:
    """`DecoderWeights.from_directory` in a precision by name.

    "auto" is measured on the CPU and bfloat16 on a GPU. Raises ArtifactError as that does.
    """
    if torch.device(device).type == "cpu":
        dtype = computing_type(precision, DecoderShape.from_directory(path).hidden_size)
    else:
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
    return DecoderWeights.from_directory(path, dtype=dtype, device=device)

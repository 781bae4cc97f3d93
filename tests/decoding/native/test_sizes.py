"""Sizes of products: few, hardly larger than what is asked, and the same answers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from decoding.native.kv import BeamKV
from decoding.native.product import Product
from decoding.native.sizes import roomy, rounded, whole
from decoding.native.transformer import Decoder

PRODUCTS = {"linear", "_linear_pointwise", "bmm"}


@given(st.integers(0, 1 << 20))
def test_rounded_is_near_and_stays(count):
    size = rounded(count)
    assert count <= size == rounded(size)
    assert size - count < max(8, size / 8 + 1)
    assert rounded(count + 1) >= size


def test_there_are_few_sizes():
    assert sorted({rounded(count) for count in range(65)}) == [0, 1, 2, 4, *range(8, 65, 8)]
    assert len({rounded(count) for count in range(5000)}) < 64


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 1, 3, 8, 9, 33, 130])
def test_products_of_any_number_of_rows(kind, count):
    weight = torch.randn(48, 32).to(kind)
    product = Product(weight)
    around = torch.randn(200, 32).to(kind)
    with_room, copied = around[5 : 5 + count], around[:, :32].flip(0)[:count]
    made = roomy(count, 32, kind)
    made.copy_(with_room)
    for rows in (with_room, copied, made):
        expected = rows.float() @ weight.float().T
        found = product(rows)
        assert found.shape == (count, 48)
        torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=6e-2)


def test_whole_copies_only_where_there_is_no_room():
    matrix = torch.zeros(16, 4)
    assert whole(matrix[:9]).data_ptr() == matrix.data_ptr()
    assert whole(matrix[8:16]).data_ptr() == matrix[8:].data_ptr()
    assert whole(matrix[7:16]).data_ptr() != matrix[7:].data_ptr()
    assert whole(roomy(9, 4, torch.float32)).shape == (16, 4)
    assert whole(matrix[:, :2][:9]).shape == (16, 2)


class _Shapes(TorchFunctionMode):
    """The shapes of all products that are computed inside."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", str(func))
        if any(name.startswith(product) for product in PRODUCTS):
            self.seen.add((name, args[0].shape, args[1].shape))
        return func(*args, **(kwargs or {}))


def test_waves_of_any_shape_need_few_products(decoder):
    """How many shapes there are does not follow how many waves there were."""
    native, random = Decoder(decoder.weights), np.random.default_rng(0)
    seen: list[int] = []
    with _Shapes() as shapes, torch.inference_mode():
        for _ in range(240):
            lengths = random.integers(1, 25, random.integers(1, 14))
            prompts = [random.integers(0, 40, length).astype(np.int32) for length in lengths]
            widths = random.choice([4, 10, 32], len(prompts)).tolist()
            context, _ = native.prefill(prompts)
            beams = BeamKV(native.shape, 1, sum(widths), native.dtype)
            parents = np.repeat(np.arange(len(prompts)), widths)
            native.step(np.full(len(parents), 40), parents, widths, context, beams)
            seen.append(len(shapes.seen))
    assert seen[0] < seen[-1] <= seen[119] + 20
    assert seen[-1] < 300

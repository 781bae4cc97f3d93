import pytest
import torch

from decoding.native import product
from decoding.native.product import Product, computing_type


@pytest.mark.parametrize("rows", [1, 7, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed", [False, True])
def test_both_ways_give_the_product(monkeypatch, rows: int, dtype: torch.dtype, packed: bool):
    monkeypatch.setattr(product, "_packing_pays", lambda kind, width: packed)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 32, generator=generator).to(dtype)
    state = torch.randn(rows, 32, generator=generator).to(dtype)
    with torch.inference_mode():
        found = Product(weight)(state)
    assert found.dtype == dtype
    exact = state.double() @ weight.double().T
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found.double(), exact, atol=tolerance, rtol=tolerance)


def test_a_named_type_is_taken_and_auto_follows_the_measured_times(monkeypatch):
    assert computing_type("float32", 64) == torch.float32
    assert computing_type("bfloat16", 64) == torch.bfloat16
    assert computing_type("auto", 64) in (torch.float32, torch.bfloat16)
    for exact, expected in ((1.0, torch.float32), (1.1, torch.float32), (2.0, torch.bfloat16)):
        times = {torch.float32: exact, torch.bfloat16: 1.0}
        monkeypatch.setattr(product, "_seconds", lambda run, kind, width, times=times: times[kind])
        product._faster_type.cache_clear()
        assert computing_type("auto", 64) == expected
    monkeypatch.setattr(product, "_seconds", None)
    # Once in a process: nothing is measured again.
    assert computing_type("auto", 64) == torch.bfloat16
    product._faster_type.cache_clear()


def test_a_build_without_packed_products_takes_the_plain_ones(monkeypatch):
    def missing(weight: torch.Tensor) -> torch.Tensor:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no such operator")

    product._packing_pays.cache_clear()
    monkeypatch.setattr(product, "_pack", missing)
    weight = torch.eye(24)[:5]
    state = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Product(weight)(state), state[:, :5])
    product._packing_pays.cache_clear()

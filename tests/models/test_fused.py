"""The compiled passes of training give what torch's own operations give, forward and backward."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from models import fused

EPSILON = 1e-6
ROWS = [(1, 1), (3, 5), (2, 130), (7, 64)]
Run = Callable[..., Any]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def gradients(run: Run, inputs: list[Tensor], slopes: list[Tensor]) -> list[Tensor]:
    """Results and gradients of all inputs."""
    leaves = [one.detach().clone().requires_grad_() for one in inputs]
    made = run(*leaves)
    outputs = list(made) if isinstance(made, tuple) else [made]
    torch.autograd.backward(
        [one for one in outputs if one.numel()],
        [slope.to(one.dtype) for one, slope in zip(outputs, slopes, strict=True) if one.numel()],
    )
    return [
        *(one.detach() for one in outputs),
        *(one.grad for one in leaves if one.grad is not None),
    ]


def compare(run: Run, inputs: list[Tensor], slopes: list[Tensor], *, weights: int) -> None:
    """The first inputs in bfloat16 and the last `weights` in float32 through the compiled passes,
    all of them in float64 through torch's."""
    narrow = [one.bfloat16() for one in inputs[: len(inputs) - weights]]
    held = inputs[len(inputs) - weights :]
    slopes = [slope.bfloat16() for slope in slopes]
    found = gradients(run, [*narrow, *held], slopes)
    exact = gradients(run, [one.double() for one in (*narrow, *held)], slopes)
    assert len(found) == len(exact)
    for one, expected in zip(found, exact, strict=True):
        assert one.shape == expected.shape
        if not one.numel():
            continue
        scale = expected.abs().max().clamp_min(1e-6)
        assert ((one.double() - expected).abs().max() / scale) < 8e-3


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", ROWS)
def test_norm(shape: tuple[int, int], threads: int):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        state, weight = random(*shape, 48) * 3, random(48)
        compare(
            lambda x, w: fused.rms_norm(x, w, EPSILON),
            [state, weight],
            [random(*shape, 48)],
            weights=1,
        )
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("shape", ROWS)
def test_gate(shape: tuple[int, int]):
    both = random(*shape, 2 * 40) * 6
    both[0, 0, 0], both[0, 0, 1] = -300.0, 300.0
    compare(fused.gated_unit, [both], [random(*shape, 40, seed=1)], weights=0)


@pytest.mark.parametrize("heads", [(4, 2), (4, 0), (0, 2)])
@pytest.mark.parametrize("shape", ROWS)
def test_heads(shape: tuple[int, int], heads: tuple[int, int]):
    size, (asked, held) = 16, heads
    projected, weight = random(*shape, asked + 2 * held, size), random(asked + held, size)
    angles = random(*shape, size // 2)

    def run(projected: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return fused.parted_heads(projected, weight, EPSILON, angles.cos(), angles.sin(), heads)

    batch, length = shape
    slopes = [random(batch, count, length, size) for count in (asked, held, held)]
    compare(run, [projected, weight], slopes, weights=1)


def test_gradients_of_weights_do_not_depend_on_threads():
    state, weight, slope = random(9, 333, 32).bfloat16(), random(32), random(9, 333, 32)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(
            gradients(lambda x, w: fused.rms_norm(x, w, EPSILON), [state, weight], [slope])
        )
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(found[0], other, strict=True))


def test_slopes_that_lie_apart():
    """Gradients need not be contiguous."""
    state, weight = random(4, 6, 32).bfloat16(), random(32)
    slope = random(6, 4, 32).bfloat16()
    run = lambda x, w: fused.rms_norm(x, w, EPSILON)  # noqa: E731
    apart = gradients(run, [state, weight], [slope.transpose(0, 1)])
    beside = gradients(run, [state, weight], [slope.transpose(0, 1).contiguous()])
    assert all(torch.equal(*pair) for pair in zip(apart, beside, strict=True))

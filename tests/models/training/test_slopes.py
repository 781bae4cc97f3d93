"""Terms and gradients against the losses' definitions and autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.training import slopes
from models.training.losses import focal_loss, forward_kl, soft_cross_entropy, symmetric_kl

KL_WEIGHT = 0.3


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * 2


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("focal", [None, (2.0, 3.0), (1.5, 1.0), (2.0, 0.0)])
@pytest.mark.parametrize("points", [[0, 1, 2, 3], [2, 0], []])
def test_fit(focal: tuple[float, float] | None, points: list[int], temperature: float):
    logits, teacher = random(4, 6).requires_grad_(), random(len(points), 6, seed=1)
    target = torch.softmax(random(4, 6, seed=2), dim=-1)
    if focal is None:
        ce = soft_cross_entropy(logits, target)
    else:
        ce = focal_loss(logits, target, weight=focal[0], gamma=focal[1])
    kl = forward_kl(teacher, logits[points], temperature=temperature)
    torch.autograd.backward(ce + KL_WEIGHT * kl)
    found = slopes.fit(
        logits,
        slopes.distribution(logits),
        target,
        slopes.taught(teacher, torch.tensor(points, dtype=torch.int64), 4, temperature),
        focal=focal,
        kl_weight=KL_WEIGHT,
        temperature=temperature,
    )
    for one, expected in ((found.ce, ce), (found.kl, kl), (found.slope, logits.grad)):
        torch.testing.assert_close(one, expected.detach())


def test_apart():
    first, second = random(4, 6), random(4, 6, seed=1).requires_grad_()
    expected = symmetric_kl(first, second)
    torch.autograd.backward(expected)
    value, slope = slopes.apart(slopes.distribution(first), slopes.distribution(second))
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(slope, second.grad)


def test_nothing_is_zero():
    empty = torch.zeros(0, 4)
    own = slopes.distribution(empty)
    found = slopes.fit(
        empty, own, empty, None, focal=(2.0, 3.0), kl_weight=KL_WEIGHT, temperature=1.0
    )
    assert found.ce == found.kl == slopes.apart(own, own)[0] == 0


def test_half_precision_logits_are_summed_in_full():
    logits = torch.zeros(1, 4096, dtype=torch.bfloat16)
    assert slopes.distribution(logits).log_p.dtype == torch.float32

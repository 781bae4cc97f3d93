import math

import pytest
import torch

from models.training.losses import (
    focal_loss,
    forward_kl,
    level_loss,
    soft_cross_entropy,
    symmetric_kl,
    text_loss,
)


def test_soft_cross_entropy_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])) + 3.0
    target = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    first = -(0.5 * math.log(0.5) + 0.5 * math.log(0.25))
    expected = (first - math.log(0.8)) / 2
    assert float(soft_cross_entropy(logits, target)) == pytest.approx(expected, abs=1e-6)


def test_level_loss_by_hand():
    hidden = torch.tensor([[1.0, 2.0]])
    output_slice = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    prior = torch.tensor([[0.5, -0.5, 0.0]])
    scores = [1.5, 1.5, 3.0]
    total = sum(math.exp(score) for score in scores)
    expected = -0.25 * math.log(math.exp(1.5) / total) - 0.75 * math.log(math.exp(3.0) / total)
    loss = level_loss(hidden, output_slice, torch.tensor([[0.25, 0.0, 0.75]]), prior)
    assert float(loss) == pytest.approx(expected, abs=1e-6)
    # Without the prior the first two scores differ, so the loss does.
    assert float(level_loss(hidden, output_slice, torch.tensor([[1.0, 0, 0]]), None)) == (
        pytest.approx(math.log(math.e + math.e**2 + math.e**3) - 1, abs=1e-5)
    )


def test_text_loss_by_hand():
    hidden = torch.tensor([[1.0], [2.0]])
    output = torch.tensor([[0.0], [1.0]])
    expected = (math.log(1 + math.e) - 1 + math.log(1 + math.e**2)) / 2
    loss = text_loss(hidden, output, torch.tensor([1, 0]))
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_nothing_to_predict_is_zero_with_a_gradient():
    hidden = torch.zeros(0, 4, requires_grad=True)
    output = torch.ones(3, 4, requires_grad=True)
    empty = level_loss(hidden, output, torch.zeros(0, 3), None)
    text = text_loss(hidden, output, torch.zeros(0, dtype=torch.int64))
    torch.autograd.backward(empty + text)
    assert empty.item() == text.item() == 0.0
    assert hidden.grad is not None


def test_gradients_against_finite_differences():
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, requires_grad=True)

    hidden, output, prior = random(3, 4), random(5, 4), random(3, 5)
    target = torch.softmax(random(3, 5).detach(), dim=1)
    tokens = torch.tensor([4, 0, 2])

    def losses() -> torch.Tensor:
        return level_loss(hidden, output, target, prior) + text_loss(hidden, output, tokens)

    torch.autograd.backward(losses())
    step = 1e-2
    for tensor in (hidden, output, prior):
        assert tensor.grad is not None
        with torch.no_grad():
            flat, numeric = tensor.view(-1), torch.zeros(tensor.numel())
            for i in range(len(flat)):
                flat[i] += step
                above = losses()
                flat[i] -= 2 * step
                numeric[i] = (above - losses()) / (2 * step)
                flat[i] += step
        torch.testing.assert_close(tensor.grad.view(-1), numeric, atol=2e-4, rtol=1e-2)


def test_half_precision_logits_are_summed_in_full():
    hidden = torch.full((1, 1), 1.0, dtype=torch.bfloat16)
    output = torch.zeros(4096, 1, dtype=torch.bfloat16)
    target = torch.full((1, 4096), 1 / 4096)
    assert float(level_loss(hidden, output, target, None)) == pytest.approx(
        math.log(4096), rel=1e-5
    )


def test_focal_loss_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])) - 1.0
    target = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
    first = 0.5**3 * math.log(0.5)
    second = 0.5 * 0.9**3 * math.log(0.1) + 0.5 * 0.2**3 * math.log(0.8)
    expected = -2.0 * (first + second) / 2
    assert float(focal_loss(logits, target)) == pytest.approx(expected, abs=1e-6)
    plain = focal_loss(logits, target, weight=1.0, gamma=0.0)
    assert float(plain) == pytest.approx(float(soft_cross_entropy(logits, target)), abs=1e-6)


def test_forward_kl_by_hand():
    teacher = torch.log(torch.tensor([[0.5, 0.5]]))
    student = torch.log(torch.tensor([[0.25, 0.75]]))
    expected = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    assert float(forward_kl(teacher, student)) == pytest.approx(expected, abs=1e-6)
    # At τ = 2 the student's odds of 3 become √3, and τ² keeps the gradient's size.
    share = 1 / (1 + math.sqrt(3))
    warm = 4 * (0.5 * math.log(0.5 / share) + 0.5 * math.log(0.5 / (1 - share)))
    assert float(forward_kl(teacher, student, temperature=2.0)) == pytest.approx(warm, abs=1e-5)


def test_forward_kl_teaches_the_student_only():
    teacher = torch.randn(3, 4, requires_grad=True)
    student = torch.randn(3, 4, requires_grad=True)
    torch.autograd.backward(forward_kl(teacher, student))
    assert teacher.grad is None
    assert student.grad is not None
    assert forward_kl(student, student).item() == 0


def test_symmetric_kl_by_hand():
    first = torch.log(torch.tensor([[0.5, 0.5]]))
    second = torch.log(torch.tensor([[0.2, 0.8]]))
    one = 0.5 * math.log(0.5 / 0.2) + 0.5 * math.log(0.5 / 0.8)
    other = 0.2 * math.log(0.2 / 0.5) + 0.8 * math.log(0.8 / 0.5)
    assert float(symmetric_kl(first, second)) == pytest.approx((one + other) / 2, abs=1e-6)
    assert float(symmetric_kl(second, first)) == pytest.approx((one + other) / 2, abs=1e-6)


def test_distillation_gradients_against_finite_differences():
    generator = torch.Generator().manual_seed(3)

    def random() -> torch.Tensor:
        return torch.randn(3, 5, generator=generator, dtype=torch.float64)

    teacher, first, second = random(), random().requires_grad_(), random().requires_grad_()
    target = torch.softmax(random(), dim=1)

    def total(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        distilled = 0.1 * forward_kl(teacher, one, temperature=1.5)
        return focal_loss(one, target) + distilled + 0.5 * symmetric_kl(one, other)

    # The losses compute in single precision.
    assert torch.autograd.gradcheck(total, (first, second), eps=1e-2, atol=1e-3, rtol=1e-2)


def test_distillation_of_nothing_is_zero():
    empty = torch.zeros(0, 4, requires_grad=True)
    assert focal_loss(empty, empty.detach()).item() == 0
    assert forward_kl(empty, empty).item() == symmetric_kl(empty, empty).item() == 0

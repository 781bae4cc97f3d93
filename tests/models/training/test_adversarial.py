import pytest
import torch

from models.training.adversarial import perturbation


def test_each_example_is_moved_by_epsilon():
    gradient = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [1.0, 1.0], [5.0, 5.0]]])
    example = torch.tensor([[0, 0, 1, -1]])
    delta = perturbation(gradient, example, 2, epsilon=0.5)
    assert delta[0, :2].flatten().tolist() == pytest.approx([0.3, 0.0, 0.0, 0.4], abs=1e-6)
    assert delta[0, 2].norm().item() == pytest.approx(0.5, abs=1e-6)
    assert delta[0, 3].tolist() == [0.0, 0.0]


def test_no_gradient_no_movement():
    delta = perturbation(torch.zeros(1, 2, 3), torch.tensor([[0, 1]]), 2)
    assert delta.abs().sum() == 0
    assert perturbation(torch.ones(1, 1, 3), torch.tensor([[-1]]), 0).abs().sum() == 0


def test_the_loss_rises_most_in_its_direction():
    random = torch.Generator().manual_seed(0)
    point = torch.randn(1, 4, 3, generator=random)
    weight = torch.randn(1, 4, 3, generator=random)
    example = torch.zeros(1, 4, dtype=torch.int64)
    delta = perturbation(weight, example, 1)
    best = (weight * (point + delta)).sum()
    for _ in range(50):
        other = torch.randn(1, 4, 3, generator=random)
        other = 0.6 * other / other.norm()
        assert (weight * (point + other)).sum() <= best + 1e-5

import math

import pytest
import torch

from models.training.rewards import PrefixRewards, prefix_rewards
from models.training.tpma import (
    group_normalised,
    grpo_advantages,
    policy_loss,
    prefix_gate,
    reference_kl,
    tpma_advantages,
)


def test_gate_counts_matches_without_weights():
    matches = torch.tensor([[[1.0, 2, 2, 3, 3], [0.0, 0, 1, 2, 3]]])
    expected = [[1, 1, 1, 2 / 3, 3 / 4], [1, 0, 0, 1 / 3, 2 / 4]]
    for found, right in zip(prefix_gate(matches)[0].tolist(), expected, strict=True):
        assert found == pytest.approx(right)


def test_group_normalised_by_hand():
    values = torch.tensor([[1.0, 2.0, 6.0]])
    deviation = math.sqrt((4 + 1 + 9) / 2)
    expected = [-2 / deviation, -1 / deviation, 3 / deviation]
    assert group_normalised(values)[0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 3.3, 0.1 + 0.2, 1e6 + 0.1])
def test_a_group_of_equals_has_no_advantage(value: float):
    assert group_normalised(torch.full((1, 7), value)).abs().max() < 1e-6


def test_tpma_advantages_of_a_worked_example():
    # Two rollouts, one target: the first is it, the second leaves it after level 1.
    rollouts = torch.tensor([[[1, 2, 3], [1, 5, 6]]])
    prefix = prefix_rewards(rollouts, torch.tensor([[[1, 2, 3]]]), torch.tensor([[True]]))
    items = torch.tensor([[4.0, 0.0]])
    one = 1 / math.sqrt(2)
    found = tpma_advantages(prefix, items, item_weight=0.5)
    # ΔR: level 1 equal, level 2 is 2 against 0, level 3 has weight 0.
    first = [0.5 * one, one + 0.5 * one, 0.5 * one]
    second = [-0.5 * one, -one - 0.5 * one, 0.5 * (-0.5 * one)]  # gate of level 3: 1 of 2 matched
    assert found[0, 0].tolist() == pytest.approx(first, abs=1e-6)
    assert found[0, 1].tolist() == pytest.approx(second, abs=1e-6)


def test_without_an_item_term_the_last_position_has_no_signal():
    random = torch.Generator().manual_seed(0)
    rollouts = torch.randint(0, 2, (3, 8, 4), generator=random)
    targets = torch.randint(0, 2, (3, 2, 4), generator=random)
    prefix = prefix_rewards(rollouts, targets, torch.ones(3, 2, dtype=torch.bool))
    items = torch.rand(3, 8, generator=random)
    assert tpma_advantages(prefix, items, item_weight=0.0)[..., -1].abs().max() < 1e-6
    assert tpma_advantages(prefix, items)[..., -1].abs().max() > 0.1


def test_grpo_has_one_advantage_for_all_positions():
    found = grpo_advantages(torch.tensor([[1.0, 3.0]]), 3)
    assert found.shape == (1, 2, 3)
    assert found[0, 1].tolist() == pytest.approx([1 / math.sqrt(2)] * 3, abs=1e-6)


def test_policy_loss_is_the_gradient_of_expected_advantage():
    log_p = torch.log(torch.tensor([[[0.5, 0.25], [0.5, 0.5]]])).requires_grad_()
    advantages = torch.tensor([[[1.0, -2.0], [0.5, 0.0]]])
    loss = policy_loss(log_p, log_p.detach(), advantages)
    assert loss.item() == pytest.approx(-(1 - 2 + 0.5) / 4)
    torch.autograd.backward(loss)
    assert log_p.grad is not None
    # At r = 1 the gradient of −r·A by log π is −A, over G·L.
    assert torch.allclose(log_p.grad, -advantages / 4)
    moved = policy_loss(log_p + math.log(2), log_p.detach(), advantages)
    assert moved.item() == pytest.approx(2 * loss.item(), abs=1e-6)


def test_gradients_against_finite_differences():
    random = torch.Generator().manual_seed(1)
    log_p = -torch.rand(2, 3, 4, generator=random, dtype=torch.float64)
    old = log_p + 0.1 * torch.randn(2, 3, 4, generator=random, dtype=torch.float64)
    advantages = torch.randn(2, 3, 4, generator=random, dtype=torch.float64)
    point = log_p.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: policy_loss(x, old, advantages) + 0.1 * reference_kl(x, old), (point,)
    )


def test_reference_kl_is_never_negative_and_zero_at_the_reference():
    random = torch.Generator().manual_seed(2)
    log_p, reference = -torch.rand(2, 2, 3, generator=random), -torch.rand(2, 2, 3)
    assert reference_kl(log_p, log_p).item() == 0
    assert reference_kl(log_p, reference).item() > 0


def test_advantages_of_a_rollout_are_gated_not_normalised_again():
    prefix = PrefixRewards(torch.zeros(1, 2, 2), torch.tensor([[[0.0, 0.0], [1.0, 1.0]]]))
    found = tpma_advantages(prefix, torch.tensor([[1.0, 0.0]]))
    assert found[0, 0].tolist() == pytest.approx([1 / math.sqrt(2), 0.0], abs=1e-6)

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.training.rewards import calibrated_ctr, item_rewards, level_weights, prefix_rewards


@pytest.mark.parametrize(
    ("levels", "expected"),
    [(5, [2, 2, 1, 1, 0]), (4, [2, 2, 1, 0]), (3, [2, 2, 0]), (2, [2, 0]), (1, [0])],
)
def test_level_weights(levels: int, expected: list[int]):
    assert level_weights(levels).tolist() == expected


def test_item_rewards_rank_an_order_above_a_click():
    yes, no = torch.tensor(True), torch.tensor(False)
    zero = torch.tensor(0.0)
    # An order is a click too, and is not counted twice.
    assert item_rewards(yes, yes, zero, zero).item() == 4.0
    assert item_rewards(yes, no, zero, zero).item() == 4.0
    assert item_rewards(no, yes, zero, zero).item() == 3.0
    assert item_rewards(no, no, torch.tensor(1.5), torch.tensor(2.0)).item() == 3.0


def test_calibrated_ctr_by_hand():
    shown, clicked, ordered = torch.tensor([90.0, 0.0]), torch.tensor([40.0, 0.0]), torch.zeros(2)
    found = calibrated_ctr(shown, clicked, ordered)
    first = math.log(50) / (math.log(100) + math.log(50) + math.log(10))
    assert found.tolist() == pytest.approx([first, 1 / 3], abs=1e-6)


def test_prefix_rewards_of_a_worked_example():
    targets = torch.tensor([[[1, 2, 3, 4, 5], [1, 9, 3, 9, 9]]])
    known = torch.tensor([[True, True]])
    rollouts = torch.tensor(
        [[[1, 2, 3, 4, 5], [1, 2, 8, 8, 8], [1, 9, 3, 4, 5], [7, 2, 3, 4, 5], [1, 2, 8, 4, 8]]]
    )
    marginal, matches = prefix_rewards(rollouts, targets, known)
    assert marginal[0].tolist() == [
        [2, 2, 1, 1, 0],  # equal to the first target
        [2, 2, 0, 0, 0],
        [2, 2, 1, 0, 0],  # the second target for three levels; then no target is better
        [0, 2, 1, 1, 0],  # counts behind the mismatch, as in the published code
        [2, 2, 0, 1, 0],
    ]
    # Without weights: the third rollout's best match is with either target 3 long after level 4 …
    assert matches[0].tolist() == [
        [1, 2, 3, 4, 5],
        [1, 2, 2, 2, 2],
        [1, 2, 3, 3, 4],  # … and 4 with the first after level 5
        [0, 1, 2, 3, 4],
        [1, 2, 2, 3, 3],
    ]
    strict = prefix_rewards(rollouts, targets, known, strict=True)
    assert strict.marginal[0].tolist() == [
        [2, 2, 1, 1, 0],
        [2, 2, 0, 0, 0],
        [2, 2, 1, 0, 0],
        [0, 0, 0, 0, 0],
        [2, 2, 0, 0, 0],
    ]
    assert strict.matches[0, 3].tolist() == [0, 0, 0, 0, 0]


def test_targets_that_are_not_there_are_worth_nothing():
    rollouts = torch.tensor([[[1, 2, 3]], [[1, 2, 3]]])
    targets = torch.tensor([[[1, 2, 3]], [[1, 2, 3]]])
    found = prefix_rewards(rollouts, targets, torch.tensor([[True], [False]]))
    assert found.marginal.tolist() == [[[2, 2, 0]], [[0, 0, 0]]]
    nobody = prefix_rewards(rollouts, targets[:, :0], torch.zeros(2, 0, dtype=torch.bool))
    assert nobody.marginal.sum() == nobody.matches.sum() == 0


codes = st.integers(0, 2)
sid = st.tuples(codes, codes, codes, codes)


@given(sid, st.lists(sid, min_size=1, max_size=4), st.booleans())
def test_prefix_rewards_equal_the_formula(rollout, targets, strict):
    weights = [2, 2, 1, 0]
    found = prefix_rewards(
        torch.tensor([[rollout]]),
        torch.tensor([targets]),
        torch.ones(1, len(targets), dtype=torch.bool),
        strict=strict,
    )
    before = 0.0
    for level in range(4):
        rewards, counts = [], []
        for target in targets:
            same = [a == b for a, b in zip(rollout, target, strict=True)][: level + 1]
            if strict and False in same:
                same = same[: same.index(False)]
            rewards.append(sum(w for w, hit in zip(weights, same, strict=False) if hit))
            counts.append(sum(same))
        assert found.matches[0, 0, level].item() == max(counts)
        assert found.marginal[0, 0, level].item() == max(rewards) - before
        before = max(rewards)

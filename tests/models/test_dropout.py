import pytest
import torch

from index.errors import ConfigError
from models.dropout import Dropout


def test_kept_values_are_scaled_and_their_share_is_right():
    state = torch.ones(400, 500)
    dropped = Dropout(0.25, (1, 2))(state, 0)
    kept = dropped > 0
    assert torch.equal(dropped[kept], torch.full((int(kept.sum()),), 4 / 3))
    assert float(kept.float().mean()) == pytest.approx(0.75, abs=0.005)
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.01)


def test_masks_depend_on_seed_and_place_only():
    state = torch.ones(50, 50)
    first = Dropout(0.5, (1, 2))(state, 3)
    assert torch.equal(first, Dropout(0.5, (1, 2))(state, 3))
    assert not torch.equal(first, Dropout(0.5, (1, 2))(state, 4))
    assert not torch.equal(first, Dropout(0.5, (1, 3))(state, 3))


def test_the_gradient_goes_through_what_was_kept():
    state = torch.randn(20, 20, requires_grad=True)
    dropped = Dropout(0.5)(state, 0)
    dropped.sum().backward()
    assert state.grad is not None
    assert torch.equal(state.grad > 0, dropped != 0)


def test_a_branch_is_added_under_its_mask():
    state, branch = torch.randn(2, 20, 20)
    branch.requires_grad_()
    added = Dropout(0.5).added(state, branch, 3)
    torch.testing.assert_close(added, state + Dropout(0.5)(branch, 3))
    added.sum().backward()
    assert branch.grad is not None
    assert torch.equal(branch.grad, Dropout(0.5)(torch.ones(20, 20), 3))


def test_no_dropout_is_the_identity():
    state = torch.randn(3, 3)
    assert Dropout(0.0)(state, 0) is state
    assert torch.equal(Dropout(0.0).added(state, state, 0), state + state)
    with pytest.raises(ConfigError, match="dropout"):
        Dropout(1.0)

"""A decoder that is surer of itself than it is right is trusted less."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from index.dataset import Dataset
from index.snapshot import Snapshot
from models.checkpoint import Checkpoint
from models.training.calibration import FIRST_FACTORS, FURTHER_FACTORS, calibrate, undo
from models.training.relevance import relevant_rows
from models.transformer import Qwen3

BEAM = 8


@pytest.fixture(scope="module")
def relevant(shop: Path) -> dict[str, NDArray[np.int64]]:
    return relevant_rows(Dataset.open(shop / "dataset"), "train")


@pytest.fixture(scope="module")
def snapshot(shop: Path) -> Snapshot:
    return Snapshot.open(shop / "snapshot")


@pytest.fixture(scope="module")
def checkpoint(pretrained: Path) -> Checkpoint:
    return Checkpoint.open(pretrained / "checkpoint")


def noisy(checkpoint: Checkpoint) -> Qwen3:
    """A decoder whose SID rows are loud noise."""
    model = checkpoint.load_model()
    first = checkpoint.settings.sid_offset[0]
    with torch.no_grad():
        rows = model.lm_head.weight[first:]
        rows.copy_(5 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(7)))
    return model


def test_noise_is_trusted_less(
    checkpoint: Checkpoint, snapshot: Snapshot, relevant: dict[str, NDArray[np.int64]]
):
    model = noisy(checkpoint)
    before = model.lm_head.weight.detach().clone()
    settings = checkpoint.settings
    factors = calibrate(model, checkpoint.tokenizer, settings, snapshot, relevant, BEAM)
    assert min(factors) < 1
    assert factors[0] in FIRST_FACTORS
    assert set(factors[1:]) <= set(FURTHER_FACTORS)
    after = model.lm_head.weight.detach()
    for level, factor in enumerate(factors):
        rows = checkpoint.tokenizer.level_slice(level)
        torch.testing.assert_close(after[rows], factor * before[rows])
    text = slice(0, checkpoint.settings.sid_offset[0])
    assert torch.equal(after[text], before[text])


@pytest.mark.parametrize("why", ["no prior", "no queries"])
def test_what_says_nothing_changes_nothing(
    why: str, checkpoint: Checkpoint, snapshot: Snapshot, relevant: dict[str, NDArray[np.int64]]
):
    model = noisy(checkpoint)
    before = model.lm_head.weight.detach().clone()
    settings = checkpoint.settings
    if why == "no prior":
        settings = replace(settings, level_prior_beta=0.0)
    asked = {} if why == "no queries" else relevant
    factors = calibrate(model, checkpoint.tokenizer, settings, snapshot, asked, BEAM)
    assert set(factors) == {1.0}
    assert torch.equal(model.lm_head.weight.detach(), before)


def test_who_trains_on_begins_where_training_ended(
    checkpoint: Checkpoint, snapshot: Snapshot, relevant: dict[str, NDArray[np.int64]]
):
    model = noisy(checkpoint)
    trained = model.lm_head.weight.detach().clone()
    settings, tokenizer = checkpoint.settings, checkpoint.tokenizer
    factors = calibrate(model, tokenizer, settings, snapshot, relevant, BEAM)
    calibrated = model.lm_head.weight.detach().clone()
    undo(model, tokenizer, factors)
    torch.testing.assert_close(model.lm_head.weight.detach(), trained)
    # A stage without queries to choose by keeps what the one before it chose.
    assert calibrate(model, tokenizer, settings, snapshot, {}, BEAM, factors) == factors
    torch.testing.assert_close(model.lm_head.weight.detach(), calibrated)

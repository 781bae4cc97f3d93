from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from index.errors import ArtifactError
from models.training import state
from models.training.state import Counters
from models.transformer import Qwen3, Qwen3Config

CONFIG = Qwen3Config(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
)


def start(
    seed: int = 0, *, fused: bool = True, config: Qwen3Config = CONFIG
) -> tuple[Qwen3, torch.optim.AdamW]:
    model = Qwen3(config).initialise(torch.Generator().manual_seed(seed))
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return model, torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.98), fused=fused)


def run(model: Qwen3, optimiser: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(0, 40, (3, 9), generator=generator)
        logits = model(tokens[:, :-1]).flatten(0, 1)
        loss = functional.cross_entropy(logits, tokens[:, 1:].flatten())
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()


@pytest.mark.parametrize("fused", [True, False])
def test_a_continued_run_equals_a_straight_one(tmp_path: Path, fused: bool):
    straight, optimiser = start(fused=fused)
    run(straight, optimiser, range(6))
    first, optimiser = start(fused=fused)
    run(first, optimiser, range(3))
    state.save(tmp_path / "s", first, optimiser, Counters(3, 6, "f"))
    second, optimiser = start(seed=9, fused=fused)
    assert state.load(tmp_path / "s", second, optimiser, "f") == Counters(3, 6, "f")
    run(second, optimiser, range(3, 6))
    expected = straight.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in second.state_dict().items())


def test_tied_weights_stay_tied(tmp_path: Path):
    tied = replace(CONFIG, tie_word_embeddings=True)
    model, optimiser = start(config=tied)
    run(model, optimiser, range(2))
    state.save(tmp_path / "s", model, optimiser, Counters(2, 6, "f"))
    again, optimiser = start(seed=9, config=tied)
    state.load(tmp_path / "s", again, optimiser, "f")
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_a_later_save_replaces_the_earlier(tmp_path: Path):
    model, optimiser = start()
    state.save(tmp_path / "s", model, optimiser, Counters(0, 6, "f"))
    run(model, optimiser, range(1))
    state.save(tmp_path / "s", model, optimiser, Counters(1, 6, "f"))
    again, other = start(seed=9)
    found = state.load(tmp_path / "s", again, other, "f")
    assert found is not None
    assert found.step == 1
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_no_state_is_none(tmp_path: Path):
    model, optimiser = start()
    before = model.lm_head.weight.clone()
    assert state.load(tmp_path / "s", model, optimiser, "f") is None
    assert torch.equal(model.lm_head.weight, before)
    assert state.state_path(tmp_path / "c") == tmp_path / "c.state"


def test_state_of_another_run_is_refused(tmp_path: Path):
    model, optimiser = start()
    state.save(tmp_path / "s", model, optimiser, Counters(0, 6, "f"))
    with pytest.raises(ArtifactError, match="other data or settings"):
        state.load(tmp_path / "s", model, optimiser, "g")
    wider, other = start(config=replace(CONFIG, vocab_size=41))
    with pytest.raises(ArtifactError, match=r"no model\.embed_tokens\.weight of shape \(41, 16\)"):
        state.load(tmp_path / "s", wider, other, "f")


def test_damaged_state_is_refused(tmp_path: Path):
    model, optimiser = start()
    state.save(tmp_path / "s", model, optimiser, Counters(0, 6, "f"))
    path = tmp_path / "s" / "state.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="damaged"):
        state.load(tmp_path / "s", model, optimiser, "f")
    path.unlink()
    with pytest.raises(ArtifactError, match="missing"):
        state.load(tmp_path / "s", model, optimiser, "f")


def test_remove_forgets(tmp_path: Path):
    model, optimiser = start()
    state.save(tmp_path / "s", model, optimiser, Counters(0, 6, "f"))
    state.remove(tmp_path / "s")
    state.remove(tmp_path / "s")
    assert not list(tmp_path.iterdir())

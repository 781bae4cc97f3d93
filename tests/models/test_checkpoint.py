import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from index.errors import ArtifactError, ConfigError
from index.sid import SidLayout
from models.checkpoint import Checkpoint, CheckpointSettings, save_checkpoint, start_from
from models.prompt import PromptSettings
from models.tokenizer import Tokenizer
from models.transformer import Qwen3, Qwen3Config

LAYOUT = SidLayout((16, 16, 16))
TOKENIZER = Tokenizer.train(["white drill", "oak shelf"] * 3, 280, layout=LAYOUT)
SETTINGS = CheckpointSettings(
    level_sizes=LAYOUT.level_sizes,
    sid_offset=TOKENIZER.sid_offset,
    level_prior_beta=2.5,
    prompt=PromptSettings(max_history=3),
    snapshot_version="s1",
    codec_id="c1",
    rescoring={"sid": 1.0},
    stage="sft",
    parents=("d1",),
)


def model(tied: bool = False) -> Qwen3:
    config = Qwen3Config(
        vocab_size=TOKENIZER.size + 3,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=tied,
    )
    return Qwen3(config).initialise(torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_loads_a_checkpoint_and_agrees(tmp_path: Path, tied: bool):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ours = model(tied)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    save_checkpoint(tmp_path / "c", ours, TOKENIZER, SETTINGS, {})
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "c", dtype=torch.float32)
    token_ids = torch.randint(0, TOKENIZER.size, (2, 20))
    with torch.no_grad():
        expected = theirs(token_ids).logits
        torch.testing.assert_close(ours(token_ids), expected, atol=1e-4, rtol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "c")
    text = "white oak drill"
    assert tokenizer.encode(text, add_special_tokens=False) == TOKENIZER.encode_text(text)
    assert tokenizer.convert_tokens_to_ids("<b_5>") == TOKENIZER.sid_offset[1] + 5


@pytest.mark.parametrize("tied", [False, True])
def test_checkpoint_gives_back_what_was_saved(tmp_path: Path, tied: bool):
    ours = model(tied)
    saved = save_checkpoint(tmp_path / "c", ours, TOKENIZER, SETTINGS, {"recall@10": 0.5})
    opened = Checkpoint.open(tmp_path / "c")
    assert opened.settings == SETTINGS
    assert opened.config == ours.config
    assert opened.metrics == {"recall@10": 0.5}
    assert opened.version == saved.version
    assert opened.tokenizer.encode_text("drill") == TOKENIZER.encode_text("drill")
    loaded = opened.load_model().state_dict()
    assert loaded.keys() == ours.state_dict().keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in ours.state_dict().items())


def test_saving_never_replaces_by_accident(tmp_path: Path):
    save_checkpoint(tmp_path / "c", model(), TOKENIZER, SETTINGS, {})
    with pytest.raises(ArtifactError, match="already exists"):
        save_checkpoint(tmp_path / "c", model(), TOKENIZER, SETTINGS, {})
    again = replace(SETTINGS, stage="distill")
    save_checkpoint(tmp_path / "c", model(), TOKENIZER, again, {}, overwrite=True)
    assert Checkpoint.open(tmp_path / "c").settings.stage == "distill"


def test_weights_that_are_not_finite_are_refused(tmp_path: Path):
    broken = model()
    with torch.no_grad():
        broken.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(ArtifactError, match=r"lm_head\.weight"):
        save_checkpoint(tmp_path / "c", broken, TOKENIZER, SETTINGS, {})
    assert not (tmp_path / "c").exists()


def test_parts_that_do_not_fit_are_named(tmp_path: Path):
    moved = replace(SETTINGS, sid_offset=(1, 17, 33))
    with pytest.raises(ArtifactError, match="SID blocks start at"):
        save_checkpoint(tmp_path / "c", model(), TOKENIZER, moved, {})
    other = Tokenizer.train(["white drill"] * 3, 280, layout=SidLayout((16, 16)))
    with pytest.raises(ArtifactError, match="level sizes"):
        save_checkpoint(tmp_path / "c", model(), other, SETTINGS, {})
    with pytest.raises(ConfigError, match="level_prior_beta"):
        replace(SETTINGS, level_prior_beta=-1.0)


def test_damage_is_found(tmp_path: Path):
    path = tmp_path / "c"
    save_checkpoint(path, model(), TOKENIZER, SETTINGS, {})
    weights = path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ArtifactError, match="sha256"):
        Checkpoint.open(path)
    tensors = load_file(weights)
    del tensors["model.norm.weight"]
    save_file(tensors, weights)
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        Checkpoint.open(path, verify=False)


def qwen3_directory(path: Path, *, shards: bool) -> Qwen3:
    """A Qwen3 directory as others write it: no settings, no special tokens, padding rows."""
    original = model()
    path.mkdir()
    (path / "config.json").write_text(json.dumps(original.config.to_json()))
    raw = json.loads(TOKENIZER._backend.to_str())
    raw["added_tokens"] = []
    (path / "tokenizer.json").write_text(json.dumps(raw))
    tensors = {name: t.detach().clone() for name, t in original.state_dict().items()}
    if not shards:
        save_file(tensors, path / "model.safetensors")
        return original
    names = sorted(tensors)
    half = len(names) // 2
    for shard, part in (("one.safetensors", names[:half]), ("two.safetensors", names[half:])):
        save_file({name: tensors[name] for name in part}, path / shard)
    weight_map = {
        name: "one.safetensors" if position < half else "two.safetensors"
        for position, name in enumerate(names)
    }
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return original


@pytest.mark.parametrize("shards", [False, True])
def test_start_from_keeps_the_old_rows_and_adds_new_ones(tmp_path: Path, shards: bool):
    original = qwen3_directory(tmp_path / "q", shards=shards)
    layout = SidLayout((8, 8))
    extended, tokenizer = start_from(tmp_path / "q", layout, seed=1)
    text = tokenizer.text_size
    assert tokenizer.sid_offset == (text + 10, text + 18)
    new = extended.state_dict()["model.embed_tokens.weight"]
    old = original.state_dict()["model.embed_tokens.weight"]
    assert torch.equal(new[:text], old[:text])
    assert len(new) >= tokenizer.size
    assert torch.allclose(new[text:].mean(0), old[:text].mean(0), atol=1e-3)
    assert new[text:].std(0).max() > 0
    again, _ = start_from(tmp_path / "q", layout, seed=1)
    assert torch.equal(
        again.state_dict()["lm_head.weight"], extended.state_dict()["lm_head.weight"]
    )
    token_ids = torch.arange(9)[None]
    torch.testing.assert_close(extended(token_ids)[..., :text], original(token_ids)[..., :text])


def test_start_from_names_what_is_wrong(tmp_path: Path):
    qwen3_directory(tmp_path / "q", shards=False)
    (tmp_path / "q" / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        start_from(tmp_path / "q", LAYOUT)
    save_checkpoint(tmp_path / "c", model(), TOKENIZER, SETTINGS, {})
    with pytest.raises(ConfigError, match="already has SID tokens"):
        start_from(tmp_path / "c", LAYOUT)

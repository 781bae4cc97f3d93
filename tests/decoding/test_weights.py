import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from decoding.native.loading import load_weights
from decoding.weights import DecoderShape, DecoderWeights
from index.errors import ArtifactError
from index.sid import SidLayout
from models.checkpoint import Checkpoint, CheckpointSettings, save_checkpoint
from models.tokenizer import Tokenizer
from models.transformer import Qwen3, Qwen3Config

LAYOUT = SidLayout((16, 8))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    tokenizer = Tokenizer.train(["white drill"] * 3, 260, layout=LAYOUT)
    config = Qwen3Config(
        vocab_size=tokenizer.size,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    model = Qwen3(config).initialise(torch.Generator().manual_seed(0))
    settings = CheckpointSettings(LAYOUT.level_sizes, tokenizer.sid_offset)
    save_checkpoint(tmp_path / "c", model, tokenizer, settings, {})
    return tmp_path / "c"


def test_directory_and_live_tensors_give_the_same_weights(directory: Path):
    checkpoint = Checkpoint.open(directory)
    model = checkpoint.load_model()
    read = DecoderWeights.from_directory(directory)
    live = DecoderWeights.from_state_dict(
        model.config.to_json(), model.state_dict(), LAYOUT, checkpoint.settings.sid_offset
    )
    assert read.shape == live.shape == DecoderShape.from_json(model.config.to_json())
    for one, two in zip(read.layers, live.layers, strict=True):
        assert torch.equal(one.qkv, two.qkv)
        assert torch.equal(one.gate_up, two.gate_up)
    first, second = checkpoint.settings.sid_offset
    assert torch.equal(read.level_output[0], model.lm_head.weight[first : first + 16])
    assert torch.equal(live.level_output[1], model.lm_head.weight[second : second + 8])
    narrow = DecoderWeights.from_directory(directory, dtype=torch.bfloat16)
    assert narrow.embedding.dtype == torch.bfloat16
    assert narrow.level_output[0].dtype == torch.float32


def test_precision_by_name(directory: Path):
    assert DecoderShape.from_directory(directory).hidden_size == 16
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        weights = load_weights(directory, name)
        assert weights.embedding.dtype == weights.layers[0].down.dtype == dtype
        assert weights.level_output[0].dtype == torch.float32
    assert load_weights(directory, "auto").embedding.dtype in (torch.float32, torch.bfloat16)


def test_what_does_not_fit_is_named(directory: Path):
    config = json.loads((directory / "config.json").read_text())
    tensors = load_file(directory / "model.safetensors")
    with pytest.raises(ArtifactError, match="llama"):
        DecoderShape.from_json(config | {"model_type": "llama"})
    with pytest.raises(ArtifactError, match="num_hidden_layers"):
        DecoderShape.from_json({k: v for k, v in config.items() if k != "num_hidden_layers"})
    with pytest.raises(ArtifactError, match=r"layers\.2\.self_attn"):
        deeper = config | {"num_hidden_layers": 3}
        DecoderWeights.from_state_dict(deeper, tensors, LAYOUT, (0, 16))
    with pytest.raises(ArtifactError, match="SID tokens reach"):
        DecoderWeights.from_state_dict(config, tensors, LAYOUT, (0, 10_000))
    tensors["model.norm.weight"][0] = float("nan")
    with pytest.raises(ArtifactError, match=r"model\.norm\.weight"):
        DecoderWeights.from_state_dict(config, tensors, LAYOUT, (0, 16))
    (directory / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        DecoderWeights.from_directory(directory)

"""Hugging Face encoders: a BERT of random weights, made here, against transformers itself."""

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from index.encoder import ConcatenatedEncoder, StaticEncoder, open_encoder, unit_rows
from index.errors import ArtifactError, ConfigError
from models.text_encoders import HuggingFaceEncoder, open_text_encoder

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "oak", "desk", "lamp", "##s"]
TEXTS = ["red oak desk", "", "Lamps", "red " * 40, "desk"]


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny-bert"
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(directory)
    vocabulary = {token: place for place, token in enumerate(VOCABULARY)}
    BertTokenizerFast(vocab=vocabulary).save_pretrained(directory)
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12}))
    return directory


def expected(directory: Path, texts: list[str]) -> np.ndarray:
    """transformers' own tokenizer and model, one text at a time."""
    tokenizer = BertTokenizerFast.from_pretrained(directory)
    model = BertModel.from_pretrained(directory).eval()
    vectors = np.zeros((len(texts), 16), np.float32)
    for line, text in zip(vectors, texts, strict=True):
        if text:
            tokens = tokenizer(text, truncation=True, max_length=12, return_tensors="pt")
            with torch.inference_mode():
                line += model(**tokens).last_hidden_state[0].mean(dim=0).numpy()
    return unit_rows(vectors)


def test_vectors_equal_those_of_transformers(tiny_bert: Path):
    encoder = open_text_encoder(tiny_bert)
    assert isinstance(encoder, HuggingFaceEncoder)
    assert (encoder.name, encoder.dimension) == ("tiny-bert", 16)
    vectors = encoder.encode(TEXTS)
    np.testing.assert_allclose(vectors, expected(tiny_bert, TEXTS), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 0, 1, 1, 1], atol=1e-5)
    assert encoder.encode([]).shape == (0, 16)


def test_threads_agree(tiny_bert: Path):
    encoder = open_text_encoder(tiny_bert)
    whole = encoder.encode(TEXTS)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(encoder.encode, [TEXTS] * 12):
            np.testing.assert_allclose(found, whole, atol=1e-5)


def test_a_copy_is_complete_in_itself(tiny_bert: Path, tmp_path: Path):
    source = tmp_path / "source"
    shutil.copytree(tiny_bert, source)
    table = np.random.default_rng(1).standard_normal((64, 3)).astype(np.float32)
    static = StaticEncoder.from_table(table, np.arange(64, dtype=np.int32))
    both = ConcatenatedEncoder((static, open_text_encoder(source)), (1.0, 0.5))
    before = both.encode(TEXTS)
    both.save(tmp_path / "saved")
    shutil.rmtree(source)
    opened = open_encoder(tmp_path / "saved")
    assert opened.name == "static+source"
    assert opened.encode(TEXTS).tobytes() == before.tobytes()


def test_an_older_vocabulary_file_will_do(tiny_bert: Path, tmp_path: Path):
    older = tmp_path / "older"
    shutil.copytree(tiny_bert, older)
    (older / "tokenizer.json").unlink()
    (older / "vocab.txt").write_text("\n".join(VOCABULARY))
    encoder = open_text_encoder(older)
    np.testing.assert_allclose(encoder.encode(TEXTS), expected(tiny_bert, TEXTS), atol=1e-5)
    encoder.save(tmp_path / "saved")
    opened = open_encoder(tmp_path / "saved")
    np.testing.assert_allclose(opened.encode(TEXTS), encoder.encode(TEXTS), atol=1e-6)


def test_what_is_no_encoder_is_refused(tiny_bert: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="is no directory"):
        open_text_encoder(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="is no text encoder"):
        open_text_encoder(tmp_path)
    pickled = tmp_path / "pickled"
    shutil.copytree(tiny_bert, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        open_text_encoder(pickled)
    broken = tmp_path / "broken"
    shutil.copytree(tiny_bert, broken)
    (broken / "model.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(ConfigError, match="no model that can be read"):
        open_text_encoder(broken)
    (broken / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="no readable tokenizer"):
        open_text_encoder(broken)


def test_missing_weights_are_refused(tiny_bert: Path, tmp_path: Path):
    """transformers would fill them with random numbers."""
    from safetensors.torch import load_file, save_file

    partial = tmp_path / "partial"
    shutil.copytree(tiny_bert, partial)
    tensors = load_file(partial / "model.safetensors")
    del tensors["encoder.layer.1.attention.self.query.weight"]
    save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks the weights encoder\.layer\.1"):
        open_text_encoder(partial)


def test_a_missing_library_is_named(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'onesearch\[encoders\]'"):
        open_text_encoder(tiny_bert)


def test_a_damaged_copy_is_refused(tiny_bert: Path, tmp_path: Path):
    open_text_encoder(tiny_bert).save(tmp_path / "c")
    path = tmp_path / "c" / "encoder.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dimension": 5}))
    with pytest.raises(ArtifactError, match="16 dimensions, its settings say 5"):
        open_encoder(tmp_path / "c")

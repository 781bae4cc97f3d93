"""ONNX encoders. The models are written here by hand: a table of vectors, looked up by token id."""

import json
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from index.encoder import ConcatenatedEncoder, StaticEncoder, open_encoder, unit_rows
from index.errors import ArtifactError, ConfigError
from index.external_encoder import OnnxEncoder
from index.pretrained_text import BATCH_TEXTS, TextBatches, pool, read_settings

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "oak", "desk", "lamp", "##s"]
DIMENSION = 4
TABLE = np.random.default_rng(0).standard_normal((len(VOCABULARY), DIMENSION)).astype(np.float32)
TEXTS = ["red oak desk", "desk", "  ", "Lamps", "red " * 30, "zzz"]


# A protobuf message is a run of (field number, kind, value); these few lines write what is needed.
def varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def message(*fields: tuple[int, int | str | bytes]) -> bytes:
    written = b""
    for number, value in fields:
        if isinstance(value, int):
            written += varint(number << 3) + varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            written += varint(number << 3 | 2) + varint(len(data)) + data
    return written


FLOAT, INT64 = 1, 7


def value_info(name: str, kind: int, shape: Iterable[str | int]) -> bytes:
    dimensions = [(1, message((1, size) if isinstance(size, int) else (2, size))) for size in shape]
    tensor = message((1, kind), (2, message(*dimensions)))
    return message((1, name), (2, message((1, tensor))))


def node(operator: str, inputs: list[str], output: str, *attributes: bytes) -> bytes:
    return message(
        *((1, name) for name in inputs),
        (2, output),
        (4, operator),
        *((5, attribute) for attribute in attributes),
    )


def onnx_model(
    *,
    nodes: list[bytes] | None = None,
    inputs: list[bytes] | None = None,
    outputs: list[bytes] | None = None,
    weights_file: str | None = None,
) -> bytes:
    """`last_hidden_state[b, t] = TABLE[input_ids[b, t]]` unless told otherwise."""
    facts: list[tuple[int, int | str | bytes]] = [
        (1, len(VOCABULARY)),
        (1, DIMENSION),
        (2, FLOAT),
        (8, "table"),
    ]
    if weights_file is None:
        facts.append((9, TABLE.tobytes()))
    else:
        facts += [(13, message((1, "location"), (2, weights_file))), (14, 1)]
    texts = ("batch", "tokens")
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = inputs or [value_info(name, INT64, texts) for name in names]
    outputs = outputs or [value_info("last_hidden_state", FLOAT, (*texts, DIMENSION))]
    nodes = nodes or [node("Gather", ["table", "input_ids"], "last_hidden_state")]
    graph = message(
        *((1, entry) for entry in nodes),
        (2, "graph"),
        (5, message(*facts)),
        *((11, entry) for entry in inputs),
        *((12, entry) for entry in outputs),
    )
    return message((1, 8), (7, graph), (8, message((1, ""), (2, 13))))


def mean_of_tokens() -> dict[str, list[bytes]]:
    """A model that ends in `sentence_embedding`, the mean over all tokens, padding too."""
    axes = message((1, "axes"), (8, 1), (20, 7))
    keep = message((1, "keepdims"), (3, 0), (20, 2))
    return {
        "nodes": [
            node("Gather", ["table", "input_ids"], "states"),
            node("ReduceMean", ["states"], "sentence_embedding", axes, keep),
        ],
        "outputs": [value_info("sentence_embedding", FLOAT, ("batch", DIMENSION))],
    }


def tokenizer() -> Tokenizer:
    vocabulary = {token: place for place, token in enumerate(VOCABULARY)}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.enable_padding(pad_id=0, pad_token="[PAD]", length=50)
    return made


def source(directory: Path, model: bytes | None = None, place: str = "model.onnx") -> Path:
    (directory / place).parent.mkdir(parents=True, exist_ok=True)
    (directory / place).write_bytes(onnx_model() if model is None else model)
    tokenizer().save(str(directory / "tokenizer.json"))
    return directory


def expected(texts: list[str], *, max_tokens: int = 128, pooling: str = "mean") -> np.ndarray:
    """One text at a time, in plain Python."""
    vectors = np.zeros((len(texts), DIMENSION), np.float32)
    for line, text in zip(vectors, texts, strict=True):
        if not text.strip():
            continue
        words = tokenizer().encode(text, add_special_tokens=False).ids
        kept = [i for i in words if i != 0][: max_tokens - 2]
        ids = [2, *kept, 3]
        line += TABLE[ids].mean(axis=0) if pooling == "mean" else TABLE[ids[0]]
    return unit_rows(vectors)


# What needs no runtime: tokenising, pooling, reading settings.


def test_batches_hold_every_text_once_with_its_mask():
    texts = [f"{'red ' * (n % 9)} desk {n}" for n in range(2 * BATCH_TEXTS + 5)] + ["", " \t"]
    seen: list[int] = []
    for batch in TextBatches(tokenizer(), 6).of(texts):
        assert len(batch.places) <= BATCH_TEXTS
        assert batch.ids.shape == batch.mask.shape
        assert batch.ids.shape[1] <= 6
        assert batch.mask.any(axis=0).all()
        assert not batch.ids[batch.mask == 0].any()
        seen += batch.places.tolist()
    assert sorted(seen) == list(range(len(texts) - 2))


def test_pooling_by_hand():
    states = np.array([[[1, 2], [3, 4], [9, 9]], [[5, 6], [0, 0], [0, 0]]], np.float32)
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    assert pool(states, mask, "mean").tolist() == [[2, 3], [5, 6]]
    assert pool(states, mask, "first_token").tolist() == [[1, 2], [5, 6]]
    assert pool(states, np.zeros_like(mask), "mean").tolist() == [[0, 0], [0, 0]]


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def test_settings_of_sentence_transformers_are_read(tmp_path: Path):
    directory = tmp_path / "tiny-model"
    directory.mkdir()
    plain = read_settings(directory)
    assert (plain.name, plain.max_tokens, plain.pooling) == ("tiny-model", 128, "mean")
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": 9})
    write_json(
        directory / "1_Pooling" / "config.json",
        {"word_embedding_dimension": 4, "pooling_mode_cls_token": True},
    )
    settings = read_settings(directory)
    assert (settings.max_tokens, settings.pooling) == (9, "first_token")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "module Dense"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
        ("sentence_bert_config.json", {"max_seq_length": 100_000}, "max_tokens"),
    ],
)
def test_settings_that_are_not_known(tmp_path: Path, name: str, value: Any, message: str):
    write_json(tmp_path / name, value)
    with pytest.raises(ConfigError, match=message):
        read_settings(tmp_path)
    (tmp_path / name).write_text("{")
    with pytest.raises(ConfigError, match="no valid JSON"):
        read_settings(tmp_path)


def test_missing_files_are_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no model\.onnx"):
        OnnxEncoder.load(tmp_path)
    source(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"no tokenizer\.json"):
        OnnxEncoder.load(tmp_path)


def test_a_missing_runtime_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"pip install 'onesearch\[encoders\]'"):
        OnnxEncoder.load(source(tmp_path))


# What runs a model.


@pytest.fixture
def runtime() -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is optional and not installed")


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("place", ["model.onnx", "onnx/model.onnx"])
def test_mean_of_the_token_states(tmp_path: Path, place: str):
    encoder = OnnxEncoder.load(source(tmp_path / "tiny", place=place))
    assert (encoder.name, encoder.dimension) == ("tiny", DIMENSION)
    vectors = encoder.encode(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected(TEXTS), atol=1e-6)
    assert encoder.encode([]).shape == (0, DIMENSION)


@pytest.mark.usefixtures("runtime")
def test_first_token_and_maximum_length(tmp_path: Path):
    source(tmp_path)
    write_json(tmp_path / "sentence_bert_config.json", {"max_seq_length": 4})
    np.testing.assert_allclose(
        OnnxEncoder.load(tmp_path).encode(TEXTS), expected(TEXTS, max_tokens=4), atol=1e-6
    )
    write_json(tmp_path / "1_Pooling" / "config.json", {"pooling_mode_cls_token": True})
    np.testing.assert_allclose(
        OnnxEncoder.load(tmp_path).encode(TEXTS), expected(TEXTS, pooling="first"), atol=1e-6
    )


@pytest.mark.usefixtures("runtime")
def test_a_models_own_sentence_output_is_taken(tmp_path: Path):
    source(tmp_path, onnx_model(**mean_of_tokens()))
    # A dense module is part of that output; the pooling file no longer matters.
    write_json(tmp_path / "modules.json", [{"type": "sentence_transformers.models.Dense"}])
    encoder = OnnxEncoder.load(tmp_path)
    assert encoder.settings.pooling == "sentence"
    for text in ("red oak desk", "lamp"):
        np.testing.assert_allclose(encoder.encode([text]), expected([text]), atol=1e-6)


@pytest.mark.usefixtures("runtime")
def test_many_texts_in_many_threads(tmp_path: Path):
    encoder = OnnxEncoder.load(source(tmp_path))
    texts = [" ".join(VOCABULARY[4 + n % 4] for n in range(i % 11)) for i in range(150)]
    oracle = expected(texts)
    with ThreadPoolExecutor(4) as pool_of_threads:
        for found in pool_of_threads.map(encoder.encode, [texts] * 8):
            np.testing.assert_allclose(found, oracle, atol=1e-6)


@pytest.mark.usefixtures("runtime")
def test_weights_outside_the_model_file_travel_with_it(tmp_path: Path):
    directory = source(tmp_path / "s", onnx_model(weights_file="model.onnx_data"))
    (directory / "model.onnx_data").write_bytes(TABLE.tobytes())
    encoder = OnnxEncoder.load(directory)
    before = encoder.encode(TEXTS)
    encoder.save(tmp_path / "copy")
    for path in directory.iterdir():
        path.unlink()
    opened = open_encoder(tmp_path / "copy")
    assert opened.name == "s"
    assert opened.encode(TEXTS).tobytes() == before.tobytes()


@pytest.mark.usefixtures("runtime")
def test_beside_the_static_encoder_in_one_directory(tmp_path: Path):
    external = OnnxEncoder.load(source(tmp_path / "source", place="onnx/model.onnx"))
    table = np.random.default_rng(1).standard_normal((64, 3)).astype(np.float32)
    static = StaticEncoder.from_table(table, np.arange(64, dtype=np.int32))
    both = ConcatenatedEncoder((static, external), (1.0, 0.5))
    both.save(tmp_path / "saved")
    opened = open_encoder(tmp_path / "saved")
    assert opened.dimension == 3 + DIMENSION
    assert opened.encode(TEXTS).tobytes() == both.encode(TEXTS).tobytes()


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            onnx_model(
                inputs=[
                    value_info("input_ids", INT64, ("b", "t")),
                    value_info("pixel_values", FLOAT, ("b", "t")),
                ]
            ),
            "input pixel_values",
        ),
        (onnx_model(inputs=[value_info("input_ids", INT64, (1, 128))]), "dynamic axes"),
        (
            onnx_model(
                nodes=[node("Gather", ["table", "attention_mask"], "last_hidden_state")],
                inputs=[value_info("attention_mask", INT64, ("b", "t"))],
            ),
            "no input named input_ids",
        ),
        (
            onnx_model(
                nodes=[node("Shape", ["input_ids"], "one"), node("Shape", ["one"], "two")],
                outputs=[value_info("one", INT64, ("n",)), value_info("two", INT64, ("m",))],
            ),
            "outputs one, two",
        ),
        (b"no model at all", "onnxruntime can load"),
    ],
)
def test_models_that_do_not_fit(tmp_path: Path, model: bytes, message: str):
    with pytest.raises(ConfigError, match=message):
        OnnxEncoder.load(source(tmp_path, model))


@pytest.mark.usefixtures("runtime")
def test_a_vocabulary_that_is_larger_than_the_model(tmp_path: Path):
    """Ids beyond the model's table: named when the encoder is opened, not at the first search."""
    source(tmp_path)
    larger = {token: place + 100 for place, token in enumerate(VOCABULARY)}
    made = Tokenizer(models.WordPiece(larger, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="cannot run on its own tokens"):
        OnnxEncoder.load(tmp_path)


@pytest.mark.usefixtures("runtime")
def test_damaged_copies_are_refused(tmp_path: Path):
    OnnxEncoder.load(source(tmp_path / "s")).save(tmp_path / "c")
    path = tmp_path / "c" / "encoder.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"dimension": 5}))
    with pytest.raises(ArtifactError, match="4 dimensions, its settings say 5"):
        open_encoder(tmp_path / "c")
    path.write_text(json.dumps(config | {"settings": {"name": "x"}}))
    with pytest.raises(ArtifactError, match=r"settings in .* are damaged"):
        open_encoder(tmp_path / "c")
    path.write_text(json.dumps(config))
    (tmp_path / "c" / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="no readable tokenizer"):
        open_encoder(tmp_path / "c")

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from index import encoder as encoder_module
from index.encoder import (
    MAX_WORD_CHARACTERS,
    ConcatenatedEncoder,
    StaticEncoder,
    TextEncoder,
    bigram_bucket,
    open_encoder,
    register_kind,
    text_tokens,
    token_buckets,
    unit_rows,
    word_buckets,
    write_config,
)
from index.errors import ArtifactError, ConfigError

BUCKETS = 256
DIMENSION = 12


def static(seed: int = 0, dimension: int = DIMENSION) -> StaticEncoder:
    random = np.random.default_rng(seed)
    table = random.standard_normal((BUCKETS, dimension)).astype(np.float32)
    return StaticEncoder.from_table(table, np.arange(BUCKETS, dtype=np.int32))


ENCODER = static()
TEXTS = ["red oak desk", "5/8 in. galvanised bolt", "", "白色 lamp", "desk", "red oak desk"]


def test_hashing_is_fixed_for_ever():
    # CRC-32 of "w desk" and so on; a snapshot written years ago must still find its rows.
    assert word_buckets("desk", 1 << 18) == [
        149_668,
        185_598,
        143_334,
        26_704,
        101_040,
        207_556,
        19_007,
        118_714,
        132_830,
        1_873,
    ]
    assert bigram_bucket("oak", "desk", 1 << 18) == 254_009


def test_grams_are_of_three_to_five_characters():
    # <oak> has 3 + 2 + 1 grams and the word itself; <a> one gram.
    assert len(word_buckets("oak", BUCKETS)) == 7
    assert len(word_buckets("a", BUCKETS)) == 2
    long = "x" * 1000
    assert word_buckets(long, BUCKETS) == word_buckets(long[:MAX_WORD_CHARACTERS], BUCKETS)


def test_tokens_are_words_and_neighbours():
    assert text_tokens("Red OAK desks") == ["red", "oak", "desk", "red oak", "oak desk"]
    assert text_tokens("") == []
    assert token_buckets("red oak", BUCKETS) == [bigram_bucket("red", "oak", BUCKETS)]


def test_a_text_is_the_sum_of_its_features():
    table = ENCODER.table * ENCODER.scale[:, None]
    for text in TEXTS:
        buckets = [b for token in text_tokens(text) for b in token_buckets(token, BUCKETS)]
        expected = unit_rows(table[buckets].sum(axis=0, keepdims=True))
        np.testing.assert_allclose(ENCODER.encode([text]), expected, atol=1e-5)


@given(st.lists(st.text(max_size=40), max_size=4))
def test_every_vector_has_norm_one_or_zero(texts: list[str]):
    vectors = ENCODER.encode(texts)
    assert vectors.shape == (len(texts), DIMENSION)
    assert vectors.dtype == np.float32
    expected = [1.0 if text_tokens(text) else 0.0 for text in texts]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), expected, atol=1e-5)


def test_unknown_features_give_the_zero_vector():
    rows = np.full(BUCKETS, -1, np.int32)
    rows[word_buckets("desk", BUCKETS)[0]] = 0
    known = StaticEncoder.from_table(np.ones((1, 3), np.float32), rows)
    assert not known.encode(["zzz", ""]).any()
    np.testing.assert_allclose(known.encode(["desk"]), [[3**-0.5] * 3], atol=1e-6)


def test_quantisation_error_is_at_most_half_a_step():
    random = np.random.default_rng(1)
    vectors = (random.standard_normal((50, 8)) * 10.0 ** random.integers(-6, 6, (50, 1))).astype(
        np.float32
    )
    vectors[7] = 0
    quantised = StaticEncoder.from_table(vectors, np.zeros(1, np.int32))
    restored = quantised.table * quantised.scale[:, None]
    step = np.abs(vectors).max(axis=1, keepdims=True) / 127
    assert (np.abs(restored - vectors) <= step * 0.5001).all()
    assert not restored[7].any()


def test_an_opened_encoder_gives_the_same_bytes(tmp_path: Path):
    ENCODER.save(tmp_path / "e")
    opened = open_encoder(tmp_path / "e")
    assert isinstance(opened, TextEncoder)
    assert (opened.name, opened.dimension) == ("static", DIMENSION)
    assert opened.encode(TEXTS).tobytes() == ENCODER.encode(TEXTS).tobytes()


def test_a_text_has_one_vector_whatever_its_neighbours():
    together = ENCODER.encode(TEXTS)
    alone = np.concatenate([static().encode([text]) for text in TEXTS])
    assert together.tobytes() == alone.tobytes()


def test_threads_agree():
    shared, texts = static(3), [f"thing {n} of {n % 7}" for n in range(200)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: shared.encode(texts).tobytes(), range(16)))
    assert set(results) == {static(3).encode(texts).tobytes()}


def test_concatenated_dot_product_is_the_weighted_mean_of_cosines():
    first, second = static(1), static(2, dimension=5)
    both = ConcatenatedEncoder((first, second), (1.0, 0.5))
    texts = [text for text in TEXTS if text]
    a, b, c = (part.encode(texts) for part in (first, second, both))
    expected = (1.0 * (a @ a.T) + 0.25 * (b @ b.T)) / 1.25
    np.testing.assert_allclose(c @ c.T, expected, atol=1e-5)
    assert both.dimension == DIMENSION + 5
    assert both.name == "static+static"
    assert not both.encode([""]).any()


def test_a_concatenated_encoder_comes_back(tmp_path: Path):
    inner = ConcatenatedEncoder((static(1), static(2)), (1.0, 2.0))
    outer = ConcatenatedEncoder((inner, static(4)), (0.5, 0.25))
    outer.save(tmp_path / "e")
    opened = open_encoder(tmp_path / "e")
    assert opened.encode(TEXTS).tobytes() == outer.encode(TEXTS).tobytes()


@pytest.mark.parametrize("weights", [(), (1.0, 2.0)])
def test_each_part_needs_its_weight(weights: tuple[float, ...]):
    with pytest.raises(ConfigError, match="one weight for each"):
        ConcatenatedEncoder((ENCODER,), weights)


class Constant:
    """Every text is the same unit vector."""

    name = "constant"
    dimension = 2

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.tile(np.array([[0.6, 0.8]], np.float32), (len(texts), 1))

    def save(self, directory: Path) -> None:
        write_config(directory, {"kind": "constant"})


def test_a_kind_must_be_registered_to_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(encoder_module, "_OPENERS", {})
    both = ConcatenatedEncoder((ENCODER, Constant()), (1.0, 1.0))
    both.save(tmp_path / "e")
    with pytest.raises(ArtifactError, match=r"'constant'.*import .*models\.text_encoders"):
        open_encoder(tmp_path / "e")

    def opener(directory: Path, config: dict[str, Any]) -> Constant:
        assert (directory, config) == (tmp_path / "e" / "1", {"kind": "constant"})
        return Constant()

    register_kind("constant", opener)
    opened = open_encoder(tmp_path / "e")
    np.testing.assert_array_equal(opened.encode(TEXTS), both.encode(TEXTS))


def test_damage_is_named(tmp_path: Path):
    with pytest.raises(ArtifactError, match=r"holds no encoder\.json"):
        open_encoder(tmp_path)
    ENCODER.save(tmp_path)
    config = tmp_path / "encoder.json"
    for damaged in ("{", "[]", "{}", json.dumps({"kind": "concatenated", "weights": ["x"]})):
        config.write_text(damaged)
        with pytest.raises(ArtifactError, match=r"encoder\.json cannot be read"):
            open_encoder(tmp_path)
    ENCODER.save(tmp_path)
    np.save(tmp_path / "scale.npy", ENCODER.scale[:-1])
    with pytest.raises(ArtifactError, match="do not fit each other"):
        open_encoder(tmp_path)
    (tmp_path / "table.npy").unlink()
    with pytest.raises(ArtifactError, match=r"table\.npy is missing"):
        open_encoder(tmp_path)


def test_unit_rows_keeps_zero_rows():
    rows = unit_rows(np.array([[3, 4], [0, 0]], np.float32))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0]], atol=1e-7)
    assert rows.dtype == np.float32

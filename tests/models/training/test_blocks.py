"""Blocks of a catalogue: cut, encoded alone, laid down in any order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from index.attributes import AttributeDictionary, AttributeMatcher
from index.codec import Codec
from index.encoder import StaticEncoder
from index.errors import DataError
from index.sid import SidLayout
from models.training import blocks as module
from models.training.blocks import Embedding, OnThisMachine, blocks, embed_block, merged
from models.training.cluster import read_files, write_files

RANDOM = np.random.default_rng(3)
TEXTS = [f"{color} lamp {number}" for number in range(7) for color in ("red", "blue", "plain")]


@pytest.fixture
def embedding() -> Embedding:
    table = RANDOM.standard_normal((256, 8)).astype(np.float32)
    encoder = StaticEncoder.from_table(table, np.arange(256, dtype=np.int32))
    colors = AttributeDictionary.of({"Color": {"red": [], "blue": []}})
    return Embedding(encoder, colors, 0.5)


def test_blocks_are_cut_by_row_number(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "BLOCK_ITEMS", 4)
    assert blocks(9) == [slice(0, 4), slice(4, 8), slice(8, 9)]
    assert blocks(4) == [slice(0, 4)]
    assert blocks(0) == []


def test_parts_are_laid_down_in_any_order():
    whole = RANDOM.standard_normal((10, 3)).astype(np.float32)
    parts = [(6, whole[6:]), (0, whole[:2]), (2, whole[2:6])]
    np.testing.assert_array_equal(merged(parts, 10, 3, np.float32), whole)
    assert merged([], 0, 3, np.float32).shape == (0, 3)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([(0, 2)], "row 2 of 4 was computed 0 times"),
        ([(0, 3), (2, 2)], "row 2 of 4 was computed 2 times"),
        ([(2, 3)], "does not fit 4 rows of width 1"),
        ([(-1, 2)], "does not fit 4 rows of width 1"),
    ],
)
def test_a_row_comes_exactly_once(parts: list[tuple[int, int]], message: str):
    arrays = [(first, np.zeros((count, 1), np.int32)) for first, count in parts]
    with pytest.raises(DataError, match=message):
        merged(arrays, 4, 1, np.int32)


def test_a_block_gives_the_same_bytes_here_and_from_the_files_of_an_embedding(
    embedding: Embedding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "BLOCK_ITEMS", 5)
    here = OnThisMachine().embed(embedding, TEXTS)
    embedding.save(tmp_path / "saved")
    write_files(tmp_path / "sent", read_files(tmp_path / "saved"))
    opened = Embedding.open(tmp_path / "sent", embedding.keyword_fusion)
    matcher = AttributeMatcher(opened.attributes)
    parts = [(part.start, embed_block(opened, matcher, TEXTS[part])) for part in blocks(len(TEXTS))]
    there = merged(reversed(parts), len(TEXTS), 8, np.float32)
    assert here.tobytes() == there.tobytes()
    np.testing.assert_allclose(np.linalg.norm(here, axis=1), 1, atol=1e-6)


def test_codes_of_blocks_are_those_of_the_whole():
    vectors = RANDOM.standard_normal((57, 8)).astype(np.float32)
    books = tuple(vectors[RANDOM.choice(57, size)] for size in (16, 4))
    codec = Codec(SidLayout((16, 4)), books, ("rq", "rq"))
    whole = OnThisMachine().assign(codec, vectors)
    for size in (1, 5, 56):
        starts = range(0, 57, size)
        parts = [(start, codec.encode(vectors[start : start + size])) for start in starts]
        np.testing.assert_array_equal(merged(parts, 57, 2, np.int32), whole)

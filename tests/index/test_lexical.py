import math
from collections import Counter
from pathlib import Path

import bm25s
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.errors import ArtifactError, ConfigError
from index.lexical import LexicalIndex

WORDS = ["red", "oak", "desk", "lamp", "3", "1/2"]
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), max_size=12)
QUERY = st.lists(st.sampled_from([*WORDS, "unknown"]), max_size=5).map(" ".join)


def oracle(texts: list[str], query: str, k1: float, b: float) -> list[float]:
    """BM25 by its definition, item by item."""
    documents = [text.split() for text in texts]
    mean = sum(map(len, documents)) / max(len(documents), 1)
    scores: list[float] = []
    for document in documents:
        counts, total = Counter(document), 0.0
        for token in query.split():
            having = sum(token in other for other in documents)
            idf = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
            if counts[token]:
                norm = k1 * (1 - b + b * len(document) / mean)
                total += idf * counts[token] / (counts[token] + norm)
        scores.append(total)
    return scores


@given(TEXTS, QUERY, st.floats(0, 3), st.floats(0, 1))
def test_scores_follow_the_definition(texts: list[str], query: str, k1: float, b: float) -> None:
    index = LexicalIndex.build(texts, k1=k1, b=b)
    expected = oracle(texts, query, k1, b)
    np.testing.assert_allclose(index.score_all(query), expected, rtol=1e-5)
    rows = np.arange(len(texts))[::-1]
    np.testing.assert_allclose(index.scores(query, rows), expected[::-1], rtol=1e-5)
    assert all(value <= index.upper_bound(query) * (1 + 1e-6) for value in expected)


@given(TEXTS, QUERY, st.integers(0, 15), st.randoms(use_true_random=False))
def test_search_is_the_best_of_score_all(
    texts: list[str], query: str, k: int, random: object
) -> None:
    index = LexicalIndex.build(texts)
    mask = np.array([random.random() < 0.5 for _ in texts], dtype=np.bool_)  # type: ignore[attr-defined]
    scores = index.score_all(query)
    hits = [row for row in range(len(texts)) if mask[row] and scores[row] > 0]
    expected = sorted(hits, key=lambda row: (-scores[row], row))[:k]
    rows, found = index.search(query, k, mask)
    assert rows.tolist() == expected
    np.testing.assert_array_equal(found, scores[expected])


def test_same_scores_as_bm25s() -> None:
    rng = np.random.default_rng(0)
    vocabulary = [f"{a}{b}" for a in "abcdefgh" for b in "bcdfg"]
    texts = [" ".join(rng.choice(vocabulary, rng.integers(1, 9))) for _ in range(200)]
    peer = bm25s.BM25(method="lucene", k1=0.8, b=0.4)
    peer.index([text.split() for text in texts], show_progress=False)
    index = LexicalIndex.build(texts)
    for query in texts[:20]:
        np.testing.assert_allclose(
            index.score_all(query), peer.get_scores(query.split()), rtol=1e-4, atol=1e-5
        )


def test_round_trip(tmp_path: Path) -> None:
    built = LexicalIndex.build(["Oak desk, 2-1/2 in.", "Red lamp", ""])
    built.save(tmp_path)
    opened = LexicalIndex.open(tmp_path)
    assert opened.search("oak 1/2 inches", 5)[0].tolist() == [0]
    assert dict(opened.vocabulary) == dict(built.vocabulary)
    (tmp_path / "impacts.npy").unlink()
    with pytest.raises(ArtifactError, match="impacts"):
        LexicalIndex.open(tmp_path)


def test_settings_outside_their_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="k1"):
        LexicalIndex.build(["a"], k1=-1)
    with pytest.raises(ConfigError, match="b=2"):
        LexicalIndex.build(["a"], b=2)


def test_coverage_by_hand():
    index = LexicalIndex.build(["red lamp", "red lamps tall", "blue desk", "ladder 100"])
    rows = np.array([0, 1, 2, 3, 0])
    idf = {word: float(index.idf[index.vocabulary[word]]) for word in ("red", "lamp", "blue")}
    total = idf["red"] + idf["lamp"]
    assert index.coverage("red lamp red", rows) == pytest.approx([1, 1, 0, 0, 1])
    blue = idf["blue"] / (total + idf["blue"])
    assert index.coverage("red blue lamp", rows) == pytest.approx(
        [1 - blue, 1 - blue, blue, 0, 1 - blue]
    )


def test_coverage_of_near_spellings_and_unknown_words():
    index = LexicalIndex.build(["ladder", "lamp", "1000 watt"])
    rows = np.arange(3)
    # ^la lad add dde der er$ against ^la lad ade der er$: four shared of six and five.
    assert index.coverage("lader", rows) == pytest.approx([8 / 11, 0, 0])
    assert not index.coverage("zzz", rows).any()
    assert not index.coverage("100", rows).any()
    assert not index.coverage("", rows).any()
    half = index.coverage("lamp zzz", rows)
    assert 0 < half[1] < 0.5 and not half[[0, 2]].any()

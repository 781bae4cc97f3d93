"""What a snapshot teaches."""

from __future__ import annotations

import numpy as np

from index.attribute_types import AttributeType
from index.attributes import AttributeDictionary
from index.snapshot import Snapshot
from server.keywords.vocabulary import Runs, Vocabulary, without_fragments


def test_runs_gather_in_order() -> None:
    runs = Runs.of_pairs(np.array([2, 0, 2, 2]), np.array([5, 1, 3, 5]), 4)
    assert runs.of(2).tolist() == [3, 5]
    position, values = runs.gather(np.array([2, 1, 0, 2]))
    assert position.tolist() == [0, 0, 2, 3, 3]
    assert values.tolist() == [3, 5, 1, 3, 5]


def test_concepts_count_the_items_that_have_them(shop: Snapshot, vocabulary: Vocabulary) -> None:
    number = vocabulary.number(AttributeType.COLOR, "navy")
    assert number is not None
    with_navy = shop.items.rows_with("color", "navy")
    assert vocabulary.frequency[number] == len(with_navy) > 0
    having = [row for row in range(len(shop.items)) if number in vocabulary.items.of(row)]
    assert having == with_navy.tolist()
    weight = 1 + np.log1p(shop.items.popularity[with_navy])
    assert np.isclose(vocabulary.popularity[number], weight.sum())


def test_paths_are_the_items_own(shop: Snapshot, vocabulary: Vocabulary) -> None:
    for row in (0, 57, len(shop.items) - 1):
        path = vocabulary.paths[vocabulary.path_of[row]]
        assert path == tuple(shop.items.get(row)["category"])
    assert vocabulary.path_counts.sum() == len(shop.items)


def test_neighbours_are_side_by_side_in_titles(vocabulary: Vocabulary) -> None:
    assert vocabulary.neighbours("non", "slip")
    assert vocabulary.neighbours("running", "shoes")
    assert not vocabulary.neighbours("shoes", "running")
    assert not vocabulary.neighbours("unheard", "of")
    assert vocabulary.neighbours("不", "粘")


def test_fragments_across_words_are_dropped() -> None:
    dictionary = AttributeDictionary.of(
        {
            "Entity": {"单肩包": [], "肩包通勤": [], "蓝牙耳机": [], "耳机": [], "desk for": []},
            "Function": {"通勤": []},
            "Modifier": {"蓝牙": []},
        }
    )
    kept = without_fragments(dictionary).entries
    assert set(dictionary.entries) - set(kept) == {"肩包通勤"}


def test_memory_is_small(shop: Snapshot, vocabulary: Vocabulary) -> None:
    assert vocabulary.n_bytes < 200 * len(shop.items) + 64 * len(vocabulary.bigrams)


def test_a_large_catalogue_is_read_in_part(shop: Snapshot, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("server.keywords.vocabulary.MAX_ITEMS", 50)
    small = Vocabulary.build(shop)
    assert small.n_read == 50
    read = [row for row in range(len(shop.items)) if len(small.items.of(row))]
    assert len(read) == 50
    assert shop.items.popularity[read].min() >= np.sort(shop.items.popularity)[-50]

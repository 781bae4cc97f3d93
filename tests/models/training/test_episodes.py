"""Episodes of a simulated shop against its tables, read anew."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from index.dataset import Dataset
from index.snapshot import Snapshot
from models.prompt import PromptBuilder, PromptSettings
from models.query import QueryPrompts
from models.tokenizer import Tokenizer
from models.training.episodes import MAX_TARGETS, Episodes, episode_of
from models.training.rewards import CLICK_REWARD, ORDER_REWARD
from models.training.visits import Visit, read_visits


@pytest.fixture(scope="module")
def opened(shop: Path) -> tuple[Dataset, Snapshot, Episodes]:
    dataset, snapshot = Dataset.open(shop / "dataset"), Snapshot.open(shop / "snapshot")
    tokenizer = Tokenizer.train(["red lamp"], 300, layout=snapshot.layout)
    prompts = QueryPrompts(snapshot.codec, PromptBuilder(tokenizer, PromptSettings()), 2.0)
    return dataset, snapshot, Episodes.read(dataset, snapshot, prompts)


def test_one_episode_for_each_training_search_with_a_choice(
    opened: tuple[Dataset, Snapshot, Episodes],
):
    dataset, snapshot, episodes = opened
    visits = read_visits(dataset, "train")
    assert len(episodes) == len(visits) > 50
    leaf_of_row = snapshot.postings.leaf_of_row.astype(np.int64)
    chosen = np.arange(len(visits))
    targets = episodes.targets(chosen)
    for i, visit in enumerate(visits):
        wanted = {
            tuple(snapshot.trie.codes_of_leaves(leaf_of_row[[row]])[0]) for row in visit.clicked
        }
        found = {tuple(codes) for codes in targets.codes[i][targets.known[i]].tolist()}
        assert found == wanted


def test_counts_and_grades_are_those_of_the_training_tables(
    opened: tuple[Dataset, Snapshot, Episodes],
):
    dataset, snapshot, episodes = opened
    leaf_of_row = snapshot.postings.leaf_of_row.astype(np.int64)

    def leaf(item: str) -> int:
        return int(leaf_of_row[snapshot.items.rows_of([item])[0]])

    expected: dict[tuple[str, int], Counter[str]] = {}
    for event in dataset.events_of("train").to_pylist():
        if event["query"]:
            key = (event["query"], leaf(event["item_id"]))
            expected.setdefault(key, Counter())[event["kind"]] += 1
    assert episodes._counts.keys() == expected.keys()
    for key, kinds in expected.items():
        counts = episodes._counts[key]
        assert counts == (kinds["impression"], kinds["click"], kinds["order"])
    best: dict[tuple[str, int], int] = {}
    grades = [row["grade"] for row in dataset.judgments.to_pylist()]
    low, high = min(grades), max(grades)
    for judgment in dataset.judgments_of("train").to_pylist():
        key = (judgment["query"], leaf(judgment["item_id"]))
        best[key] = max(round(3 * (judgment["grade"] - low) / (high - low)), best.get(key, 0))
    assert episodes._relevance == best
    assert set(best.values()) <= {0, 1, 2, 3}
    assert max(best.values()) == 3


def test_orders_come_first_and_are_worth_more(opened: tuple[Dataset, Snapshot, Episodes]):
    dataset, _, episodes = opened
    visits = read_visits(dataset, "train")
    place = next(i for i, visit in enumerate(visits) if visit.ordered)
    episode = episodes._episodes[place]
    assert 0 < episode.orders <= len(episode.targets)
    worth = episodes.rewards(np.array([place]), np.array([episode.targets]))[0]
    assert float(worth[0]) > ORDER_REWARD
    if episode.orders < len(episode.targets):
        assert CLICK_REWARD < float(worth[-1]) < float(worth[0])


def test_targets_are_distinct_and_limited():
    visit = Visit("q", tuple((row, 0.5) for row in range(40)), ())
    episode = episode_of(visit, np.arange(40) // 2)
    assert episode.targets == tuple(range(MAX_TARGETS))
    assert episode.orders == 0
    both = Visit("q", ((0, 0.5), (3, 1.0), (1, 1.0)), ())
    assert episode_of(both, np.array([0, 0, 0, 5])).targets == (5, 0)
    assert episode_of(both, np.array([0, 0, 0, 5])).orders == 2

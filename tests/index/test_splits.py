"""Splits: respellings stay together, assignment is stable and has the asked shares."""

import random
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.errors import ConfigError
from index.splits import SPLIT_NAMES, cluster_queries, split_queries

QUERIES = st.lists(st.text("abstel 12", max_size=12), max_size=30)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("steel stakes", "Steele  stake"),
        ("blinds for patio doors", "patio door blinds"),
        ("deck over paint", "deckover paint"),
        ("undermount bathroom sink", "bathroom sink, under mount"),
        ("24 inch vanity", '24" vanities'),
        ("presure washer", "pressure washer"),
        ("portable air condtioners", "air conditioner portable"),
        ("washer pressure", "pressue washer"),
        ("men's gloves", "mens glove"),
    ],
)
def test_respellings_share_a_cluster(one: str, other: str) -> None:
    others = ["undermount kitchen sink", "under cabinet light", "pressure cooker", "garden hose"]
    clusters = cluster_queries([one, *others, other])
    assert [one, other] in clusters


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2x4 lumber", "2x6 lumber"),
        ("1/2 in pipe", "3/4 in pipe"),
        ("red paint", "white paint"),
        ("door", "door lock"),
        ("红色连衣裙", "黑色连衣裙"),
    ],
)
def test_different_wishes_stay_apart(one: str, other: str) -> None:
    assert cluster_queries([one, other]) == [[one], [other]]


@given(QUERIES, st.randoms())
def test_clusters_partition_and_ignore_order(queries: list[str], shuffler: random.Random) -> None:
    clusters = cluster_queries(queries)
    members = [query for cluster in clusters for query in cluster]
    assert sorted(members) == sorted(set(queries))
    shuffled = queries[:]
    shuffler.shuffle(shuffled)
    again = cluster_queries(shuffled)
    assert {frozenset(c) for c in again} == {frozenset(c) for c in clusters}
    assert split_queries(shuffled) == split_queries(queries)


@given(QUERIES, st.integers(0, 5))
def test_clusters_are_never_torn_apart(queries: list[str], seed: int) -> None:
    splits = split_queries(queries, seed=seed)
    assert set(splits) == set(queries)
    for cluster in cluster_queries(queries):
        assert len({splits[query] for query in cluster}) == 1


def numbered(count: int) -> list[str]:
    return [f"part {number} of shelf" for number in range(count)]


def test_shares_are_kept_and_the_seed_matters() -> None:
    splits = split_queries(numbered(4000))
    sizes = Counter(splits.values())
    assert [round(sizes[name] / 4000, 1) for name in SPLIT_NAMES] == [0.8, 0.1, 0.1]
    assert split_queries(numbered(4000), seed=1) != splits
    halves = Counter(split_queries(numbered(4000), shares=(0.5, 0.0, 0.5)).values())
    assert halves["validation"] == 0
    assert abs(halves["train"] - 2000) < 200


def test_other_queries_move_nobody() -> None:
    few = split_queries(numbered(200))
    many = split_queries(numbered(1000))
    assert {query: many[query] for query in few} == few


@pytest.mark.parametrize("shares", [(0.5, 0.5), (1.2, -0.1, -0.1), (0.5, 0.1, 0.1)])
def test_bad_shares_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="sum 1"):
        split_queries(["a"], shares=shares)


def test_ten_thousand_queries_take_seconds_only() -> None:
    source = random.Random(3)
    letters = "aeioubcdlmnprst"
    vocabulary = ["".join(source.choices(letters, k=source.randint(3, 9))) for _ in range(3000)]
    queries = [" ".join(source.choices(vocabulary, k=source.randint(1, 5))) for _ in range(10_000)]
    started = time.perf_counter()
    assert len(cluster_queries(queries)) > 5000
    assert time.perf_counter() - started < 60

import numpy as np
import pytest

from index.sid import SidLayout
from index.trie import Trie
from loadtest.bench import padded, trie
from loadtest.bench.catalogues import PUBLISHED_LAYOUT, random_keys


@pytest.mark.parametrize("law", ["uniform", "zipf"])
def test_catalogues_are_sorted_distinct_and_reproducible(law):
    keys = random_keys(PUBLISHED_LAYOUT, 5000, law)
    assert len(keys) == 5000
    assert (np.diff(keys.astype(np.int64)) > 0).all()
    assert np.array_equal(keys, random_keys(PUBLISHED_LAYOUT, 5000, law))
    assert len(Trie.build(PUBLISHED_LAYOUT, keys, assume_sorted=True).keys) == 5000


def test_zipf_catalogues_crowd_into_few_prefixes():
    layout = SidLayout((64, 64, 64))
    counts = {
        law: Trie.build(layout, random_keys(layout, 3000, law)).node_counts[1]
        for law in ("uniform", "zipf")
    }
    assert counts["zipf"] < 0.7 * counts["uniform"]


@pytest.mark.slow
def test_every_table_runs_on_tiny_catalogues():
    sizes = (60,)
    built = trie.build_rows(True, sizes)
    assert [row["keys_restored"] for row in built] == [True]
    assert set(built[0]["ratio"]) == {padded.NAME, trie.DICT_NAME}
    assert all(row["found_the_sid"] for row in trie.open_rows(True, sizes))
    assert [row["setting"]["kept"] for row in trie.filter_rows(True, sizes)][:1] == ["50.00%"]
    size, peak = trie.memory_rows(True, sizes)
    assert size["ours"] <= peak["ours"]


def test_large_catalogues_have_no_dict(monkeypatch):
    monkeypatch.setattr(trie, "MOST_DICT_SIDS", 10)
    (row,) = trie.build_rows(True, (60,))
    assert row["peers"][trie.DICT_NAME].startswith("only measured up to")


def test_dict_trie_holds_every_sid():
    codes = np.array([[1, 2, 3], [1, 2, 4], [5, 0, 0]])
    assert trie.dict_trie(codes) == {1: {2: {3: {}, 4: {}}}, 5: {0: {0: {}}}}

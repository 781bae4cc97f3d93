import numpy as np
import pytest

from index.snapshot import Snapshot
from loadtest.bench import changes, filters
from loadtest.bench.made_up_shop import made_up_item, write_shop
from loadtest.bench.random_checkpoint import LAYOUT

COUNT = 2_000


def test_a_made_up_shop_is_a_snapshot(tmp_path_factory: pytest.TempPathFactory) -> None:
    shop = write_shop(tmp_path_factory.mktemp("shop") / "shop", 300, LAYOUT)
    assert isinstance(shop, Snapshot)
    assert len(shop.items) == shop.trie.n_leaves == 300
    assert made_up_item(4, np.random.default_rng(0))["item_id"] == "new4"
    found, _ = shop.lexical.search(shop.items.get(5)["title"], 1)
    assert shop.items.get(int(found[0]))["title"] == shop.items.get(5)["title"]


def test_filters_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "QUICK_ITEMS", COUNT)
    rows = filters.rows(quick=True)
    searches = [row for row in rows if row["what"] == "filters, search"]
    assert [row["answers"] for row in searches] == [{"trie of the kept SIDs": "equal"}] * 5
    assert [row["illegal"] for row in searches] == [0] * 5
    assert len(rows) == 3 * len(filters.SHARES)


def test_changes_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "QUICK_ITEMS", COUNT)
    monkeypatch.setattr(changes, "CALL", 20)
    monkeypatch.setattr(changes, "STREAM_PER_S", 500)
    monkeypatch.setattr(changes, "SLICE_S", 0.1)
    rows = changes.rows(quick=True)
    assert {row["unit"] for row in rows} == {"ms", "changes per s"}
    assert rows[-1]["acknowledged_per_s"] > 0
    assert rows[-1]["acknowledged_per_s_beside"] > 0

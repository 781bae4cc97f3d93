"""Which words of a query name single items, and that those items are found."""

import pytest

from index.identifiers import MOST_ITEMS, named_rows, possible_names
from index.live.changes import Delete, Upsert
from index.live.view import CatalogueView
from index.snapshot import Snapshot
from tests.index.live.conftest import changed, item, write_snapshot

TITLES = {
    0: "Oak desk MX-4410B",
    1: "Steel lamp zq20030x0, grey",
    2: "Filter 36x80",
    3: "Heater 120V 25,000 BTU",
    4: "Chair 884213907",
}


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    items = [
        item(number, title=TITLES.get(number, f"lamp number{number % 2}")) for number in range(30)
    ]
    return write_snapshot(tmp_path_factory.mktemp("named") / "snapshot", items)


@pytest.fixture
def view(snapshot: Snapshot) -> CatalogueView:
    return CatalogueView.of(snapshot)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Desk MX-4410B, oak", {"mx4410b": "mx-4410b,"}),
        ("cr2032 battery", {"cr2032": "cr2032"}),
        ("UPC 884213907", {"884213907": "884213907"}),
        ("door 36x80 2x4x8 12.5x14", {}),
        ("120v 3-phase 1/2hp 100-watt 50w", {}),
        ("10,000 btu, 12000 btu, 2024", {}),
        ("m6 b2", {}),
        ("<b>[x1]</b>", {"bx1b": "<b>[x1]</b>"}),
        ("  ", {}),
        ("МК-4410 型号A1234", {"мк4410": "мк-4410", "型号a1234": "型号a1234"}),
    ],
)
def test_what_looks_like_a_name(text: str, names: dict[str, str]):
    assert possible_names(text) == names


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("mx-4410b", ["i0"]),
        ("MX4410B desk", ["i0"]),
        ("zq20030x0", ["i1"]),
        ("Zq20030x0 or mx-4410b?", ["i0", "i1"]),
        ("884213907", ["i4"]),
        ("i7", ["i7"]),
        (" i7 ", ["i7"]),
        ("number1", []),  # More items than a name has.
        ("36x80", []),
        ("mx-4410", []),
        ("red desk", []),
        ("", []),
    ],
)
def test_named_items(view: CatalogueView, query: str, found: list[str]):
    assert sum("number1" in title for title in _titles(view)) > MOST_ITEMS
    assert view.items.item_ids(named_rows(view, query)) == found


def test_items_added_changed_and_removed(view: CatalogueView):
    later = changed(
        view, [Upsert(item(99, title="New Lamp zq20030x0")), Upsert(item(98, title="Xk77a"))]
    )
    assert later.items.item_ids(named_rows(later, "zq20030x0")) == ["i1", "i99"]
    assert later.items.item_ids(named_rows(later, "xk77a")) == ["i98"]
    assert later.items.item_ids(named_rows(later, "xk77a lamp zq")) == ["i98"]
    last = changed(later, [Delete("i1"), Upsert(item(98, title="Xk77b"))])
    assert last.items.item_ids(named_rows(last, "zq20030x0")) == ["i99"]
    assert not len(named_rows(last, "xk77a"))
    assert not len(named_rows(last, "i1"))
    # The view before knows nothing of it.
    assert later.items.item_ids(named_rows(later, "zq20030x0")) == ["i1", "i99"]
    assert view.items.item_ids(named_rows(view, "zq20030x0")) == ["i1"]


def test_tokens_that_all_must_be_there(view: CatalogueView):
    lexical = view.lexical
    assert lexical.rows_with_all(["desk", "oak"]).tolist() == [0]
    assert lexical.rows_with_all(["oak", "oak"]).tolist() == [0]
    assert lexical.rows_with_all([]).tolist() == []
    assert lexical.rows_with_all(["oak", "nowhere"]).tolist() == []
    later = changed(view, [Upsert(item(99, title="oak oak desk strange"))])
    assert later.lexical.rows_with_all(["desk", "oak"]).tolist() == [0, 30]
    assert later.lexical.rows_with_all(["strange"]).tolist() == [30]
    assert view.lexical.rows_with_all(["strange"]).tolist() == []


def _titles(view: CatalogueView) -> list[str]:
    return [view.items.get(row)["title"] for row in range(len(view.items))]

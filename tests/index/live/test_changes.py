from typing import Any

import numpy as np
import pytest

from index.errors import ArtifactError, DataError
from index.live.changes import (
    AddedItem,
    Delete,
    Record,
    Update,
    Upsert,
    checked_item,
    checked_number,
)
from index.live.plan import plan
from index.live.view import CatalogueView
from index.snapshot import Snapshot
from tests.index.live.conftest import changed, item


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"item_id": ""}, "item_id"),
        ({"item_id": 7}, "item_id"),
        ({"title": " "}, "title"),
        ({"title": None}, "title"),
        ({"brand": ["a"]}, "brand"),
        ({"color": "red"}, "color"),
        ({"color": ["red", 3]}, "color"),
        ({"attributes": ["a"]}, "attributes"),
        ({"attributes": {"a": "b"}}, "attributes"),
        ({"price": "3"}, "price"),
        ({"price": float("nan")}, "price"),
        ({"price": -1}, "price"),
        ({"stock": 1.5}, "stock"),
        ({"stock": True}, "stock"),
        ({"stock": 1 << 63}, "stock"),
        ({"colour": ["red"]}, "colour"),
    ],
)
def test_wrong_items_are_refused_by_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(DataError, match=repr(field)):
        checked_item({**item(1), **change})


def test_an_item_in_its_plain_form() -> None:
    given = {"item_id": "a", "title": "A", "brand": "", "color": [], "attributes": {"x": []}}
    found = checked_item(given | {"stock": 3.0, "price": 2})
    assert found["brand"] is found["color"] is found["attributes"] is None
    assert (found["stock"], found["price"]) == (3, 2.0)
    assert isinstance(found["price"], float)
    assert checked_item({**item(1), "attributes": {"x": ["y"]}})["attributes"] == {"x": ["y"]}
    assert checked_number("popularity", None) is None


def test_a_record_and_its_bytes() -> None:
    added = AddedItem(item(1), b'{"item_id":"i1","title":"x"}')
    changes = [Update("i2", {"price": None, "stock": 3}), Delete("i3"), added]
    codes = np.array([[1, 2, 65535]], dtype=np.int32)
    embeddings = np.array([[0.5, -0.25]], dtype=np.float16)
    payload = Record(changes, codes, embeddings).to_bytes()
    read = Record.from_bytes(payload, 3, 2)
    assert list(read.changes[:2]) == changes[:2]
    assert isinstance(read.changes[2], AddedItem)
    assert read.changes[2].payload == added.payload
    np.testing.assert_array_equal(read.codes, codes)
    np.testing.assert_array_equal(read.embeddings, embeddings)
    for damaged in (payload[:-1], payload + b"x", b"", b"\xff" * 40, payload[:6]):
        with pytest.raises(ArtifactError):
            Record.from_bytes(damaged, 3, 2)
    with pytest.raises(ArtifactError, match="another snapshot"):
        Record.from_bytes(payload, 3, 4)


def test_changes_of_a_batch_follow_each_other(base: Snapshot) -> None:
    view = CatalogueView.of(base)
    made = plan(
        view.items,
        [
            Delete("i1"),
            Update("i1", {"price": 1}),
            Upsert(item(1, price=5)),
            Update("i1", {"price": 7}),
            Upsert(item(90)),
            Delete("i90"),
            Delete("i90"),
            Update("i2", {"price": 1}),
            Update("i2", {"price": 2, "stock": None}),
            Update("i3", {}),
            Update("i3", {"title": 4}),
            Upsert({"item_id": "i3", "title": "\ud800"}),
            Upsert({"title": "no id"}),
        ],
    )
    assert [(bad.index, bad.item_id) for bad in made.rejected] == [
        (1, "i1"),
        (6, "i90"),
        (9, "i3"),
        (10, "i3"),
        (11, "i3"),
        (12, None),
    ]
    assert [one.item_id for one in made.added] == ["i1", "i90"]
    assert made.dead.tolist() == [1, 31]
    assert dict(zip(*map(np.ndarray.tolist, made.updates["price"]), strict=True)) == {30: 7, 2: 2}
    assert dict(zip(*map(np.ndarray.tolist, made.updates["stock"]), strict=True)) == {2: -1}
    assert len(made.accepted) == 7


def test_what_is_so_already_is_done_by_doing_nothing(base: Snapshot) -> None:
    feed = [Upsert(item(3)), Update("i4", {"price": 5.0}), Upsert(item(99))]
    view = CatalogueView.of(base)
    made = plan(view.items, feed)
    assert [type(one) for one in made.accepted] == [AddedItem]
    assert made.rejected == []
    view = changed(view, feed)
    assert view.sequence == 1
    again = plan(view.items, [*feed, Delete("i50"), Update("i4", {"stock": None})])
    assert again.accepted == [Update("i4", {"stock": None})]
    assert [(bad.index, bad.item_id) for bad in again.rejected] == [(3, "i50")]
    # What a batch writes and takes back counts, and a new item is not what it will be.
    there_and_back = [
        *(Update("i4", {"price": 6.0}), Update("i4", {"price": 5.0}), Update("i4", {"price": 5.0})),
        *(Upsert(item(98)), Update("i98", {"stock": 8}), Upsert(item(98))),
        *(Delete("i3"), Upsert(item(3))),
    ]
    assert len(plan(view.items, there_and_back).accepted) == 7
    view = changed(view, there_and_back)
    found = view.items.get_many(view.items.rows_of(["i4", "i98", "i3"]))
    assert [one["price"] for one in found] == [5.0, 99.0, 4.0]
    assert found[1]["stock"] == item(98)["stock"]

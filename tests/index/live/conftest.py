"""A tiny snapshot, sequences of changes, and what they lead to, told by a dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import strategies as st

from index.attributes import AttributeDictionary
from index.codec import Codec
from index.dataset import ITEMS
from index.encoder import StaticEncoder
from index.fusion import fuse
from index.live.changes import Change, Delete, Record, Update, Upsert
from index.live.plan import plan
from index.live.view import CatalogueView
from index.sid import SidLayout
from index.snapshot import Snapshot, texts_of

LAYOUT = SidLayout((8, 6, 5))
DIMENSION = 16
COLORS = ("red", "black", "white", "Grün")
THINGS = ("desk", "lamp", "shelf", "chair", "wok")
NUMBERS = ("price", "stock", "popularity")


def item(number: int, **values: Any) -> dict[str, Any]:
    """Item i<number>, all fields."""
    color, thing = COLORS[number % 3], THINGS[number % 4]
    given: dict[str, Any] = {
        "item_id": f"i{number}",
        "title": f"{color} {thing} {number % 5}",
        "brand": "Acme" if number % 2 else None,
        "category": ["home", thing],
        "color": [color],
        "price": float(number + 1),
        "stock": number % 3,
        "popularity": float(number % 5),
    }
    return dict.fromkeys(ITEMS.names) | given | values


def write_snapshot(
    path: Path, items: Sequence[dict[str, Any]], like: Snapshot | None = None
) -> Snapshot:
    """A snapshot of items; with the encoder and codec of `like`, if given."""
    random = np.random.default_rng(0)
    table = pa.Table.from_pylist(list(items), schema=ITEMS)
    if like is None:
        vectors = random.standard_normal((512, DIMENSION)).astype(np.float32)
        encoder = StaticEncoder.from_table(vectors, np.arange(512, dtype=np.int32))
        attributes = AttributeDictionary.of({"Color": {"red": [], "black": []}})
        embeddings = encoder.encode(texts_of(table))
        centroids = tuple(
            embeddings[random.choice(len(items), size, replace=False)] / (level + 1) ** 2
            for level, size in enumerate(LAYOUT.level_sizes)
        )
        codec = Codec(LAYOUT, centroids, ("rq",) * LAYOUT.levels)
    else:
        encoder, attributes, codec = like.encoder, like.attributes, like.codec
    from index.attributes import AttributeMatcher

    embeddings = fuse(encoder, AttributeMatcher(attributes), texts_of(table), 0.3)
    Snapshot.write(
        path,
        items=table,
        encoder=encoder,
        attributes=attributes,
        codec=codec,
        codes=codec.encode(embeddings),
        embeddings=embeddings,
        report={},
        keyword_fusion=0.3,
    )
    return Snapshot.open(path)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Items i0 … i29, a few of them with one SID."""
    path = tmp_path_factory.mktemp("live") / "snapshot"
    return write_snapshot(path, [item(number) for number in range(30)])


class Ledger:
    """The items that should be there: in the order of rows."""

    def __init__(self, items: Sequence[dict[str, Any]]) -> None:
        self.items = {one["item_id"]: dict(one) for one in items}

    def make(self, change: Change) -> bool:
        """Make a change; False when it cannot be done."""
        if isinstance(change, Upsert):
            new = dict.fromkeys(ITEMS.names) | dict(change.item)
            old = self.items.get(new["item_id"])
            if old is not None and all(old[n] == new[n] for n in ITEMS.names if n not in NUMBERS):
                old.update(new)
                return True
            self.items.pop(new["item_id"], None)
            self.items[new["item_id"]] = new
            return True
        if change.item_id not in self.items:
            return False
        if isinstance(change, Delete):
            del self.items[change.item_id]
        else:
            self.items[change.item_id].update(change.values)
        return True


def changed(view: CatalogueView, changes: Sequence[Change]) -> CatalogueView:
    """The view after a batch, its record written and read on the way."""
    made = plan(view.items, changes)
    embeddings = view.embed_items([one.item for one in made.added])
    codes = view.codec.encode(embeddings)
    record = Record(made.accepted, codes, embeddings.astype(np.float16))
    read = Record.from_bytes(record.to_bytes(), view.layout.levels, view.dense.dimension)
    assert orjson.dumps([one.item_id for one in read.changes])
    again = plan(view.items, read.changes)
    assert not again.rejected
    return view.after(again, read)


numbers = st.integers(0, 40)
amounts = st.one_of(st.none(), st.integers(0, 3))
updates = st.builds(
    lambda number, values: Update(f"i{number}", values),
    numbers,
    st.dictionaries(st.sampled_from(NUMBERS), amounts, min_size=1),
)
deletes = st.builds(lambda number: Delete(f"i{number}"), numbers)
upserts = st.builds(
    lambda number, like, price, color: Upsert(
        item(like, item_id=f"i{number}", price=price, color=color)
    ),
    numbers,
    numbers,
    amounts,
    st.sampled_from([None, ["red"], ["Grün", "black"]]),
)
batches = st.lists(
    st.lists(st.one_of(updates, deletes, upserts), min_size=1, max_size=12), max_size=5
)

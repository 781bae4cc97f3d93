"""Merging: a view → a snapshot of its own, by array operations, nothing encoded again.

    python -m index.live.merge BASE LOG THROUGH OUT

opens the snapshot BASE, reads the change log LOG through change THROUGH and writes the snapshot
OUT. `LiveCatalogue` runs it as a process of low priority, so that searches keep theirs.

The result equals a build of the resulting items with the same encoder and codec: rows that were not
deleted in their order, then the added ones; statistics (idf, mean length, popularity scores) are
those of the new catalogue. Its manifest says in `live` which snapshot the changes started from
(`origin`), which change was the last (`sequence`), and how many rows, the first, are that
snapshot's own (`own_items`).
"""

# pyarrow has no types of its own: what it returns is unknown to the checker.
# pyright: reportUnknownParameterType=false
from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from index import artifact
from index.arrays import save_arrays
from index.attributes import AttributeDictionary, AttributeMatcher
from index.codec import Codec
from index.dataset import ITEMS
from index.items import UNKNOWN_STOCK, ItemTable
from index.lexical import LexicalIndex
from index.live.items import LiveItems
from index.live.lexical import LiveLexical
from index.live.replay import replay
from index.live.view import CatalogueView
from index.postings import Postings
from index.snapshot import KIND, Snapshot, TextParts
from index.trie import Trie

PRIORITY = 19
_COPIED = ("encoder", "attributes", "codec", "report.json")


def write_merged(view: CatalogueView, path: Path) -> None:
    """Write a view as a snapshot. Raises ArtifactError when `path` exists."""
    alive = view.items.alive
    rows = np.arange(view.n_rows) if alive is None else np.flatnonzero(alive.whole())
    with artifact.create(Path(path), KIND) as draft:
        for name in _COPIED:
            source = view.base.path / name
            copy = shutil.copytree if source.is_dir() else shutil.copyfile
            copy(source, draft.path / name)
        table = ItemTable.write(draft.path / "items", _table(view.items, rows))
        keys, leaf_of_row = np.unique(_keys(view)[rows], return_inverse=True)
        trie = Trie.build(view.layout, keys, assume_sorted=True)
        trie.save(draft.path / "trie")
        postings = Postings.build(leaf_of_row, trie.n_leaves, table.popularity)
        postings.save(draft.path / "postings")
        added = view.dense.added.astype(np.float16)
        embeddings = np.concatenate([view.base.dense.embeddings, added])[rows]
        save_arrays(draft.path / "dense", {"embeddings": embeddings})
        _lexical(view.lexical, rows).save(draft.path / "lexical")
        counts = {
            "items": len(table),
            "sids": trie.n_leaves,
            "nodes": list(trie.node_counts),
            "dimension": view.dense.dimension,
        }
        draft.manifest.update(view.manifest)
        draft.manifest["counts"] = counts
        draft.manifest["live"] = {
            "origin": view.origin_version,
            "sequence": view.sequence,
            "own_items": int(np.searchsorted(rows, own_items(view.base))),
        }


def own_items(snapshot: Snapshot) -> int:
    """How many of a snapshot's rows are of the build that its changes started from: the first. All
    of them where it does not say."""
    return int(snapshot.manifest.get("live", {}).get("own_items", len(snapshot.items)))


def open_for_merge(path: Path) -> CatalogueView:
    """A snapshot without what turns texts into vectors; it cannot embed."""
    attributes = AttributeDictionary({})
    codec = Codec.open(path / "codec")
    stand_in = _NoEncoder(codec.dimension)
    text = TextParts(stand_in, attributes, AttributeMatcher(attributes), codec)
    return CatalogueView.of(Snapshot.open(path, verify=False, text=text))


def main(arguments: Sequence[str]) -> None:
    base, log, through, path = arguments
    os.nice(PRIORITY)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    view = replay(open_for_merge(Path(base)), Path(log), through=int(through))
    write_merged(view, Path(path))


def _end_with_parent() -> None:
    """Standard input ends when the process that wants the merge does."""
    while os.read(0, 1):
        pass
    os._exit(1)


@dataclass(frozen=True, slots=True)
class _NoEncoder:
    dimension: int
    name: str = "none"

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        raise AssertionError("merging encodes nothing")

    def save(self, directory: Path) -> None:
        raise AssertionError("a merge copies the encoder")


def _table(items: LiveItems, rows: NDArray[np.int64]) -> pa.Table:
    """The items of some rows, in the schema of a dataset."""
    n_base = len(items.base)
    base = items.base.table.take(pa.array(rows[rows < n_base]))
    payloads = items.added.payloads
    added = [orjson.loads(payloads[row]) for row in (rows[rows >= n_base] - n_base).tolist()]
    whole = pa.concat_tables([_in_schema(base), pa.Table.from_pylist(added, schema=ITEMS)])
    price, stock, popularity = items.price[rows], items.stock[rows], items.popularity[rows]
    for name, values, unknown in (
        ("price", price, np.isnan(price)),
        ("stock", stock, stock == UNKNOWN_STOCK),
        ("popularity", popularity, np.isnan(popularity)),
    ):
        column = pa.array(values, ITEMS.field(name).type, mask=unknown)
        whole = whole.set_column(whole.schema.get_field_index(name), ITEMS.field(name), column)
    return whole


def _in_schema(table: pa.Table) -> pa.Table:
    """The table with all columns of a dataset's items; absent ones are null."""
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in ITEMS
    ]
    return pa.table(columns, schema=ITEMS)


def _keys(view: CatalogueView) -> NDArray[np.uint64]:
    """The packed SID of every row."""
    postings, trie = view.postings, view.live_trie
    base = trie.base.keys[postings.base.leaf_of_row]
    return np.concatenate([base, trie.keys[postings.leaves_of(postings.sids)]])


def _lexical(lexical: LiveLexical, rows: NDArray[np.int64]) -> LexicalIndex:
    """The index of some rows, with its own statistics."""
    base, texts = lexical.base, lexical.texts
    assert base.lengths is not None
    new_row = np.full(lexical.n_items, -1, dtype=np.int64)
    new_row[rows] = np.arange(len(rows))
    tokens, items, _ = texts.addends()
    token = np.concatenate([np.repeat(np.arange(len(base.idf)), np.diff(base.start)), tokens])
    row = new_row[np.concatenate([base.rows.astype(np.int64), items + base.n_items])]
    frequency = np.concatenate([base.frequencies(), texts.frequencies.values])
    kept = row >= 0
    token, row, frequency = token[kept], row[kept], frequency[kept]
    order = np.lexsort((row, token))
    used, token = np.unique(token[order], return_inverse=True)
    names = [*base.vocabulary, *texts.vocabulary]
    vocabulary = {names[number]: place for place, number in enumerate(used.tolist())}
    lengths = np.concatenate([base.lengths.astype(np.int64), texts.lengths.values])[rows]
    return LexicalIndex.from_frequencies(
        vocabulary, token, row[order], frequency[order], lengths, k1=base.k1, b=base.b
    )


if __name__ == "__main__":
    main(sys.argv[1:])

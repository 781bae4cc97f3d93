"""Working out what a batch of changes does to a view, so that it can be laid down anywhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from index.items import FILTER_FIELDS
from index.lexical import length_norm
from index.live.changes import AddedItem, Record
from index.live.delta import Delta
from index.live.items import LiveItems, number_or_unknown
from index.live.lexical import LiveLexical
from index.live.plan import Plan
from index.live.trie import Additions
from index.text import item_text, normalise, words

if TYPE_CHECKING:
    from index.live.view import CatalogueView

_NOTHING = np.empty(0, dtype=np.int64)


def prepared(view: CatalogueView, plan: Plan, record: Record) -> Delta:
    """What a plan made for a view does to it; `record` is that of the plan's changes.

    The view must be the newest of its base: what is numbered goes on from what it has.
    """
    items, n_rows = view.items, len(view.items)
    price, stock, popularity = (
        _ascending(plan, name, kind)
        for name, kind in (("price", np.float64), ("stock", np.int64), ("popularity", np.float64))
    )
    new_popularity = _numbers("popularity", plan.added)
    additions, sids = view.live_trie.additions(view.layout.pack(record.codes))
    order = np.argsort(sids, kind="stable")
    dead = np.sort(plan.dead)
    added_rows = np.arange(n_rows, n_rows + len(plan.added))
    fields = _field_values(items, plan.added)
    texts = _addends(view.lexical, plan.added)
    empty = _empty(view, dead, sids)
    return Delta(
        batch=view.batch + 1,
        sequence=view.sequence + len(record.changes),
        item_ids=[one.item_id for one in plan.added],
        payloads=[one.payload for one in plan.added],
        values=fields.new,
        words=texts.new,
        price_rows=price.rows,
        price_values=price.values,
        price_added=_numbers("price", plan.added),
        stock_rows=stock.rows,
        stock_values=stock.values,
        stock_added=_numbers("stock", plan.added),
        popularity_rows=popularity.rows,
        popularity_values=popularity.values,
        popularity_added=new_popularity,
        score_values=items.scale.scores(popularity.values),
        score_added=items.scale.scores(new_popularity),
        dead=dead,
        touched=np.concatenate([dead[dead < n_rows], added_rows]),
        previous=_previous(items, plan.added),
        field_counts=fields.counts,
        field_rows=fields.rows,
        field_numbers=fields.numbers,
        tokens=texts.tokens,
        token_items=texts.items,
        impacts=texts.impacts,
        frequencies=texts.frequencies,
        lengths=texts.lengths,
        vectors=record.embeddings.astype(np.float32).ravel(),
        sids=sids,
        sid_order=order,
        sid_places=np.searchsorted(view.postings.sorted_sids, sids[order], side="right"),
        keys=additions.keys,
        depths=additions.depth,
        nodes=additions.node,
        places=additions.places,
        emptied=empty.new,
        emptied_places=empty.places,
        filled=empty.filled,
    )


def additions_of(delta: Delta) -> Additions:
    """What a delta adds to the trie."""
    return Additions(delta.keys, delta.depths, delta.nodes, delta.places)


class _Written(NamedTuple):
    rows: NDArray[np.int64]
    values: NDArray[Any]


def _ascending(plan: Plan, name: str, kind: type[np.generic]) -> _Written:
    if name not in plan.updates:
        return _Written(_NOTHING, np.empty(0, dtype=kind))
    rows, values = plan.updates[name]
    order = np.argsort(rows)
    return _Written(rows[order], values[order])


def _numbers(name: str, added: Sequence[AddedItem]) -> NDArray[Any]:
    kind = np.int64 if name == "stock" else np.float64
    return np.array([number_or_unknown(name, one.item[name]) for one in added], dtype=kind)


def _previous(items: LiveItems, added: Sequence[AddedItem]) -> NDArray[np.int64]:
    """The added item of the same id before each, -1 for none."""
    own: dict[str, int] = {}
    previous: list[int] = []
    for place, one in enumerate(added, items.n_added):
        known = own.get(one.item_id)
        previous.append(items.added.latest.get(one.item_id, -1) if known is None else known)
        own[one.item_id] = place
    return np.array(previous, dtype=np.int64)


class _Fields(NamedTuple):
    new: list[list[str]]
    counts: NDArray[np.int64]
    rows: NDArray[np.int64]
    numbers: NDArray[np.int64]


def _field_values(items: LiveItems, added: Sequence[AddedItem]) -> _Fields:
    """The values of added items' filter fields, as a delta has them."""
    new: list[list[str]] = []
    counts: list[int] = []
    rows: list[int] = []
    numbers: list[int] = []
    for name in FILTER_FIELDS:
        known, own = items.added.numbers[name], dict[str, int]()
        before = len(rows)
        for place, one in enumerate(added, items.n_added):
            for value in _normal_values(one.item.get(name)):
                number = known.get(value)
                if number is None:
                    number = own.setdefault(value, len(known) + len(own))
                rows.append(place)
                numbers.append(number)
        new.append(list(own))
        counts.append(len(rows) - before)
    return _Fields(new, *(np.array(part, dtype=np.int64) for part in (counts, rows, numbers)))


def _normal_values(value: Any) -> set[str]:
    """The distinct values in normal form of a text or a list of texts."""
    if not value:
        return set()
    parts = [value] if isinstance(value, str) else cast(list[str], value)
    return {normal for part in parts if (normal := normalise(part))}


class _Addends(NamedTuple):
    new: list[str]
    tokens: NDArray[np.int64]
    items: NDArray[np.int64]
    impacts: NDArray[np.float32]
    frequencies: NDArray[np.int64]
    lengths: NDArray[np.int64]


def _addends(lexical: LiveLexical, added: Sequence[AddedItem]) -> _Addends:
    """The addends of added items' texts, as `AddedTexts` keeps them."""
    texts, base = lexical.texts, lexical.base
    known, later, own = base.vocabulary, texts.vocabulary, dict[str, int]()
    first_new = len(base.idf) + len(later)
    tokens: list[int] = []
    items: list[int] = []
    frequencies: list[int] = []
    lengths: list[int] = []
    for item, one in enumerate(added, lexical.n_added):
        found = words(item_text(one.item))
        lengths.append(len(found))
        for token, frequency in Counter(found).items():
            number = known.get(token)
            if number is None:
                number = later.get(token)
            if number is None:
                number = own.setdefault(token, first_new + len(own))
            tokens.append(number)
            items.append(item)
            frequencies.append(frequency)
    number, item = np.array(tokens, dtype=np.int64), np.array(items, dtype=np.int64)
    frequency, length = np.array(frequencies, dtype=np.int64), np.array(lengths, dtype=np.int64)
    norm = length_norm(length, texts.mean_length, base.k1, base.b)[item - lexical.n_added]
    idf = np.full(len(number), texts.unknown_idf)
    inside = number < len(base.idf)
    idf[inside] = base.idf[number[inside]]
    impacts = (idf * frequency / (frequency + norm)).astype(np.float32)
    return _Addends(list(own), number, item, impacts, frequency, length)


class _Empty(NamedTuple):
    new: NDArray[np.int64]
    places: NDArray[np.int64]
    filled: NDArray[np.int64]


def _empty(view: CatalogueView, dead: NDArray[np.int64], added_sids: NDArray[np.int64]) -> _Empty:
    """How the SIDs without an item change when rows `dead` go and items of `added_sids` come."""
    before = view.empty_leaves
    if not len(dead) and not (len(before) and len(added_sids)):
        return _Empty(_NOTHING, _NOTHING, _NOTHING)
    n_rows, postings = len(view.items), view.postings
    old = dead[dead < n_rows]
    touched = np.unique(np.concatenate([postings.sid_of_row(old), added_sids]))
    known = touched < postings.base.n_leaves + len(view.live_trie.ids)
    rows, place = postings.rows_of(postings.leaves_of(touched[known]))
    has_items = np.zeros(len(touched), dtype=np.bool_)
    has_items[np.flatnonzero(known)[place[~np.isin(rows, old)]]] = True
    staying = np.ones(len(added_sids), dtype=np.bool_)
    staying[dead[dead >= n_rows] - n_rows] = False
    has_items[np.searchsorted(touched, added_sids[staying])] = True
    place = np.searchsorted(before, touched)
    listed = np.zeros(len(touched), dtype=np.bool_)
    inside = place < len(before)
    listed[inside] = before[place[inside]] == touched[inside]
    new = ~has_items & ~listed
    return _Empty(touched[new], place[new], place[has_items & listed])

"""Any sequence of changes gives what a snapshot built from the resulting items would give."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from index.items import FILTER_FIELDS, ItemFilter
from index.lexical import LexicalIndex
from index.live.changes import Change, Delete, Update, Upsert
from index.live.merge import open_for_merge, write_merged
from index.live.trie import LiveTrie
from index.live.view import CatalogueView
from index.snapshot import Snapshot
from index.text import item_text, words
from tests.index.live.conftest import Ledger, batches, changed, item, write_snapshot

QUERIES = ["red desk", "black lamp 3", "Grün wok", "acme", "nothing of this"]
FILTERS = [
    ItemFilter(),
    ItemFilter(in_stock=True),
    ItemFilter(color=("red", "grün")),
    ItemFilter(brand=("acme",), price_max=3),
    ItemFilter(category=("home",), price_min=2, in_stock=True),
    ItemFilter(color=("nowhere",)),
]
few = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def replayed(
    base: Snapshot, given_batches: Sequence[Sequence[Change]]
) -> tuple[CatalogueView, Ledger]:
    view = CatalogueView.of(base)
    ledger = Ledger(view.items.get_many(np.arange(len(base.items))))
    for batch in given_batches:
        view = changed(view, batch)
        for change in batch:
            ledger.make(change)
    return view, ledger


def rows_in_order(view: CatalogueView, ledger: Ledger) -> np.ndarray:
    """The row of each of the ledger's items, all of which are there."""
    rows = view.items.rows_of(list(ledger.items))
    assert (rows >= 0).all()
    return rows


@few
@given(batches)
def test_items_numbers_and_filters(base: Snapshot, given_batches: list[list[Change]]) -> None:
    view, ledger = replayed(base, given_batches)
    items, rows = list(ledger.items.values()), rows_in_order(view, ledger)
    assert view.n_items == len(items)
    assert np.array_equal(rows, np.sort(rows))
    assert view.items.get_many(rows) == items
    assert view.items.item_ids(rows) == list(ledger.items)
    gone = [f"i{number}" for number in range(41) if f"i{number}" not in ledger.items]
    assert (view.items.rows_of([*gone, "never"]) == -1).all()
    scratch = {name: {v for one in items for v in _normal(one[name])} for name in FILTER_FIELDS}
    for name, values in scratch.items():
        assert values <= set(view.items.values(name))
    for filters in FILTERS:
        mask = view.items.mask(filters)
        assert mask.shape == (view.n_rows,)
        expected = [row for row, one in zip(rows, items, strict=True) if _holds(one, filters)]
        assert np.flatnonzero(mask).tolist() == expected


@few
@given(batches)
def test_sids_and_postings(base: Snapshot, given_batches: list[list[Change]]) -> None:
    view, ledger = replayed(base, given_batches)
    items, rows = list(ledger.items.values()), rows_in_order(view, ledger)
    codes = view.codec.encode(view.embed_items(items))
    leaves = view.postings.leaf_of_row[rows]
    np.testing.assert_array_equal(view.trie.codes_of_leaves(leaves), codes)
    np.testing.assert_array_equal(view.trie.find(view.layout.pack(codes)), leaves)
    all_leaves = np.arange(view.trie.n_leaves)
    found, place = view.postings.rows_of(all_leaves)
    assert sorted(found.tolist()) == rows.tolist()
    np.testing.assert_array_equal(view.postings.leaf_of_row[found], place)
    popularity = view.items.popularity_score[found]
    order = np.lexsort((found, -popularity, place))
    np.testing.assert_array_equal(order, np.arange(len(found)))
    empty = np.setdiff1d(all_leaves, leaves)
    np.testing.assert_array_equal(np.sort(view.postings.leaves_of(view.empty_leaves)), empty)
    mask = np.zeros(view.n_rows, dtype=np.bool_)
    mask[rows[::2]] = True
    assert np.flatnonzero(view.postings.leaf_mask(mask)).tolist() == sorted(
        set(leaves[::2].tolist())
    )


@few
@given(batches)
def test_dense_search(base: Snapshot, given_batches: list[list[Change]]) -> None:
    view, ledger = replayed(base, given_batches)
    items, rows = list(ledger.items.values()), rows_in_order(view, ledger)
    vectors = view.embed_items(items).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(view.dense.vectors(rows), vectors)
    queries = view.embed_queries(QUERIES)
    for mask in (None, view.items.mask(ItemFilter(in_stock=True))):
        allowed = np.ones(len(rows), dtype=np.bool_) if mask is None else mask[rows]
        for k in (0, 3, 1_000):
            found, scores = view.dense.search(queries, k, mask)
            assert found.shape == (len(queries), min(k, allowed.sum()))
            for query, own, own_scores in zip(queries, found, scores, strict=True):
                best = np.sort((vectors @ query)[allowed])[::-1][:k]
                np.testing.assert_allclose(own_scores, best, atol=1e-5)
                similar = view.dense.similarity(query, own)
                np.testing.assert_allclose(similar, own_scores, atol=1e-5)
                assert set(own.tolist()) <= set(rows[allowed].tolist())
                assert len(set(own.tolist())) == len(own)


@few
@given(batches)
def test_lexical_search(base: Snapshot, given_batches: list[list[Change]]) -> None:
    view, ledger = replayed(base, given_batches)
    items, rows = list(ledger.items.values()), rows_in_order(view, ledger)
    lexical = base.lexical
    assert lexical.lengths is not None
    for query in QUERIES:
        expected = np.array([_bm25(lexical, query, item_text(one)) for one in items])
        np.testing.assert_allclose(view.lexical.scores(query, rows), expected, rtol=1e-5)
        found, scores = view.lexical.search(query, 1_000)
        np.testing.assert_allclose(scores, np.sort(expected[expected > 0])[::-1], rtol=1e-5)
        assert set(found.tolist()) == set(rows[expected > 0].tolist())
        assert (view.lexical.upper_bound(query) > 0) >= bool(expected.any())
        mask = view.items.mask(ItemFilter(in_stock=True))
        kept, _ = view.lexical.search(query, 4, mask)
        assert mask[kept].all()
        assert len(kept) == min(4, int((mask[rows] & (expected > 0)).sum()))


@few
@given(batches)
def test_filters_of_later_views_equal_evaluation(
    base: Snapshot, given_batches: list[list[Change]]
) -> None:
    view = CatalogueView.of(base)
    views = [view]
    for batch in given_batches:
        view = changed(view, batch)
        views.append(view)
        for filters in FILTERS:
            _check_filter(view, filters)
    # Views that somebody still holds are answered for what they are.
    for old in views[::-1]:
        for filters in FILTERS[:3]:
            _check_filter(old, filters)


def _check_filter(view: CatalogueView, filters: ItemFilter) -> None:
    mask = view.items.mask(filters)
    expected = view.trie.filter(view.postings.leaf_mask(mask))
    allowed = view.filter(filters)
    if allowed is None:
        assert filters.is_empty
        assert all(bits.all() for bits in expected.bits)
        return
    np.testing.assert_array_equal(allowed.mask, mask)
    assert allowed.n_items == mask.sum()
    assert allowed.trie.n_leaves == expected.n_leaves
    for own, other in zip(allowed.trie.bits, expected.bits, strict=True):
        np.testing.assert_array_equal(own, other)


@few
@given(batches)
def test_candidate_sids(base: Snapshot, given_batches: list[list[Change]]) -> None:
    view, ledger = replayed(base, given_batches)
    codes = np.unique(view.codec.encode(view.embed_items(list(ledger.items.values()))), axis=0)
    embedding = view.embed_queries(["red desk"])[0]
    leaves, scores = view.candidate_sids(embedding, 1_000)
    assert sorted(map(tuple, view.trie.codes_of_leaves(leaves).tolist())) == sorted(
        map(tuple, codes.tolist())
    )
    oracle = view.codec.reconstruct(view.trie.codes_of_leaves(leaves)) @ embedding
    np.testing.assert_allclose(scores, oracle, atol=1e-5)
    assert (np.diff(scores) <= 0).all()


@settings(few, max_examples=8)
@given(batches)
def test_a_merge_equals_a_build_from_scratch(
    base: Snapshot, given_batches: list[list[Change]]
) -> None:
    view, ledger = replayed(base, given_batches)
    if not ledger.items:
        return
    with tempfile.TemporaryDirectory() as folder:
        write_merged(view, Path(folder) / "merged")
        scratch = write_snapshot(Path(folder) / "scratch", list(ledger.items.values()), like=base)
        merged = Snapshot.open(Path(folder) / "merged")
        own = int((view.items.rows_of(list(ledger.items)) < len(base.items)).sum())
        changes = {"origin": base.version, "sequence": view.sequence, "own_items": own}
        assert merged.manifest["live"] == changes
        assert merged.manifest["counts"] == scratch.manifest["counts"]
        assert merged.items.table.equals(scratch.items.table)
        for name in ("price", "stock", "popularity", "popularity_score"):
            np.testing.assert_array_equal(getattr(merged.items, name), getattr(scratch.items, name))
        np.testing.assert_array_equal(merged.trie.keys, scratch.trie.keys)
        for name in ("start", "rows", "leaf_of_row"):
            np.testing.assert_array_equal(
                getattr(merged.postings, name), getattr(scratch.postings, name)
            )
        np.testing.assert_array_equal(merged.dense.embeddings, scratch.dense.embeddings)
        for query in QUERIES:
            rows = np.arange(len(scratch.items))
            np.testing.assert_allclose(
                merged.lexical.scores(query, rows), scratch.lexical.scores(query, rows), rtol=1e-6
            )
            np.testing.assert_allclose(
                merged.lexical.coverage(query, rows),
                scratch.lexical.coverage(query, rows),
                rtol=1e-6,
            )
            assert merged.lexical.upper_bound(query) == scratch.lexical.upper_bound(query)
        assert set(merged.lexical.vocabulary) == set(scratch.lexical.vocabulary)
        for filters in FILTERS:
            np.testing.assert_array_equal(merged.items.mask(filters), scratch.items.mask(filters))
        # The merging process opens a base without what turns texts into vectors.
        bare = open_for_merge(Path(folder) / "merged")
        assert (bare.sequence, bare.version) == (view.sequence, view.version)


def test_a_view_never_changes(base: Snapshot) -> None:
    first = changed(
        CatalogueView.of(base), [Upsert(item(50, price=7)), Update("i3", {"price": 5.0})]
    )
    rows = np.arange(first.n_rows)
    before = first.items.get_many(rows), first.lexical.search("red desk", 99)[0].tolist()
    later = changed(first, [Update("i50", {"price": 1}), Update("i3", {"price": None})])
    later = changed(later, [Upsert(item(50, title="other")), Delete("i4"), Upsert(item(51))])
    assert first.items.get_many(rows) == before[0]
    assert first.lexical.search("red desk", 99)[0].tolist() == before[1]
    assert first.items.row_of("i50") == 30
    assert first.items.row_of("i4") == 4
    assert first.items.row_of("i51") is None
    assert later.items.row_of("i50") == 31
    assert later.items.row_of("i4") is None
    assert first.filter(ItemFilter()) is None
    assert (first.sequence, later.sequence) == (2, 7)
    assert first.version != later.version


def test_an_upsert_that_changes_numbers_only_keeps_its_row(base: Snapshot) -> None:
    view = changed(CatalogueView.of(base), [Upsert(item(5, price=99.0, stock=None))])
    assert view.items.row_of("i5") == 5
    assert view.n_rows == 30
    assert view.trie is base.trie
    assert view.items.get(5)["price"] == 99
    assert view.items.get(5)["stock"] is None


def test_the_trie_of_a_view_has_what_the_base_lacks(base: Snapshot) -> None:
    titles = [f"unheard {number} of things {number * 7}" for number in range(20)]
    new = [item(number + 100, title=title) for number, title in enumerate(titles)]
    view = changed(CatalogueView.of(base), [Upsert(one) for one in new])
    codes = view.codec.encode(view.embed_items(new))
    lacking = np.unique(view.layout.pack(codes)[base.trie.find(view.layout.pack(codes)) < 0])
    assert isinstance(view.trie, LiveTrie)
    np.testing.assert_array_equal(np.sort(view.trie.added_keys), lacking)


def test_an_index_written_without_lengths_gets_them(base: Snapshot) -> None:
    from dataclasses import replace

    bare = replace(base, lexical=replace(base.lexical, lengths=None))
    lengths = CatalogueView.of(bare).base.lexical.lengths
    np.testing.assert_array_equal(lengths, base.lexical.lengths)


def _normal(value: object) -> list[str]:
    if isinstance(value, list):
        return [str(one).casefold() for one in value]
    return [str(value).casefold()] if value else []


def _holds(one: dict[str, object], filters: ItemFilter) -> bool:
    price, stock = one["price"], one["stock"]
    for name in FILTER_FIELDS:
        wanted = getattr(filters, name)
        if wanted and not set(wanted) & set(_normal(one[name])):
            return False
    if filters.price_min is not None and (price is None or price < filters.price_min):  # type: ignore[operator]
        return False
    if filters.price_max is not None and (price is None or price > filters.price_max):  # type: ignore[operator]
        return False
    return not (filters.in_stock and stock == 0)


def _bm25(base: LexicalIndex, query: str, text: str) -> float:
    """By the formula, with the base's statistics."""
    assert base.lengths is not None
    tokens = words(text)
    norm = base.k1 * (1 - base.b + base.b * len(tokens) / base.lengths.mean())
    score = 0.0
    for token in words(query):
        frequency = tokens.count(token)
        number = base.vocabulary.get(token)
        n_rows = 0 if number is None else int(base.start[number + 1] - base.start[number])
        idf = np.log1p((base.n_items - n_rows + 0.5) / (n_rows + 0.5))
        score += idf * frequency / (frequency + norm) if frequency else 0.0
    return score


def test_coverage_of_added_items(base: Snapshot) -> None:
    view = changed(CatalogueView.of(base), [Upsert(item(999, title="Turquoise Desk Set"))])
    row = np.array([view.items.row_of("i999")])
    known = view.lexical.coverage("desk", row)[0]
    assert known == pytest.approx(1.0)
    # A word that only added items have is found as it is, words of the base also where misspelt.
    assert view.lexical.coverage("turquoise desk", row)[0] == pytest.approx(1.0)
    assert 0.5 <= view.lexical.coverage("dessk", row)[0] < 1.0
    before = np.arange(base.lexical.n_items)
    np.testing.assert_array_equal(
        view.lexical.coverage("red desk", before), base.lexical.coverage("red desk", before)
    )

"""`bench changes`: a catalogue that changes while it is searched.

A made-up shop (loadtest/bench/made_up_shop.py), a small random decoder. One process searches and
hands in changes, another writes them, as in a server. The stream of changes is 45 % prices, 45 %
stock, 5 % new items, 5 % deletions.

`rate`: changes per second that one caller gets acknowledged, in calls of 1,000.
`acknowledged`: milliseconds from handing in changes until they are on disk and in the view that the
next search takes; beside it what a catalogue without a delta does for any of them, building trie
and postings anew.
`searches`: latency of whole searches (embedding, filter, decoder, ranking, item fields), one after
the other, in three states by turns: nothing changes; another thread hands in 10,000 changes per
second; a process of its own does the same to another catalogue (loadtest/bench/other_catalogue.py).
The last is the machine's share of what changes cost: two busy processes on the same processors and
caches. Half of the searches are filtered. What is loaded is frozen for the garbage collector, as
`serve` does. Processor time is that of the thread that searches: what it computes, not what it
waits for another thread or for a processor. `others_share`: the share of the processors that went
to processes of somebody else.
"""

from __future__ import annotations

import gc
import itertools
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from decoding.engine import Hypotheses, Prompt
from decoding.native.runner import Runner, Search
from decoding.weights import DecoderWeights
from index.items import ItemFilter
from index.live.catalogue import LiveCatalogue, LiveSettings
from index.live.changes import Applied, Change, Delete, Update, Upsert
from index.live.view import CatalogueView
from index.postings import Postings
from index.rescoring import RescoringWeights
from index.trie import Trie
from loadtest.bench.machine import others_share, others_times
from loadtest.bench.made_up_shop import made_up_item, made_up_query, write_shop
from loadtest.bench.other_catalogue import another_stream
from loadtest.bench.random_checkpoint import LAYOUT, SIZES, write_random_checkpoint
from loadtest.bench.report import OURS, Row, row
from models.ranking import candidates_of, rank_candidates
from server.hits import HIT_COLUMNS

ITEMS = 1_000_000
QUICK_ITEMS = 100_000
MODEL = "2 layers, d 256"
BEAM_WIDTH = 64
PROMPT_TOKENS = 24
TOP = 10
STREAM_PER_S = 10_000
STREAM_CALL = 50
CALL = 1_000
WITHOUT = "without changes"
BESIDE = "beside another catalogue's changes"
SLICE_S = 2.0
SLICES = 6
QUICK_SLICES = 3
FILTERS = (
    ItemFilter(),
    ItemFilter(in_stock=True),
    ItemFilter(),
    ItemFilter(color=("color 1", "color 2"), price_max=60.0),
)


@dataclass(slots=True, eq=False)
class Bed:
    """A catalogue and what makes changes for it."""

    catalogue: LiveCatalogue
    snapshot: Path
    random: np.random.Generator
    new: Iterator[int]
    n_items: int

    @classmethod
    def of(cls, catalogue: LiveCatalogue, snapshot: Path, n_items: int) -> Bed:
        return cls(catalogue, snapshot, np.random.default_rng(0), itertools.count(), n_items)

    def mixed(self, count: int) -> list[Change]:
        """Changes of the stream."""
        rows = self.random.integers(0, self.n_items, count).tolist()
        return [
            self._one(share, row)
            for share, row in zip(self.random.random(count).tolist(), rows, strict=True)
        ]

    def updates(self, count: int) -> list[Change]:
        rows = self.random.integers(0, self.n_items, count).tolist()
        return [self._price(row) for row in rows]

    def adds(self, count: int) -> list[Change]:
        return [Upsert(made_up_item(next(self.new), self.random)) for _ in range(count)]

    def deletes(self, count: int) -> list[Change]:
        rows = self.random.integers(0, self.n_items, count).tolist()
        return [Delete(f"item{row}") for row in rows]

    def _price(self, row: int) -> Update:
        return Update(f"item{row}", {"price": round(300 * self.random.random(), 2)})

    def _one(self, share: float, row: int) -> Change:
        if share < 0.45:
            return self._price(row)
        if share < 0.9:
            # One of five is out of stock; hardly ever what it was: that would be no change.
            return Update(f"item{row}", {"stock": max(0, int(self.random.integers(-250, 1_000)))})
        if share < 0.95:
            return Upsert(made_up_item(next(self.new), self.random))
        return Delete(f"item{row}")


def rows(quick: bool) -> list[Row]:
    """All tables, on one catalogue."""
    with _bed(quick) as bed:
        return [one for table in _TABLES.values() for one in table(bed, quick)]


def rate_rows(bed: Bed, quick: bool) -> list[Row]:
    """Acknowledged changes per second."""
    found: list[Row] = []
    for name, made in (("mixed", bed.mixed), ("updates", bed.updates), ("adds", bed.adds)):
        calls = [made(CALL) for _ in range(6 if quick else 12)]
        rates: list[float] = []
        for call in calls:
            started = time.perf_counter()
            applied = bed.catalogue.apply(call)
            rates.append(len(call) / (time.perf_counter() - started))
            assert applied.applied > 0.9 * len(call)
        setting = {"items": bed.n_items, "changes": name, "in calls of": CALL}
        found.append(
            row("changes, rate", setting, rates, {}, "changes per s", higher_is_better=True)
        )
    return found


def acknowledged_rows(bed: Bed, quick: bool) -> list[Row]:
    """Milliseconds until a call's changes are on disk and in the next search."""
    found: list[Row] = []
    rebuilt_ms = [_rebuild_s(bed.catalogue.view) * 1e3 for _ in range(3)]
    made: tuple[tuple[str, Callable[[int], list[Change]], int], ...] = (
        ("a price", bed.updates, 1),
        ("a new item", bed.adds, 1),
        ("a deletion", bed.deletes, 1),
        ("100 mixed", bed.mixed, 100),
    )
    for name, make, count in made:
        taken: list[float] = []
        for call in [make(count) for _ in range(20 if quick else 60)]:
            time.sleep(0.01)
            started = time.perf_counter()
            applied = bed.catalogue.apply(call)
            taken.append((time.perf_counter() - started) * 1e3)
            assert bed.catalogue.view.sequence >= applied.sequence
        found.append(
            row(
                "changes, acknowledged",
                {"items": bed.n_items, "changes": name},
                taken,
                {"trie and postings built anew": rebuilt_ms},
                "ms",
                p99=round(float(np.quantile(taken, 0.99)), 3),
            )
        )
    return found


def search_rows(bed: Bed, quick: bool) -> list[Row]:
    """Latency of searches without the stream, with it, and beside one that is none of theirs."""
    searcher = Searcher.of(bed.catalogue)
    stream = Stream(bed)
    for _ in range(2 * len(FILTERS)):
        searcher.search()
    slices = QUICK_SLICES if quick else SLICES
    calls = stream.calls(int(slices * SLICE_S * STREAM_PER_S / STREAM_CALL) + 1)
    taken: dict[str, list[float]] = {WITHOUT: [], BESIDE: [], OURS: []}
    own: dict[str, list[float]] = {WITHOUT: [], BESIDE: [], OURS: []}
    with _frozen(), another_stream(bed.snapshot, bed.n_items, slices * SLICE_S) as beside:
        states: dict[str, Callable[[], AbstractContextManager[None]]] = {
            WITHOUT: nullcontext,
            BESIDE: beside.running,
            OURS: lambda: stream.running(calls),
        }
        others, began = others_times(), time.perf_counter()
        for number in range(slices):
            names = list(states)
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                with states[name]():
                    searches = searcher.search_for(SLICE_S)
                taken[name] += [search.ms for search in searches]
                own[name] += [search.processor_ms for search in searches]
        others_had = others_share(others, time.perf_counter() - began)
    setting = {
        "items": bed.n_items,
        "changes per s": STREAM_PER_S,
        "beam": BEAM_WIDTH,
        "model": MODEL,
    }
    details: dict[str, Any] = {
        "acknowledged_per_s": round(stream.acknowledged / stream.seconds),
        "acknowledged_ms_p50": round(float(np.median(stream.waits_ms)), 2),
        "acknowledged_ms_p99": round(float(np.quantile(stream.waits_ms, 0.99)), 2),
        "acknowledged_per_s_beside": beside.acknowledged_per_s,
        "others_share": round(others_had, 3),
        "searches": {name: len(sample) for name, sample in taken.items()},
    }
    found: list[Row] = []
    for name, quantile, samples in (
        ("median", 0.5, taken),
        ("p99", 0.99, taken),
        ("processor time, median", 0.5, own),
        ("processor time, p99", 0.99, own),
    ):
        ms = {state: float(np.quantile(sample, quantile)) for state, sample in samples.items()}
        growth = {
            "by the changes": round(ms[OURS] / ms[WITHOUT], 3),
            "by the machine": round(ms[BESIDE] / ms[WITHOUT], 3),
            "by ours alone": round(ms[OURS] / ms[BESIDE], 3),
        }
        what = f"changes, searches meanwhile, {name}"
        found.append(row(what, setting, ms.pop(OURS), ms, "ms", growth=growth, **details))
    return found


_TABLES: dict[str, Callable[[Bed, bool], list[Row]]] = {
    "rate": rate_rows,
    "acknowledged": acknowledged_rows,
    "searches": search_rows,
}


def _alone(table: Callable[[Bed, bool], list[Row]]) -> Callable[[bool], list[Row]]:
    def run(quick: bool) -> list[Row]:
        with _bed(quick) as bed:
            return table(bed, quick)

    return run


TABLES: dict[str, Callable[[bool], list[Row]]] = {
    name: _alone(table) for name, table in _TABLES.items()
}


class Took(NamedTuple):
    """Milliseconds of a search, and those that its thread had a processor."""

    ms: float
    processor_ms: float


@dataclass(slots=True, eq=False)
class Searcher:
    """Whole searches on whatever the catalogue's view is."""

    catalogue: LiveCatalogue
    runner: Runner
    random: np.random.Generator
    count: int = 0

    @classmethod
    def of(cls, catalogue: LiveCatalogue) -> Searcher:
        with tempfile.TemporaryDirectory() as folder:
            write_random_checkpoint(Path(folder), SIZES[MODEL], LAYOUT)
            weights = DecoderWeights.from_directory(Path(folder))
        return cls(catalogue, Runner(weights, catalogue.view.base.trie), np.random.default_rng(1))

    def search_for(self, seconds: float) -> list[Took]:
        """What each search took, one after the other."""
        taken: list[Took] = []
        until = time.perf_counter() + seconds
        while (started := time.perf_counter()) < until:
            own = time.thread_time()
            self.search()
            own = time.thread_time() - own
            taken.append(Took((time.perf_counter() - started) * 1e3, own * 1e3))
        return taken

    def search(self) -> int:
        """One search; returns the number of hits."""
        view = self.catalogue.view
        text = made_up_query(self.random)
        tokens = self.random.integers(0, 8_000, PROMPT_TOKENS).astype(np.int32)
        embedding = view.embed_queries([text])[0]
        allowed = view.filter(FILTERS[self.count % len(FILTERS)])
        self.count += 1
        bits, mask = (None, None) if allowed is None else (allowed.trie, allowed.mask)
        wanted = Search(Prompt(tokens), BEAM_WIDTH, bits, trie=view.trie)
        [found] = self.runner.run([wanted])
        assert isinstance(found, Hypotheses)
        chosen = candidates_of(view, found.leaves, found.scores, mask)
        ranked = rank_candidates(view, RescoringWeights(), text, embedding, chosen)
        return len(view.items.get_many(ranked.rows[:TOP], HIT_COLUMNS))


class Stream:
    """Hands in changes at a steady rate, from a thread of its own."""

    def __init__(self, bed: Bed) -> None:
        self._bed = bed
        self.acknowledged = 0
        self.seconds = 0.0
        self.waits_ms: list[float] = []

    def calls(self, count: int) -> Iterator[list[Change]]:
        """Made beforehand: making them is no part of what is measured."""
        return iter([self._bed.mixed(STREAM_CALL) for _ in range(count)])

    @contextmanager
    def running(self, calls: Iterator[list[Change]]) -> Generator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=self._run, args=(calls, stop))
        started = time.perf_counter()
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.seconds += time.perf_counter() - started

    def _run(self, calls: Iterator[list[Change]], stop: threading.Event) -> None:
        due = time.perf_counter()
        pending: list[threading.Event] = []
        for call in calls:
            if stop.is_set():
                break
            due += STREAM_CALL / STREAM_PER_S
            if (left_s := due - time.perf_counter()) > 0:
                time.sleep(left_s)
            pending.append(self._hand_in(call))
        for told in pending:
            told.wait()

    def _hand_in(self, call: Sequence[Change]) -> threading.Event:
        told = threading.Event()
        started = time.perf_counter()
        future = self._bed.catalogue.submit(call)

        def hear(_: object) -> None:
            result: Applied = future.result()
            self.acknowledged += result.applied + len(result.rejected)
            self.waits_ms.append((time.perf_counter() - started) * 1e3)
            told.set()

        future.add_done_callback(hear)
        return told


@contextmanager
def _bed(quick: bool) -> Generator[Bed]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    count = QUICK_ITEMS if quick else ITEMS
    with tempfile.TemporaryDirectory() as folder:
        snapshot = write_shop(Path(folder) / "shop", count, LAYOUT)
        settings = LiveSettings(merge_automatically=False)
        try:
            with LiveCatalogue.open(snapshot, settings=settings, apart=True) as catalogue:
                yield Bed.of(catalogue, snapshot.path, count)
        finally:
            torch.set_num_threads(threads)


@contextmanager
def _frozen() -> Generator[None]:
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _rebuild_s(view: CatalogueView) -> float:
    """Seconds to build trie and postings from all SIDs."""
    keys = view.base.trie.keys[view.base.postings.leaf_of_row]
    started = time.perf_counter()
    distinct, leaf_of_row = np.unique(keys, return_inverse=True)
    trie = Trie.build(view.layout, distinct, assume_sorted=True)
    Postings.build(leaf_of_row, trie.n_leaves, view.base.items.popularity)
    return time.perf_counter() - started

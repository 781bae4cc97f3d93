"""What happens to a catalogue and its writer when one of the two processes ends or fails."""

import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from index.errors import ArtifactError
from index.items import ItemFilter
from index.live import calls, following, newest
from index.live.catalogue import (
    CatalogueClosed,
    CatalogueUnsure,
    LiveCatalogue,
    LiveSettings,
    live_directory,
)
from index.live.changes import Change, Delete, Update, Upsert
from index.live.delta import Delta
from index.live.following import FollowingCatalogue
from index.live.log import segments_of
from index.live.nursery import Nursery, Writer
from index.live.view import CatalogueView
from index.live.writer import BEAT_S, Order
from index.snapshot import Snapshot
from tests.index.live.conftest import item

QUIET = LiveSettings(merge_automatically=False, publish_interval_s=0.0)


@pytest.fixture
def path(base: Snapshot, tmp_path: Path) -> Path:
    return shutil.copytree(base.path, tmp_path / "snapshot")


@pytest.fixture
def catalogue(path: Path) -> Generator[FollowingCatalogue, None, None]:
    with LiveCatalogue.open(path, settings=QUIET, apart=True) as opened:
        assert isinstance(opened, FollowingCatalogue)
        yield opened


def until(holds: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def taken_again(catalogue: LiveCatalogue, change: Change) -> None:
    """Make a change as soon as changes are taken."""

    def is_taken() -> bool:
        try:
            return catalogue.apply([change]).applied == 1
        except CatalogueClosed:
            return False

    until(is_taken)


def contents(view: CatalogueView) -> dict[str, object]:
    alive = view.items.alive
    rows = np.arange(view.n_rows) if alive is None else np.flatnonzero(alive.whole())
    codes = view.trie.codes_of_leaves(view.postings.leaf_of_row[rows]).tolist()
    items = view.items.get_many(rows)
    return {one["item_id"]: (one, code) for one, code in zip(items, codes, strict=True)}


def test_a_killed_writer_is_replaced_and_loses_nothing(
    catalogue: FollowingCatalogue, caplog: pytest.LogCaptureFixture
) -> None:
    catalogue.apply([Upsert(item(70)), Delete("i0")])
    before, first = catalogue.view, catalogue.writer
    os.kill(first, signal.SIGKILL)
    assert before.items.row_of("i70") is not None
    with caplog.at_level(logging.WARNING):
        taken_again(catalogue, Delete("i1"))
    assert "ended; another one is started" in caplog.text
    assert catalogue.writer not in (0, first)
    after = catalogue.view
    assert after.sequence == before.sequence + 1
    assert contents(after).keys() == contents(before).keys() - {"i1"}
    assert after.base is before.base
    allowed = after.filter(ItemFilter())
    assert allowed is None or allowed.n_items == after.n_items


def test_callers_of_a_killed_writer_hear_that_nobody_knows(
    catalogue: FollowingCatalogue,
) -> None:
    catalogue.apply([Delete("i0")])
    os.kill(catalogue.writer, signal.SIGSTOP)
    waiting = [catalogue.submit([Delete(f"i{number}")]) for number in range(1, 4)]
    assert catalogue.status().waiting_changes == 3
    os.kill(catalogue.writer, signal.SIGKILL)
    for one in waiting:
        with pytest.raises(CatalogueClosed, match="not known"):
            one.result(timeout=60)
    assert catalogue.status().waiting_changes == 0
    assert catalogue.view.items.row_of("i0") is None
    taken_again(catalogue, Update("i9", {"price": 9.5}))


def test_deltas_wait_for_who_asks_for_the_view_and_not_without_end(
    catalogue: FollowingCatalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid: list[int] = []
    with_delta = CatalogueView.with_delta

    def counted(view: CatalogueView, delta: Delta) -> CatalogueView:
        laid.append(delta.sequence)
        return with_delta(view, delta)

    monkeypatch.setattr(CatalogueView, "with_delta", counted)
    for number in range(newest.MAX_UNLAID - 1):
        catalogue.apply([Update("i1", {"price": float(number)})])
    assert not laid
    catalogue.apply([Delete("i2")])
    until(lambda: len(laid) == newest.MAX_UNLAID)
    last = catalogue.apply([Delete("i3")])
    assert catalogue.view.sequence == last.sequence == len(laid)
    assert catalogue.view.items.row_of("i3") is None


def test_a_delta_that_cannot_be_laid_down_harms_no_search(
    catalogue: FollowingCatalogue,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before, first = catalogue.view, catalogue.writer
    with_delta = CatalogueView.with_delta

    def broken_once(view: CatalogueView, delta: Delta) -> CatalogueView:
        monkeypatch.setattr(CatalogueView, "with_delta", with_delta)
        raise ValueError("no room")

    monkeypatch.setattr(CatalogueView, "with_delta", broken_once)
    catalogue.apply([Delete("i0")])
    assert catalogue.view is before
    assert "changes cannot be followed" in caplog.text
    until(lambda: catalogue.view is not before)
    assert catalogue.writer not in (0, first)
    assert catalogue.view.items.row_of("i0") is None
    taken_again(catalogue, Delete("i1"))
    assert contents(catalogue.view).keys() == contents(before).keys() - {"i0", "i1"}


def test_a_writer_killed_while_it_merges(catalogue: FollowingCatalogue) -> None:
    catalogue.apply([Upsert(item(number)) for number in range(60, 70)])
    with ThreadPoolExecutor(1) as thread:
        merging = thread.submit(catalogue.merge)
        until(lambda: catalogue.status().merging)
        os.kill(catalogue.writer, signal.SIGKILL)
        with pytest.raises(ArtifactError):
            merging.result(timeout=60)
    taken_again(catalogue, Delete("i60"))
    assert catalogue.view.n_items == 39
    assert catalogue.merge().n_rows == 39


def merge_process(catalogue: FollowingCatalogue) -> psutil.Process:
    """The process that merges, as soon as there is one, stopped."""
    found: list[psutil.Process] = []

    def is_there() -> bool:
        # Not before it runs its own program: until then the writer waits for it.
        found[:] = [
            one
            for one in psutil.Process(catalogue.writer).children()
            if "index.live.merge" in one.cmdline()
        ]
        return bool(found)

    until(is_there)
    found[0].suspend()
    return found[0]


def leftovers(path: Path) -> list[str]:
    return [one.name for one in live_directory(path).iterdir() if one.name.startswith(".")]


def test_a_killed_merge_leaves_nothing(catalogue: FollowingCatalogue, path: Path) -> None:
    catalogue.apply([Upsert(item(60))])
    with ThreadPoolExecutor(1) as thread:
        merging = thread.submit(catalogue.merge)
        merge = merge_process(catalogue)
        left = live_directory(path) / f".merged-{1:020d}.tmp-{merge.pid}-0"
        left.mkdir()
        merge.kill()
        with pytest.raises(ArtifactError, match="ended by signal 9"):
            merging.result(timeout=60)
    assert leftovers(path) == []
    assert catalogue.merge().n_rows == 31


def test_what_killed_merges_left_is_removed_at_opening(path: Path) -> None:
    with LiveCatalogue.open(path, settings=QUIET) as catalogue:
        catalogue.apply([Delete("i0")])
    (live_directory(path) / ".merged-1.tmp-123-0").mkdir()
    (live_directory(path) / ".state.json.tmp-123-0").touch()
    with LiveCatalogue.open(path, settings=QUIET):
        assert leftovers(path) == []


def test_closing_does_not_wait_for_a_merge(path: Path) -> None:
    catalogue = LiveCatalogue.open(path, settings=QUIET, apart=True)
    assert isinstance(catalogue, FollowingCatalogue)
    catalogue.apply([Upsert(item(60))])
    with ThreadPoolExecutor(1) as thread:
        merging = thread.submit(catalogue.merge)
        merge = merge_process(catalogue)
        began = time.monotonic()
        catalogue.close()
        assert time.monotonic() - began < 30
        assert not merge.is_running()
        with pytest.raises(ArtifactError, match="closed"):
            merging.result(timeout=60)


def test_callers_of_a_stopped_writer_do_not_wait_for_ever(
    catalogue: FollowingCatalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "ANSWER_S", 0.5)
    catalogue.apply([Delete("i0")])
    writer = psutil.Process(catalogue.writer)
    writer.suspend()
    with pytest.raises(CatalogueUnsure, match="has not answered"):
        catalogue.submit([Delete("i1")]).result(timeout=60)
    with pytest.raises(CatalogueClosed, match="has not answered for"):
        catalogue.apply([Delete("i2")])
    assert catalogue.view.items.row_of("i2") is not None
    writer.resume()
    taken_again(catalogue, Delete("i2"))
    assert catalogue.view.items.row_of("i1") is None
    assert catalogue.status().waiting_changes == 0


@pytest.mark.parametrize(
    ("limit", "sign"),
    [("SILENCE_S", "gives no sign of life"), ("STUCK_S", "has answered nobody")],
)
def test_a_writer_that_does_nothing_is_replaced_and_loses_nothing(
    catalogue: FollowingCatalogue,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    limit: str,
    sign: str,
) -> None:
    catalogue.apply([Upsert(item(70)), Delete("i0")])
    before, first = catalogue.view, psutil.Process(catalogue.writer)
    first.suspend()
    waiting = catalogue.submit([Delete("i1")])
    # Above the time between two signs of life: the next writer must not be taken for a stopped one.
    monkeypatch.setattr(following, limit, BEAT_S + 2.0)
    with pytest.raises(CatalogueUnsure, match="not known"):
        waiting.result(timeout=60)
    monkeypatch.undo()
    assert sign in caplog.text
    taken_again(catalogue, Delete("i2"))
    assert not first.is_running()
    after = catalogue.view
    # What nobody acknowledged may have been made or not.
    assert contents(after).keys() - {"i1"} == contents(before).keys() - {"i1", "i2"}
    taken_again(catalogue, Upsert(item(71)))


def test_a_writer_that_is_stopped_while_it_opens_is_replaced(
    catalogue: FollowingCatalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    bear, born = Nursery.bear, list[psutil.Process]()

    def stopped(nursery: Nursery, end: socket.socket, order: Order) -> Writer:
        writer = bear(nursery, end, order)
        if not born:
            born.append(psutil.Process(writer.pid))
            born[0].suspend()
        return writer

    catalogue.apply([Delete("i0")])
    monkeypatch.setattr(following, "SILENCE_S", BEAT_S + 2.0)
    monkeypatch.setattr(Nursery, "bear", stopped)
    os.kill(catalogue.writer, signal.SIGKILL)
    taken_again(catalogue, Delete("i1"))
    assert born and not born[0].is_running()
    assert catalogue.view.items.row_of("i0") is None


def test_a_stopped_writer_is_killed_at_closing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "CLOSE_S", 0.5)
    catalogue = LiveCatalogue.open(path, settings=QUIET, apart=True)
    assert isinstance(catalogue, FollowingCatalogue)
    catalogue.apply([Delete("i0")])
    writer = psutil.Process(catalogue.writer)
    writer.suspend()
    waiting = catalogue.submit([Delete("i1")])
    catalogue.close()
    assert not writer.is_running()
    with pytest.raises(CatalogueUnsure, match="not known"):
        waiting.result(timeout=0)
    with LiveCatalogue.open(path, settings=QUIET) as again:
        assert again.view.items.row_of("i0") is None


def test_files_of_others_in_the_current_directory_are_not_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "queue.py").write_text("raise RuntimeError('this is not the one')")
    monkeypatch.chdir(tmp_path)
    with LiveCatalogue.open(path, settings=QUIET, apart=True) as catalogue:
        catalogue.apply([Upsert(item(60))])
        assert catalogue.merge().n_rows == 31


def test_searches_move_to_a_merged_base_once_it_is_prepared(
    catalogue: FollowingCatalogue,
) -> None:
    catalogue.apply([Upsert(item(60)), Delete("i0")])
    before = contents(catalogue.view)
    told: list[tuple[bool, int]] = []

    def prepare(view: CatalogueView) -> None:
        told.append((catalogue.view.base is view.base, view.n_rows))
        # Changes go on meanwhile.
        catalogue.apply([Update("i1", {"stock": 77})])

    catalogue.on_merge = prepare
    old = catalogue.view
    view = catalogue.merge()
    assert told == [(False, 30)]
    assert view.base is not old.base
    assert view.sequence == 3
    assert contents(view).keys() == before.keys()
    assert view.items.get(view.items.row_of("i1") or 0)["stock"] == 77
    assert view.encoder is old.encoder
    assert catalogue.status().merges == 1


def test_a_base_that_cannot_be_prepared_is_not_moved_to(catalogue: FollowingCatalogue) -> None:
    catalogue.apply([Upsert(item(60))])
    old = catalogue.view

    def refuse(view: CatalogueView) -> None:
        raise RuntimeError("no room for it")

    catalogue.on_merge = refuse
    with pytest.raises(ArtifactError, match="no room for it"):
        catalogue.merge()
    assert catalogue.view is old
    assert "no room" in catalogue.status().merge_error
    catalogue.apply([Delete("i60")])
    catalogue.on_merge = None
    assert catalogue.merge().n_items == 30


def test_a_full_disk_costs_only_those_changes(catalogue: FollowingCatalogue, path: Path) -> None:
    catalogue.apply([Delete("i0")])
    [segment] = segments_of(live_directory(path) / "log")
    size = segment.stat().st_size
    limit = resource.RLIMIT_FSIZE
    before = resource.prlimit(catalogue.writer, limit, (size + 10, resource.RLIM_INFINITY))
    with pytest.raises(CatalogueClosed, match=r"cannot be written: .*File too large"):
        catalogue.apply([Delete("i1")])
    assert segment.stat().st_size == size
    assert catalogue.view.items.row_of("i1") == 1
    resource.prlimit(catalogue.writer, limit, before)
    assert catalogue.apply([Delete("i1")]).sequence == 2


def test_damage_is_told_at_opening(path: Path) -> None:
    with LiveCatalogue.open(path, settings=QUIET, apart=True) as catalogue:
        catalogue.apply([Delete("i0")])
        catalogue.apply([Delete("i1")])
    [segment] = segments_of(live_directory(path) / "log")
    whole = segment.read_bytes()
    segment.write_bytes(whole[:40] + b"?" + whole[41:])
    with pytest.raises(ArtifactError, match="damaged at byte"):
        LiveCatalogue.open(path, apart=True)
    segment.write_bytes(whole[:-3])
    with pytest.raises(ArtifactError, match="ends at change 1, but change 2 was made"):
        LiveCatalogue.open(path, apart=True)
    state = live_directory(path) / "state.json"
    state.write_bytes(state.read_bytes().replace(b'"sequence":2', b'"sequence":1'))
    segment.write_bytes(whole[:-3])
    with LiveCatalogue.open(path, settings=QUIET, apart=True) as catalogue:
        assert "unfinished record" in catalogue.note
        assert catalogue.view.sequence == 1
    keys = path / "trie" / "codes_0.npy"
    keys.write_bytes(keys.read_bytes()[:-1] + b"?")
    with pytest.raises(ArtifactError, match="codes_0"):
        LiveCatalogue.open(path, apart=True)
    with pytest.raises(ArtifactError, match="is not there"):
        LiveCatalogue.open(path.with_name("nothing"), apart=True)


def test_closing_finishes_what_waits(path: Path) -> None:
    catalogue = LiveCatalogue.open(path, settings=QUIET, apart=True)
    waiting = [catalogue.submit([Delete(f"i{number}")]) for number in range(20)]
    catalogue.close()
    assert [one.result(timeout=0).applied for one in waiting] == [1] * 20
    assert catalogue.view.n_items == 10
    with pytest.raises(CatalogueClosed, match="was closed"):
        catalogue.apply([Delete("i25")])
    with LiveCatalogue.open(path, settings=QUIET) as again:
        assert again.view.n_items == 10


def test_what_json_cannot_say_is_judged_as_it_was_meant(catalogue: FollowingCatalogue) -> None:
    changes: list[Change] = [
        Update("i1", {"price": float("nan")}),
        Upsert({"item_id": "n1", "title": "one", "price": float("inf")}),
        Upsert({"item_id": "n2", "title": "two", "color": ("red",), "attributes": {1: ["a"]}}),
        Upsert({"item_id": "n3", "title": "three", "brand": object()}),
        Upsert({"item_id": "n4", "title": "\ud800"}),
        Update("i2", {"stock": 1 << 70}),
        Update("i3", {"price": None}),
        Delete("i4"),
    ]
    applied = catalogue.apply(changes)
    assert applied.applied == 3
    assert [(bad.index, bad.item_id) for bad in applied.rejected] == [
        (0, "i1"),
        (1, "n1"),
        (3, "n3"),
        (4, "n4"),
        (5, "i2"),
    ]
    assert "finite" in applied.rejected[0].reason
    items = catalogue.view.items
    assert items.get(items.row_of("n2") or 0)["attributes"] == {"1": ["a"]}
    assert items.get(3)["price"] is None


FOLLOWER = """
import sys
from pathlib import Path
from index.live.catalogue import LiveCatalogue, LiveSettings
from index.live.changes import Delete, Update, Upsert

path, first = Path(sys.argv[1]), int(sys.argv[2])
settings = LiveSettings(merge_min_items=40, merge_share=0.01, publish_interval_s=0.0)
catalogue = LiveCatalogue.open(path, settings=settings, apart=True)
print("open", catalogue.writer, flush=True)
for number in range(first, first + 10_000):
    new = {"item_id": f"n{number}", "title": f"thing {number}", "stock": number}
    catalogue.apply([Upsert(new), Update("i1", {"stock": number})])
    assert catalogue.view.items.row_of(f"n{number}") is not None
    print(number, flush=True)
"""


def test_a_killed_process_leaves_no_writer_and_loses_nothing(path: Path) -> None:
    acknowledged = -1
    for turn in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", FOLLOWER, str(path), str(acknowledged + 2)],
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        name, writer = child.stdout.readline().split()
        assert name == b"open"
        time.sleep(0.1 + 0.2 * turn)
        child.send_signal(signal.SIGKILL)
        # At once: the writer may still be finishing what it was handed.
        with LiveCatalogue.open(path, settings=QUIET, apart=turn % 2 == 0) as catalogue:
            told = child.communicate()[0]
            items = catalogue.view.items
        lines = [int(line) for line in told.splitlines(keepends=True) if line.endswith(b"\n")]
        assert lines
        stock = items.get(items.row_of("i1") or 0)["stock"]
        assert lines[-1] <= stock <= lines[-1] + 1
        assert (items.rows_of([f"n{number}" for number in lines]) >= 0).all()
        acknowledged = stock
        until(lambda writer=int(writer): not psutil.pid_exists(writer))

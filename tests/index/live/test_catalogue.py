import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import orjson
import pytest

from index.errors import ArtifactError, ConfigError
from index.items import ItemFilter
from index.live import writing as live
from index.live.catalogue import (
    CatalogueBusy,
    CatalogueClosed,
    LiveCatalogue,
    LiveSettings,
    live_directory,
    read_view,
)
from index.live.changes import Delete, Rejected, Update, Upsert
from index.live.log import segments_of
from index.snapshot import Snapshot
from tests.index.live.conftest import item

QUIET = LiveSettings(merge_automatically=False, publish_interval_s=0.0)
Opened = Callable[..., LiveCatalogue]


@pytest.fixture
def path(base: Snapshot, tmp_path: Path) -> Path:
    """A snapshot of its own."""
    return shutil.copytree(base.path, tmp_path / "snapshot")


def opening(path: Path, apart: bool) -> Generator[Opened, None, None]:
    catalogues: list[LiveCatalogue] = []

    def open_one(settings: LiveSettings = QUIET) -> LiveCatalogue:
        catalogues.append(LiveCatalogue.open(path, settings=settings, apart=apart))
        return catalogues[-1]

    yield open_one
    for one in catalogues:
        one.close()


@pytest.fixture
def opened(path: Path) -> Generator[Opened, None, None]:
    """Opens the snapshot, to be written by this process."""
    yield from opening(path, apart=False)


@pytest.fixture(params=[False, True], ids=["here", "apart"])
def either(path: Path, request: pytest.FixtureRequest) -> Generator[Opened, None, None]:
    """Opens the snapshot, to be written by this process, and by another one."""
    yield from opening(path, apart=request.param)


def facts(catalogue: LiveCatalogue) -> dict[str, object]:
    """What a catalogue holds, rows aside."""
    view = catalogue.view
    alive = view.items.alive
    rows = np.arange(view.n_rows) if alive is None else np.flatnonzero(alive.whole())
    codes = view.trie.codes_of_leaves(view.postings.leaf_of_row[rows])
    vectors = view.dense.vectors(rows)
    items = view.items.get_many(rows)
    return {
        one["item_id"]: (one, code.tolist(), vector.tolist())
        for one, code, vector in zip(items, codes, vectors, strict=True)
    }


def test_changes_are_in_the_next_view_and_after_a_restart(either: Opened) -> None:
    catalogue = either()
    changes = [
        Update("i1", {"price": 3.5}),
        Delete("i2"),
        Upsert(item(70, title="purple lamp")),
        Delete("never"),
        Upsert({"item_id": "i4"}),
    ]
    applied = catalogue.apply(changes)
    assert (applied.sequence, applied.applied) == (3, 3)
    assert [bad.index for bad in applied.rejected] == [3, 4]
    assert applied.rejected[0] == Rejected(3, "never", "no item has this id")
    view = catalogue.view
    assert view.items.get(1)["price"] == 3.5
    assert view.items.row_of("i2") is None
    assert view.lexical.search("purple", 3)[0].tolist() == [30]
    assert view.version == f"{view.base.version}+3"
    before = facts(catalogue)
    catalogue.close()
    again = either()
    assert again.note == ""
    assert facts(again) == before
    assert again.view.version == view.version
    assert read_view(view.path).version == view.version


def test_callers_are_taken_together_and_hear_their_own(either: Opened) -> None:
    catalogue = either(LiveSettings(merge_automatically=False, publish_interval_s=0.02))

    def call(number: int) -> tuple[int, list[int]]:
        applied = catalogue.apply(
            [Update(f"i{number}", {"stock": 50 + number}), Delete(f"never{number}")]
        )
        view = catalogue.view
        assert view.sequence >= applied.sequence
        assert view.items.get(number)["stock"] == 50 + number
        return applied.applied, [bad.index for bad in applied.rejected]

    with ThreadPoolExecutor(12) as threads:
        heard = list(threads.map(call, range(30)))
    assert heard == [(1, [1])] * 30
    status = catalogue.status()
    assert (status.sequence, status.applied, status.rejected) == (30, 30, 30)
    assert status.publications < 30
    assert status.waiting_changes == 0


def test_a_merge_keeps_everything_and_the_log_short(either: Opened, path: Path) -> None:
    catalogue = either()
    catalogue.apply([Delete(f"i{number}") for number in range(5)])
    catalogue.apply([Upsert(item(number)) for number in range(60, 70)])
    old, before = catalogue.view, facts(catalogue)
    told: list[int] = []
    catalogue.on_merge = lambda view: told.append(view.base.trie.n_leaves)
    view = catalogue.merge()
    assert view.n_rows == view.n_items == 35
    assert told == [view.base.trie.n_leaves]
    assert facts(catalogue) == before
    assert view.version == old.version
    assert view.encoder is old.encoder
    assert old.items.row_of("i61") == 31
    catalogue.apply([Update("i61", {"price": 1.25})])
    assert catalogue.view.sequence == old.sequence + 1
    directory = live_directory(path)
    assert len(segments_of(directory / "log")) == 1
    before = facts(catalogue)
    catalogue.close()
    again = either()
    assert facts(again) == before
    assert again.view.base.path.parent == directory
    again.merge()
    again.merge()
    assert len(list(directory.glob("merged-*"))) == 1
    assert facts(again) == before
    assert again.status().merge_error == ""


def test_changes_go_on_during_a_merge(either: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SWITCH_CHANGES", 3)
    catalogue = either()
    stop = threading.Event()
    made: list[int] = []

    def change() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            new = Upsert(item(1000 + number))
            catalogue.apply([new, Update("i1", {"stock": number}), Delete(f"i{990 + number}")])
            made.append(number)

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(change)
        for _ in range(2):
            catalogue.merge()
        stop.set()
        running.result()
    last = made[-1]
    assert catalogue.view.items.get(catalogue.view.items.row_of("i1") or 0)["stock"] == last
    before = facts(catalogue)
    assert {f"i{1000 + number}" for number in range(max(1, last - 9), last + 1)} <= before.keys()
    catalogue.close()
    assert facts(either()) == before


def test_merges_start_by_themselves(either: Opened) -> None:
    catalogue = either(LiveSettings(merge_min_items=5, merge_share=0.01))
    catalogue.apply([Upsert(item(number)) for number in range(100, 106)])
    deadline = time.monotonic() + 60
    while not catalogue.status().merges and time.monotonic() < deadline:
        time.sleep(0.02)
    assert catalogue.view.base.manifest["counts"]["items"] == 36
    assert catalogue.status().last_merge_s > 0


def test_a_merge_that_fails_changes_nothing(
    opened: Opened, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = opened()
    catalogue.apply([Upsert(item(80))])
    before = facts(catalogue)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ArtifactError, match="could not be merged"):
        catalogue.merge()
    assert "could not be merged" in catalogue.status().merge_error
    assert facts(catalogue) == before
    catalogue.apply([Delete("i80")])
    monkeypatch.undo()
    catalogue.merge()
    assert catalogue.status().merge_error == ""


def test_a_merge_that_failed_is_tried_again(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = opened(LiveSettings(merge_min_items=5, merge_share=0.01, merge_retry_s=0.1))
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "/bin/false")
        catalogue.apply([Upsert(item(number)) for number in range(100, 106)])
        deadline = time.monotonic() + 60
        while not catalogue.status().merge_error and time.monotonic() < deadline:
            time.sleep(0.02)
        assert "could not be merged" in catalogue.status().merge_error
    while not catalogue.status().merges and time.monotonic() < deadline:
        time.sleep(0.05)
        catalogue.apply([Update("i1", {"stock": 1})])
    assert catalogue.status().merges == 1


def test_a_call_can_be_cancelled_while_it_waits(opened: Opened) -> None:
    catalogue = opened(LiveSettings(merge_automatically=False, publish_interval_s=0.2))
    catalogue.apply([Delete("i0")])
    alone = catalogue.submit([Delete("i1")])
    assert alone.cancel()
    catalogue.apply([Delete("i2")])
    cancelled, kept = catalogue.submit([Delete("i3")]), catalogue.submit([Delete("i4")])
    assert cancelled.cancel()
    assert kept.result().applied == 1
    rows = catalogue.view.items.rows_of([f"i{number}" for number in range(5)])
    assert rows.tolist() == [-1, 1, -1, 3, -1]
    assert catalogue.status().waiting_changes == 0


def test_looking_at_a_catalogue_while_a_record_is_written(opened: Opened, path: Path) -> None:
    catalogue = opened()
    catalogue.apply([Delete("i0")])
    [segment] = segments_of(live_directory(path) / "log")
    whole = segment.read_bytes()
    catalogue.apply([Delete("i1")])
    longer = segment.read_bytes()
    for end in (len(whole), len(whole) + 3, len(whole) + 30, len(longer) - 1):
        segment.write_bytes(longer[:end])
        assert read_view(path).sequence == 1
    segment.write_bytes(longer)
    assert read_view(path).sequence == 2


def test_the_counts_of_a_view_are_its_own(either: Opened) -> None:
    catalogue = either()
    base = catalogue.view.base
    assert catalogue.view.manifest == base.manifest
    catalogue.apply([Upsert(item(80, title="something new")), Delete("i0"), Delete("i1")])
    counts = catalogue.view.manifest["counts"]
    catalogue.merge()
    merged = catalogue.view.base.manifest["counts"]
    assert (counts["items"], counts["sids"]) == (merged["items"], merged["sids"])
    assert counts["items"] == 29


def test_a_log_that_was_emptied_is_noticed(either: Opened, path: Path) -> None:
    with either(QUIET) as catalogue:
        catalogue.apply([Delete("i0"), Delete("i1")])
    directory = live_directory(path)
    [segment] = segments_of(directory / "log")
    whole = segment.read_bytes()
    for emptied in (b"", whole[:8]):
        segment.write_bytes(emptied)
        with pytest.raises(ArtifactError, match="ends at change 0, but change 2 was made"):
            either(QUIET)
        with pytest.raises(ArtifactError, match="change 2 was made"):
            read_view(path)
    segment.write_bytes(whole)
    with either(QUIET) as catalogue:
        assert catalogue.view.n_items == 28
    segment.write_bytes(whole[:8])
    state = orjson.loads((directory / "state.json").read_bytes())
    (directory / "state.json").write_bytes(orjson.dumps(state | {"sequence": 0}))
    with either(QUIET) as catalogue:
        assert catalogue.view.n_items == 30


def test_an_export_is_a_snapshot_of_its_own(either: Opened, tmp_path: Path) -> None:
    catalogue = either()
    catalogue.apply([Upsert(item(80)), Delete("i0")])
    base = catalogue.view.base
    catalogue.export(tmp_path / "exported")
    assert Snapshot.open(tmp_path / "exported").items.row_of("i80") is not None
    assert catalogue.view.base is base
    with pytest.raises(ArtifactError, match="exists"):
        catalogue.export(tmp_path / "exported")


def test_an_export_goes_on_with_the_changes_of_its_catalogue(
    either: Opened, path: Path, tmp_path: Path
) -> None:
    """In the directory of the snapshot that it came from, or in one of its own."""
    catalogue, exported = either(), tmp_path / "exported"
    catalogue.apply([Upsert(item(80)), Delete("i0")])
    catalogue.export(exported)
    catalogue.apply([Delete("i1")])
    catalogue.close()
    for _ in range(2):
        with LiveCatalogue.open(exported, live_directory(path), QUIET) as same:
            assert [same.view.sequence, same.view.n_items] == [3, 29]
            assert same.view.base.path == exported
    with LiveCatalogue.open(exported, settings=QUIET) as own:
        assert [own.view.sequence, own.view.n_items] == [2, 30]
        own.apply([Delete("i2")])
    with LiveCatalogue.open(exported, settings=QUIET) as own:
        assert [own.view.sequence, own.view.n_items] == [3, 29]
    with either() as catalogue:
        catalogue.merge()
        catalogue.apply([Delete("i3")])
    with LiveCatalogue.open(exported, live_directory(path), QUIET) as same:
        assert [same.view.sequence, same.view.base.path.name] == [4, f"merged-{3:020d}"]


def test_an_export_from_another_place_is_refused(
    either: Opened, path: Path, base: Snapshot, tmp_path: Path
) -> None:
    elsewhere = Path(shutil.copytree(base.path, tmp_path / "elsewhere"))
    with LiveCatalogue.open(elsewhere, settings=QUIET) as other:
        other.apply([Delete("i0"), Delete("i1")])
        other.export(tmp_path / "exported")
    catalogue = either()
    catalogue.apply([Delete("i5")])
    catalogue.close()
    with pytest.raises(ArtifactError, match=r"holds 2 changes of its catalogue.*has fewer"):
        LiveCatalogue.open(tmp_path / "exported", live_directory(path), QUIET)


def test_one_writer_at_a_time(either: Opened, path: Path) -> None:
    either()
    with pytest.raises(ArtifactError, match=rf"another process \(number {os.getpid()}\)"):
        LiveCatalogue.open(path)
    assert read_view(path).sequence == 0


def test_changes_of_another_snapshot_are_refused(
    either: Opened, path: Path, base: Snapshot
) -> None:
    catalogue = either()
    catalogue.apply([Delete("i0")])
    catalogue.close()
    state = live_directory(path) / "state.json"
    state.write_bytes(orjson.dumps({"origin": "0123456789ab", "merged": None}))
    with pytest.raises(ArtifactError, match="holds changes of snapshot version 0123456789ab"):
        either()
    state.write_bytes(b"[]")
    with pytest.raises(ArtifactError, match="cannot be read"):
        either()


def test_too_many_changes_at_once_are_refused(either: Opened) -> None:
    settings = LiveSettings(
        merge_automatically=False, publish_interval_s=0.3, max_waiting_changes=5
    )
    catalogue = either(settings)
    catalogue.apply([Delete("i0")])
    waiting = catalogue.submit([Update("i1", {"stock": 1})] * 4)
    with pytest.raises(CatalogueBusy, match="4 changes wait"):
        catalogue.submit([Update("i1", {"stock": 1})] * 2)
    assert waiting.result().applied == 4
    # A single call is taken whatever its size.
    assert catalogue.apply([Update("i1", {"stock": 2})] * 9).applied == 9


def test_a_disk_that_refuses_costs_only_those_changes(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = opened()

    def refuse(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", refuse)
        with pytest.raises(CatalogueClosed, match="No space left"):
            catalogue.apply([Delete("i0")])
    assert catalogue.view.items.row_of("i0") == 0
    catalogue.apply([Delete("i1")])
    before = facts(catalogue)
    catalogue.close()
    assert facts(opened()) == before
    with pytest.raises(CatalogueClosed, match="was closed"):
        catalogue.apply([Delete("i3")])


def test_filters_see_changes(either: Opened) -> None:
    catalogue = either()
    in_stock = ItemFilter(in_stock=True)
    before = catalogue.view.filter(in_stock)
    assert before is not None
    catalogue.apply([Update("i1", {"stock": 0})])
    allowed = catalogue.view.filter(in_stock)
    assert allowed is not None
    assert allowed.n_items == before.n_items - 1
    assert catalogue.view.filter_counts == {"hit": 0, "patch": 1, "miss": 1}
    nothing = catalogue.view.filter(ItemFilter(color=("nowhere",)))
    assert nothing is not None
    assert (nothing.n_items, nothing.trie.n_leaves) == (0, 0)


def test_settings_are_checked() -> None:
    for wrong in ({"merge_share": 0.0}, {"merge_min_items": 0}, {"max_batch_changes": 0}):
        with pytest.raises(ConfigError):
            LiveSettings(**wrong)


WRITER = """
import sys
from pathlib import Path
from index.live.catalogue import LiveCatalogue, LiveSettings
from index.live.changes import Delete, Update, Upsert

path, first = Path(sys.argv[1]), int(sys.argv[2])
settings = LiveSettings(merge_min_items=40, merge_share=0.01, publish_interval_s=0.0)
catalogue = LiveCatalogue.open(path, settings=settings)
print("open", flush=True)
for number in range(first, first + 10_000):
    new = {"item_id": f"n{number}", "title": f"thing {number}", "stock": number}
    changes = [Upsert(new), Update("i1", {"stock": number})]
    if number % 2:
        changes.append(Delete(f"n{number - 1}"))
    catalogue.apply(changes)
    print(number, flush=True)
"""


def test_a_killed_writer_loses_nothing_that_it_acknowledged(path: Path) -> None:
    moment = random.Random(0)
    acknowledged = -1
    for _ in range(12):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(acknowledged + 2)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"open\n", child.stderr and child.stderr.read()
        time.sleep(moment.random() * 0.4)
        child.send_signal(signal.SIGKILL)
        told, _ = child.communicate()
        lines = [int(line) for line in told.splitlines(keepends=True) if line.endswith(b"\n")]
        first = acknowledged + 2
        acknowledged = lines[-1] if lines else acknowledged
        catalogue = LiveCatalogue.open(path, settings=QUIET)
        items = catalogue.view.items
        stock = items.get(items.row_of("i1") or 0)["stock"]
        # The call that was cut short may have happened, whole, or not.
        assert stock >= acknowledged
        assert stock <= acknowledged + 1 or not lines
        for number in range(first, acknowledged + 1):
            there = items.row_of(f"n{number}") is not None
            replaced = number % 2 == 0 and number < stock
            assert there != replaced, number
        acknowledged = max(acknowledged, stock)
        catalogue.close()

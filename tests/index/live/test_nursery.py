"""Processes that start writers, and what becomes of both when one of them ends."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from index.errors import ArtifactError
from index.live import nursery as nursery_module
from index.live.catalogue import LiveCatalogue, LiveSettings
from index.live.changes import Delete
from index.live.following import FollowingCatalogue
from index.live.nursery import Nursery
from index.live.writer import Order
from index.snapshot import Snapshot
from tests.index.live.test_following import taken_again, until

QUIET = LiveSettings(merge_automatically=False, publish_interval_s=0.0)

HOLDER = """
import sys, time
from pathlib import Path
from index.live.catalogue import LiveCatalogue
first, second = [LiveCatalogue.open(Path(one), apart=True) for one in sys.argv[1:]]
print(first.writer, second.writer, flush=True)
time.sleep(600)
"""


@pytest.fixture
def paths(base: Snapshot, tmp_path: Path) -> list[Path]:
    return [shutil.copytree(base.path, tmp_path / name) for name in ("first", "second")]


@pytest.fixture
def nursery() -> Generator[Nursery, None, None]:
    shared = Nursery().share()
    yield shared
    shared.leave()


def opened(path: Path, nursery: Nursery | None) -> FollowingCatalogue:
    catalogue = LiveCatalogue.open(path, settings=QUIET, apart=True, nursery=nursery)
    assert isinstance(catalogue, FollowingCatalogue)
    return catalogue


def nurseries() -> list[psutil.Process]:
    """Children of this process from which writers come."""
    found: list[psutil.Process] = []
    for one in psutil.Process().children():
        # One that was killed is a zombie until somebody asks for it.
        with suppress(psutil.NoSuchProcess):
            if "index.live.nursery" in one.cmdline():
                found.append(one)
    return found


def test_writers_of_one_nursery_are_forked_from_one_process_of_one_thread(
    paths: list[Path], nursery: Nursery
) -> None:
    with opened(paths[0], nursery) as first, opened(paths[1], first.nursery) as second:
        [process] = nurseries()
        assert process.num_threads() == 1
        assert process.nice() >= nursery_module.PRIORITY
        group = Path(f"/proc/{process.pid}/autogroup")
        if group.exists():
            assert group.read_text().split()[-1] == str(nursery_module.PRIORITY)
        writers = {one.pid for one in process.children()}
        assert writers == {first.writer, second.writer}
        assert first.apply([Delete("i0")]).applied == second.apply([Delete("i1")]).applied == 1
    until(lambda: not process.children())
    assert nurseries() == [process]


def test_a_nursery_ends_with_the_last_catalogue_that_shares_it(paths: list[Path]) -> None:
    first = opened(paths[0], None)
    second = opened(paths[1], first.nursery)
    first.close()
    first.close()
    assert second.apply([Delete("i0")]).applied == 1
    assert len(nurseries()) == 1
    second.close()
    assert nurseries() == []


def test_a_killed_nursery_takes_no_writer_along_and_is_replaced(
    paths: list[Path], nursery: Nursery
) -> None:
    with opened(paths[0], nursery) as first:
        [process] = nurseries()
        process.kill()
        until(lambda: not nurseries())
        assert first.apply([Delete("i0")]).applied == 1
        with opened(paths[1], nursery) as second:
            assert second.apply([Delete("i0")]).applied == 1
        # A writer whose nursery is gone can be seen off, too.
        os.kill(first.writer, signal.SIGKILL)
        taken_again(first, Delete("i1"))


def test_a_nursery_that_is_about_to_end_is_replaced(
    paths: list[Path], nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, and not yet one whose end can be asked for: its socket is all that tells."""
    with opened(paths[0], nursery):
        [process] = nurseries()
        process.kill()
        until(lambda: not nurseries())
        monkeypatch.setattr(subprocess.Popen, "poll", lambda _: None)
        with opened(paths[1], nursery) as second:
            monkeypatch.undo()
            assert second.apply([Delete("i0")]).applied == 1


def test_what_ends_a_terminal_or_a_group_ends_neither(paths: list[Path], nursery: Nursery) -> None:
    with opened(paths[0], nursery) as catalogue:
        [process] = nurseries()
        for one in (process, *process.children()):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                one.send_signal(number)
        assert catalogue.apply([Delete("i0")]).applied == 1
        assert process.is_running()


def test_a_nursery_that_ends_in_the_middle_of_a_birth_is_one_line(
    tmp_path: Path, nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nursery_module, "BIRTH_S", 30.0)
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def nonsense(_: Order) -> bytes:
            return b"it dies of what it cannot read"

        order = Order.of(tmp_path, tmp_path, QUIET, [])
        monkeypatch.setattr(Order, "to_json", nonsense)
        with pytest.raises(ArtifactError, match=r"no process can write .*: .*ended"):
            nursery.bear(theirs, order)
        monkeypatch.undo()
        # The next one is another's.
        writer = nursery.bear(theirs, order)
    assert writer.wait(60)


def test_nobody_is_left_behind_by_a_killed_process(paths: list[Path]) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, *map(str, paths)], stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        watchdog = threading.Timer(120, holder.kill)
        watchdog.start()
        writers = [int(number) for number in holder.stdout.readline().split()]
        watchdog.cancel()
        assert len(writers) == 2
        family = psutil.Process(holder.pid).children(recursive=True)
        assert {one.pid for one in family} > set(writers)
        holder.kill()
    until(lambda: not any(one.is_running() for one in family))

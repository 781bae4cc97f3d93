"""Killed, or out of disk, at every step: the champion stays loadable and nothing is half there."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest

from models.registry.aliases import AliasHistory
from models.registry.promotion import promote, rollback
from models.registry.publication import publish
from models.registry.registry import Registry
from models.registry.retention import Retention, collect

SCRIPT = Path(__file__).with_name("interrupted.py")
ALL_GOES = Retention(generations=0, min_age_s=0)


class Cut(NamedTuple):
    """One interrupted run, and the registry that it left."""

    step: int
    copy: Path
    killed: bool
    error: str

    @property
    def registry(self) -> Registry:
        return Registry(self.copy / "registry", lock_wait_s=2)


@pytest.fixture
def tmp_path(tmp_path: Path) -> Generator[Path, None, None]:
    """In memory where that can be: syncing a disk thousands of times is what would take time."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with TemporaryDirectory(dir=memory, prefix="onesearch-") as folder:
        yield Path(folder)


@pytest.fixture
def cut(tmp_path: Path) -> Callable[..., list[Cut]]:
    """`cut(action, how, template, …)`: the runs of `interrupted.py`, the last got through."""

    def run(action: str, how: str, template: Path, *arguments: str) -> list[Cut]:
        folder = tmp_path / "copies"
        folder.mkdir(exist_ok=True)
        command = [sys.executable, str(SCRIPT), action, how, str(template), str(folder), *arguments]
        root = str(Path(__file__).parents[3])
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        found: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
        cuts = [Cut(**(one | {"copy": Path(one["copy"])})) for one in found]
        assert len(cuts) > 4
        assert not cuts[-1].killed
        assert not cuts[-1].error
        return cuts

    return run


@pytest.fixture
def template(tmp_path: Path, sources: Any) -> tuple[Path, str]:
    """A folder with a registry whose champion is the first pair, and sources of the second."""
    folder = tmp_path / "template"
    registry = Registry(folder / "registry")
    first = publish(registry, sources.snapshot, sources.first).record.version
    promote(registry, first)
    shutil.copytree(sources.other, folder / "snapshot")
    shutil.copytree(sources.foreign, folder / "checkpoint")
    return folder, first


def check_clean(registry: Registry) -> None:
    """Nothing is left over, in `work` or anywhere else; one event per change of aliases."""
    collect(registry, Retention(generations=100))
    left = [path for path in registry.path.rglob("*") if path.name.startswith(".")]
    assert left == []
    assert list(registry.work.glob("*")) == []
    used = [record.pairing for record in registry.records()[0]]
    assert registry.snapshots.versions() == sorted({one.snapshot for one in used})
    assert registry.checkpoints.versions() == sorted({one.checkpoint for one in used})
    logged = [event["revision"] for event in registry.events() if "revision" in event]
    assert logged == AliasHistory(registry.path / "aliases").revisions()


@pytest.mark.parametrize("how", ["kill", "full"])
@pytest.mark.parametrize("action", ["publish", "move"])
def test_publishing(
    action: str, how: str, template: tuple[Path, str], cut: Callable[..., list[Cut]]
) -> None:
    folder, first = template
    for one in cut(action, how, folder, "snapshot", "checkpoint"):
        choice = one.registry.choose()
        assert [choice.record.version, choice.problems] == [first, ()]
        records, damaged = one.registry.records()
        assert damaged == {}
        for record in records:
            assert one.registry.problems(record.version, fit=one.step % 10 == 0) == []
        if how == "full" and one.error:
            assert "No space left on device" in one.error
        sources = [one.copy / "snapshot", one.copy / "checkpoint"]
        whole = [(source / "manifest.json").exists() for source in sources]
        if all(whole):
            publish(one.registry, *sources, move=action == "move")
        else:
            # A moved source goes only when its copy is registered.
            assert len(records) == 2
        assert len(one.registry.records()[0]) == 2
        check_clean(one.registry)
        shutil.rmtree(one.copy)


@pytest.mark.parametrize("how", ["kill", "full"])
def test_promotion_and_rollback(
    how: str, template: tuple[Path, str], cut: Callable[..., list[Cut]], tmp_path: Path
) -> None:
    folder, first = template
    registry = Registry(folder / "registry")
    second = publish(registry, folder / "snapshot", folder / "checkpoint").record.version
    states = set[tuple[str | None, str | None]]()
    for one in cut("promote", how, folder, second):
        now = one.registry.aliases()
        states.add((now.champion, now.previous))
        assert one.registry.choose().record.version == now.champion
        after = promote(one.registry, second)
        assert [after.champion, after.previous] == [second, first]
        check_clean(one.registry)
        shutil.rmtree(one.copy)
    assert states == {(first, None), (second, first)}
    promote(registry, second)
    states.clear()
    for one in cut("rollback", how, folder):
        now = one.registry.aliases()
        states.add((now.champion, now.previous))
        assert one.registry.choose().problems == ()
        if now.champion == second:
            rollback(one.registry)
        assert one.registry.aliases().champion == first
        check_clean(one.registry)
        shutil.rmtree(one.copy)
    assert states == {(second, first), (first, second)}


def test_removal_cut_off_anywhere_leaves_what_is_named_whole(
    template: tuple[Path, str], cut: Callable[..., list[Cut]]
) -> None:
    folder, first = template
    registry = Registry(folder / "registry")
    publish(registry, folder / "snapshot", folder / "checkpoint")
    for one in cut("collect", "kill", folder):
        choice = one.registry.choose()
        assert [choice.record.version, choice.problems] == [first, ()]
        collect(one.registry, ALL_GOES)
        assert [record.version for record in one.registry.records()[0]] == [first]
        check_clean(one.registry)
        shutil.rmtree(one.copy)

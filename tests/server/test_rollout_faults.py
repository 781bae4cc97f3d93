"""What is damaged, does not fit or is cut off: the champion serves on, whole, and says why."""

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file, save_file

from index import artifact
from models.registry.promotion import promote
from models.registry.record import GenerationRecord, Pairing, write_record

SCRIPT = Path(__file__).with_name("interrupted_server.py")
QUERY = {"query": "red oak desk", "limit": 36}
WEIGHTS = "model.safetensors"


@contextmanager
def searches(client: httpx.Client) -> Generator[set[str], None, None]:
    """Search all the time in the block; the model versions that answered. None may fail."""
    stop, models, wrong = Event(), set[str](), list[str]()

    def search() -> None:
        with httpx.Client(base_url=client.base_url, timeout=30) as own:
            while not stop.is_set():
                answer = own.post("/v1/search", json=QUERY)
                if answer.status_code != 200 or answer.json()["degraded"]:
                    wrong.append(answer.text)
                else:
                    models.add(answer.json()["model_version"])

    thread = Thread(target=search)
    thread.start()
    try:
        yield models
    finally:
        until = time.monotonic() + 30
        while not models and not wrong and time.monotonic() < until:
            time.sleep(0.01)
        stop.set()
        thread.join()
    assert wrong == []


def register_damaged(published: Any, version: str, make: Callable[[Path], None]) -> str:
    """A generation whose checkpoint is `version`'s with files that `make` changed, under hashes of
    its own: only who looks inside finds what is wrong."""
    registry = published.registry
    record: GenerationRecord = registry.record(version)
    source, folder = registry.paths(record)[1], registry.path.parent / "made"
    kept = artifact.read(source, "checkpoint").extra
    with artifact.create(folder, "checkpoint") as draft:
        for file in source.iterdir():
            if file.name != "manifest.json":
                (draft.path / file.name).write_bytes(file.read_bytes())
        make(draft.path)
        draft.manifest.update(kept)
    return register_pair(published, record.pairing, folder)


def register_pair(published: Any, pairing: Pairing, checkpoint: Path) -> str:
    """Put a checkpoint and a record into the registry, past all that publishing checks."""
    registry = published.registry
    found = artifact.read(checkpoint, "checkpoint").version
    checkpoint.rename(registry.checkpoints.path(found))
    pairing = replace(pairing, checkpoint=found)
    write_record(registry.generations, GenerationRecord(pairing.version, pairing, 1.0))
    return pairing.version


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def with_a_codec_of_others(folder: Path) -> None:
    path = folder / "onesearch.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"codec_id": "0" * 12}))


def with_cut_tokens(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (without_a_tensor, "model.layers.0.mlp.up_proj.weight"),
        (with_a_codec_of_others, "codec"),
        (with_cut_tokens, "tokenizer.json"),
    ],
)
def test_what_hashes_cannot_find_is_refused_with_its_reason(
    published: Any,
    follow: Callable[..., httpx.Client],
    make: Callable[[Path], None],
    told: str,
):
    version = register_damaged(published, published.second, make)
    client = follow()
    with searches(client) as models:
        for what in ("load", "promote"):
            check_refused(published, client, version, told, what)
    assert models == {published.registry.record(published.first).pairing.checkpoint}
    # The way to a sound one is not barred.
    promoted = client.post(f"/admin/generations/{published.second}:promote", json={})
    assert promoted.status_code == 200


@pytest.mark.parametrize("part", ["snapshot", "checkpoint", "generation"])
@pytest.mark.parametrize("file", ["manifest.json", "largest"])
def test_files_that_are_cut_short_are_named(
    published: Any, follow: Callable[..., httpx.Client], part: str, file: str
):
    registry = published.registry
    record = registry.record(published.foreign)
    snapshot, checkpoint = registry.paths(record)
    folders = {
        "snapshot": snapshot,
        "checkpoint": checkpoint,
        "generation": registry.generations / record.version,
    }
    files = [path for path in folders[part].rglob("*") if path.is_file()]
    wrong = folders[part] / file if file == "manifest.json" else None
    if wrong is None:
        wrong = max(files, key=lambda path: (path.name != "manifest.json", path.stat().st_size))
    client = follow()
    whole = wrong.read_bytes()
    with searches(client) as models:
        for damaged in (whole[: len(whole) // 2], b""):
            wrong.write_bytes(damaged)
            told = str(wrong.relative_to(registry.path))
            check_refused(published, client, published.foreign, told, "promote")
    assert models == {registry.record(published.first).pairing.checkpoint}
    wrong.write_bytes(whole)
    promoted = client.post(f"/admin/generations/{published.foreign}:promote", json={})
    assert promoted.status_code == 200


def check_refused(published: Any, client: httpx.Client, version: str, told: str, what: str) -> None:
    answer = client.post(f"/admin/generations/{version}:{what}", json={})
    assert [answer.status_code, answer.json()["type"]] == [409, "/problems/generation-refused"]
    assert told in answer.json()["detail"]
    assert str(published.path) not in answer.text
    assert client.get("/readyz").json()["generation"]["version"] == published.first
    assert published.registry.aliases().champion == published.first


@pytest.fixture
def cut(published: Any) -> Generator[Callable[[str], list[dict[str, Any]]], None, None]:
    """`cut(how)`: what `interrupted_server.py` tells of each step."""
    memory = Path("/dev/shm")
    where = memory if os.access(memory, os.W_OK) else None
    with TemporaryDirectory(dir=where, prefix="onesearch-") as folder:

        def run(how: str) -> list[dict[str, Any]]:
            command = [sys.executable, str(SCRIPT), how, str(published.path), folder]
            done = subprocess.run(
                [*command, published.second],
                capture_output=True,
                text=True,
                timeout=300,
                env=os.environ
                | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
            )
            assert done.returncode == 0, done.stderr
            return [json.loads(line) for line in done.stdout.splitlines()]

        yield run


def check_whole(published: Any, facts: dict[str, Any], truth: dict[str, dict[str, float]]) -> None:
    """What is served is one generation, and so is what was found."""
    record = published.registry.record(facts["generation"]["version"])
    assert facts["degraded"] == []
    assert facts["model"] == record.pairing.checkpoint
    expected = truth.setdefault(facts["model"], facts["hits"])
    assert facts["hits"] == pytest.approx(expected, abs=1e-3)


def test_a_server_killed_at_any_step_of_a_promotion_is_started_again_whole(
    published: Any, cut: Callable[[str], list[dict[str, Any]]]
):
    told = cut("kill")
    truth: dict[str, dict[str, float]] = {}
    check_whole(published, told[0]["before"], truth)
    for one in told:
        check_whole(published, one["after"], truth)
        generation = one["after"]["generation"]
        assert [generation["alias"], generation["problem"]] == ["champion", ""]
    assert [one["status"] for one in told] == [0] * (len(told) - 1) + [200]
    assert len(told) > 10
    served = [one["after"]["generation"]["version"] for one in told]
    # The old one up to some step, from then on the new one; each at several steps.
    turn = served.index(published.second)
    assert served == [published.first] * turn + [published.second] * (len(told) - turn)
    assert turn > 1
    assert turn < len(told) - 1


def test_a_full_disk_at_any_step_of_a_promotion_leaves_the_champion_serving(
    published: Any, cut: Callable[[str], list[dict[str, Any]]]
):
    told = cut("full")
    truth: dict[str, dict[str, float]] = {}
    check_whole(published, told[0]["before"], truth)
    *refused, last = told
    assert len(refused) > 2
    for one in refused:
        assert one["status"] == 409
        assert "No space left on device" in one["told"]
    for one in told:
        check_whole(published, one["after"], truth)
    # A refusal is true: what could not be synced after everybody can read it is not refused.
    served = [one["after"]["generation"]["version"] for one in told]
    assert served == [published.first] * len(refused) + [published.second]
    assert last["status"] == 200


def test_a_decision_that_could_not_be_synced_is_answered_as_it_is(
    published: Any, follow: Callable[..., httpx.Client], monkeypatch: pytest.MonkeyPatch
):
    client = follow()

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("models.registry.aliases.sync", full)
    promoted = client.post(f"/admin/generations/{published.second}:promote", json={})
    assert [promoted.status_code, promoted.json()["live"]["version"]] == [200, published.second]
    assert published.registry.aliases().champion == published.second
    state = promote(published.registry, published.first)
    assert [state.champion, "No space left" in state.unsynced] == [published.first, True]
    # It is of this change only.
    monkeypatch.undo()
    assert published.registry.aliases().unsynced == ""
    assert promote(published.registry, published.second).unsynced == ""

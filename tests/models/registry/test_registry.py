import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from index.errors import ArtifactError, ConfigError
from models.registry.leases import LEASE_TTL_S
from models.registry.process import Process
from models.registry.promotion import AliasMoved, challenge, promote, rollback
from models.registry.publication import publish
from models.registry.registry import Provenance, Registry
from models.registry.retention import Retention, collect

Both = Callable[[], tuple[str, str]]
CONTENDING = Path(__file__).with_name("contending.py")
ALL_GOES = Retention(generations=0, min_age_s=0)
ROOT = str(Path(__file__).parents[3])


def test_a_generation_is_stored_once_with_its_lineage(registry: Registry, sources: Any) -> None:
    assert not registry.exists
    by = Provenance("ann", "first try")
    first = publish(registry, sources.snapshot, sources.first, by=by)
    assert first.is_new
    promote(registry, first.record.version)
    second = publish(registry, first.record.pairing.snapshot, sources.second, metrics={"gain": 1})
    assert second.record.pairing.snapshot == first.record.pairing.snapshot
    assert len(registry.snapshots.versions()) == 1
    assert len(registry.checkpoints.versions()) == 2
    assert second.record.parents == (first.record.version,)
    assert second.record.metrics == {"recall@10": 0.5, "gain": 1}
    assert second.record.lineage["checkpoint_parents"] == ["p1"]
    assert second.record.pairing.simulated
    assert second.record.pairing.dataset_version == "tiny"
    again = publish(registry, sources.snapshot, sources.first, by=Provenance("bob"))
    assert not again.is_new
    assert again.record == first.record
    assert [again.record.who, again.record.why] == ["ann", "first try"]
    records, damaged = registry.records()
    assert [one.version for one in records] == [second.record.version, first.record.version]
    assert damaged == {}
    for one in records:
        registry.verify(one.version)


def test_aliases_move_together_and_tell_who_and_why(registry: Registry, published: Both) -> None:
    first, second = published()
    assert registry.aliases().named() == {}
    with pytest.raises(ConfigError, match="no champion"):
        registry.choose()
    promote(registry, first, expected=None, by=Provenance("ann", "start"))
    challenge(registry, second)
    with pytest.raises(ConfigError, match="is the champion"):
        challenge(registry, first)
    now = promote(registry, second, expected=first, by=Provenance("bob", "+2 % recall"))
    assert now.named() == {"champion": second, "previous": first}
    assert promote(registry, second).revision == now.revision
    back = rollback(registry, expected=second, by=Provenance("eve", "errors"))
    assert back.named() == {"champion": first, "previous": second}
    assert [state.what for state in registry.history()] == [
        "promote",
        "challenge",
        "promote",
        "rollback",
    ]
    told = [event for event in registry.events() if event["what"] != "publish"]
    assert [event["who"] for event in told[::2]] == ["ann", "bob"]
    assert [told[-1]["why"], told[-1]["champion"]] == ["errors", first]
    assert registry.choose().record.version == first
    assert registry.resolve("previous") == registry.resolve(second[:5]) == second


def test_a_decision_on_what_is_no_longer_so_is_refused(registry: Registry, published: Both) -> None:
    first, second = published()
    promote(registry, first)
    with pytest.raises(AliasMoved, match=f"champion is {first} by now, expected none"):
        promote(registry, second, expected=None)
    with pytest.raises(AliasMoved, match="challenger is not set"):
        challenge(registry, second, expected=first)
    with pytest.raises(ConfigError, match="no previous"):
        rollback(registry)
    assert registry.aliases().revision == 1


def test_what_does_not_fit_is_refused_and_leaves_nothing(registry: Registry, sources: Any) -> None:
    with pytest.raises(ArtifactError, match=r"was trained for codec .* snapshot .* has"):
        publish(registry, sources.other, sources.first)
    with pytest.raises(ArtifactError, match="is a checkpoint, expected a snapshot"):
        publish(registry, sources.first, sources.first)
    with pytest.raises(ArtifactError, match="snapshot nowhere is not there"):
        publish(registry, "nowhere", sources.first)
    assert registry.records() == ([], {})
    assert list(registry.work.glob("*")) == []
    assert registry.snapshots.versions() == registry.checkpoints.versions() == []


def test_a_damaged_source_is_named(registry: Registry, sources: Any, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(sources.first, copy)
    flip(copy / "model.safetensors")
    with pytest.raises(ArtifactError, match=r"copy/model\.safetensors differs from its manifest"):
        publish(registry, sources.snapshot, copy)
    publish(registry, sources.snapshot, sources.first)
    with pytest.raises(ArtifactError, match=r"copy/model\.safetensors differs"):
        publish(registry, sources.snapshot, copy)
    listing = copy / "manifest.json"
    listing.write_text(listing.read_text().replace('"version": "', '"version": "0'))
    with pytest.raises(ArtifactError, match="its list of files makes"):
        publish(registry, sources.snapshot, copy)


@pytest.mark.parametrize(
    ("name", "harm", "told"),
    [
        ("model.safetensors", "flip", "model.safetensors differs from its manifest's sha256"),
        ("model.safetensors", "remove", "model.safetensors is missing"),
        ("tokenizer.json", "cut", r"tokenizer.json has \d+ bytes, its manifest says"),
        ("manifest.json", "cut", "manifest.json is not valid JSON"),
        ("manifest.json", "remove", "has no manifest.json"),
    ],
)
def test_damage_is_named_and_previous_is_served(
    name: str, harm: str, told: str, registry: Registry, published: Both, sources: Any
) -> None:
    first, second = published()
    promote(registry, first)
    promote(registry, second)
    path = registry.paths(registry.record(second))[1] / name
    {"flip": flip, "cut": cut, "remove": Path.unlink}[harm](path)
    with pytest.raises(ArtifactError, match=told):
        registry.verify(second)
    choice = registry.choose()
    assert [choice.alias, choice.record.version] == ["previous", first]
    assert second in choice.problems[0]
    rollback(registry)
    with pytest.raises(ArtifactError, match=told):
        promote(registry, second)
    assert registry.aliases().champion == first
    # Publishing the same pair again mends it.
    publish(registry, sources.snapshot, sources.second)
    registry.verify(second)
    promote(registry, second)


def test_a_damaged_record_is_named_and_mended(
    registry: Registry, published: Both, sources: Any
) -> None:
    first, second = published()
    promote(registry, first)
    cut(registry.generations / first / "generation.json")
    assert "generation.json has" in registry.records()[1][first]
    with pytest.raises(ArtifactError, match="no generation can be served"):
        registry.choose()
    # What the champion uses is not known, so no part may go.
    sweep = collect(registry, ALL_GOES)
    assert [sweep.generations, sweep.checkpoints] == [(second,), ()]
    publish(registry, sources.snapshot, sources.first)
    assert registry.choose().record.version == first


def test_a_manifest_that_lies_is_found(registry: Registry, published: Both) -> None:
    first, _ = published()
    snapshot, _ = registry.paths(registry.record(first))
    manifest = snapshot / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"dataset_version": "tiny"', '"x": "y"'))
    [problem] = registry.problems(first)
    assert "was published as" in problem


def test_a_damaged_state_of_the_aliases_is_passed_over_and_told(
    registry: Registry, published: Both
) -> None:
    first, second = published()
    promote(registry, first)
    promote(registry, second)
    newest = max((registry.path / "aliases").glob("*.json"))
    newest.write_text(newest.read_text().replace(second, first))
    choice = registry.choose()
    assert choice.record.version == first
    assert "00000002.json differs from its own sha256" in choice.problems[0]
    assert "00000002.json" in registry.problems_of_aliases()[0]
    with pytest.raises(ArtifactError, match="so nothing is"):
        collect(registry, ALL_GOES)
    assert promote(registry, second).revision == 3
    assert registry.choose().problems == ()
    for path in (registry.path / "aliases").glob("*.json"):
        path.write_text("{")
    with pytest.raises(ArtifactError, match=r"no state of .* can be read"):
        registry.choose()


def test_moving_removes_the_sources_and_nothing_else(
    registry: Registry, sources: Any, tmp_path: Path
) -> None:
    snapshot, checkpoint = tmp_path / "s", tmp_path / "c"
    shutil.copytree(sources.snapshot, snapshot)
    shutil.copytree(sources.first, checkpoint)
    (checkpoint / "notes.txt").write_text("mine")
    inode = (snapshot / "items").stat().st_ino
    weights = (checkpoint / "model.safetensors").stat().st_ino
    done = publish(registry, snapshot, checkpoint, move=True)
    assert not snapshot.exists()
    assert [path.name for path in checkpoint.iterdir()] == ["notes.txt"]
    kept = registry.paths(done.record)
    assert (kept[1] / "model.safetensors").stat().st_ino == weights
    assert (kept[0] / "items").stat().st_ino != inode
    registry.verify(done.record.version)


def test_a_copy_does_not_change_with_its_source(
    registry: Registry, sources: Any, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "c"
    shutil.copytree(sources.first, checkpoint)
    version = publish(registry, sources.snapshot, checkpoint).record.version
    flip(checkpoint / "model.safetensors")
    registry.verify(version)


def test_changes_of_a_catalogue_are_neither_moved_nor_removed(
    registry: Registry, sources: Any, tmp_path: Path
) -> None:
    snapshot = tmp_path / "s"
    shutil.copytree(sources.snapshot, snapshot)
    beside = tmp_path / "s.live" / "log"
    beside.mkdir(parents=True)
    assert publish(registry, snapshot, sources.first).notes == ()
    (beside / "00000000000000000001.log").write_bytes(b"onelog\x00\x01" + bytes(40))
    with pytest.raises(ArtifactError, match="would lose its snapshot"):
        publish(registry, snapshot, sources.first, move=True)
    done = publish(registry, snapshot, sources.first)
    assert "do not come along" in done.notes[0]
    stored = done.record.pairing.snapshot
    log = registry.snapshots.path(stored + ".live") / "log"
    log.mkdir(parents=True)
    (log / "00000000000000000001.log").write_bytes(b"onelog\x00\x01" + bytes(40))
    sweep = collect(registry, ALL_GOES)
    assert sweep.generations == (done.record.version,)
    assert sweep.kept_snapshots == {stored: "has changes beside it"}
    assert log.is_dir()
    (log / "00000000000000000001.log").write_bytes(b"onelog\x00\x01")
    assert collect(registry, ALL_GOES).snapshots == (stored,)
    assert list(registry.snapshots.directory.iterdir()) == []


def test_what_is_named_pinned_young_or_among_the_newest_stays(
    registry: Registry, published: Both, sources: Any
) -> None:
    first, second = published()
    third = publish(registry, sources.other, sources.foreign).record.version
    promote(registry, second)
    lease = registry.pin(first, "a gateway")
    young = collect(registry, Retention(generations=0), dry_run=True)
    assert young.generations == ()
    assert "younger than 60 minutes" in young.kept[third]
    assert collect(registry, Retention(1, 0), dry_run=True).kept[third] == ("one of the newest 1",)
    sweep = collect(registry, ALL_GOES, by=Provenance("ann", "room"))
    assert sweep.generations == (third,)
    assert sweep.kept[first] == (f"pinned by process {os.getpid()} (a gateway)",)
    assert len(registry.snapshots.versions()) == 1
    registry.release(lease)
    assert collect(registry, ALL_GOES).generations == (first,)
    assert [one.version for one in registry.records()[0]] == [second]
    removed = [event for event in registry.events() if event["what"] == "remove"]
    assert [removed[0]["generation"], removed[0]["why"]] == [third, "room"]
    assert registry.choose(verify=True).record.version == second


def test_a_pin_ends_with_its_process_and_on_other_machines_with_its_time(
    registry: Registry, published: Both
) -> None:
    first, _ = published()
    code = (
        "import sys, os, pathlib; from models.registry.registry import Registry;"
        "Registry(pathlib.Path(sys.argv[1])).pin(sys.argv[2], 'killed', 9e9); os.abort()"
    )
    command = [sys.executable, "-c", code, str(registry.path), first]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": ROOT}, capture_output=True, timeout=60)
    assert len(list((registry.path / "leases").iterdir())) == 1
    assert registry.leases() == []
    lease = registry.pin(first, "here", ttl_s=-1)
    assert [one.why for one in registry.leases()] == ["here"]
    now = time.time()
    elsewhere = replace(lease, machine="elsewhere", expires=now + LEASE_TTL_S)
    assert elsewhere.holds(now)
    assert not elsewhere.holds(now + LEASE_TTL_S)
    reused = Process(lease.machine, os.getpid(), lease.started - 60)
    assert reused.runs_here() is False
    assert registry.renew(lease, 60).expires > now
    registry.release(lease)
    registry.release(lease)
    with pytest.raises(ArtifactError, match="expired"):
        registry.renew(lease)
    with pytest.raises(ArtifactError, match="is not there"):
        registry.pin("0123456789ab", "nothing")
    with registry.pinned(first, "block"):
        assert len(registry.leases()) == 1
    collect(registry, ALL_GOES)
    assert list((registry.path / "leases").iterdir()) == []


def test_processes_that_publish_promote_and_remove_at_once(
    registry: Registry, sources: Any, published: Both
) -> None:
    versions = published()
    command = [sys.executable, str(CONTENDING), str(registry.path), "12", *sources[3:], *versions]
    environment = os.environ | {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    answers: list[dict[str, int]] = []
    for one in running:
        out, error = one.communicate(timeout=120)
        assert one.returncode == 0, error
        answers.append(json.loads(out))
    made = sum(answer["made"] for answer in answers)
    assert made + sum(answer["lost"] for answer in answers) == 36
    history = registry.history()
    assert [state.revision for state in history] == list(range(1, made + 1))
    for before, after in pairwise(history):
        assert after.previous == before.champion != after.champion
    assert len([event for event in registry.events() if "revision" in event]) == made
    assert registry.choose().problems == ()
    assert len(registry.records()[0]) == 3


def test_the_lock_is_waited_for_and_then_told(registry: Registry, published: Both) -> None:
    first, _ = published()
    hasty = Registry(registry.path, lock_wait_s=0.05)
    with registry.writing(), pytest.raises(ArtifactError, match=f"number {os.getpid()}"):
        promote(hasty, first)
    assert promote(hasty, first).champion == first


def test_a_folder_of_something_else_is_no_registry(tmp_path: Path, sources: Any) -> None:
    (tmp_path / "letters").mkdir()
    with pytest.raises(ArtifactError, match="is no registry, it holds letters"):
        publish(Registry(tmp_path), sources.snapshot, sources.first)
    (tmp_path / "registry.json").write_text('{"kind": "registry", "format_version": 2}')
    with pytest.raises(ArtifactError, match="reads version 1"):
        publish(Registry(tmp_path), sources.snapshot, sources.first)


def test_names_that_lead_nowhere(registry: Registry, published: Both) -> None:
    first, second = published()
    with pytest.raises(ConfigError, match=f"there are: {min(first, second)}, {max(first, second)}"):
        registry.resolve("zzzz")
    with pytest.raises(ConfigError, match="has no champion"):
        registry.resolve("champion")
    with pytest.raises(ConfigError, match="there is no generation"):
        registry.resolve(first[:3])


def test_a_torn_line_of_the_log_is_passed_over(registry: Registry, published: Both) -> None:
    first, second = published()
    promote(registry, first)
    log = registry.path / "events.jsonl"
    log.write_bytes(log.read_bytes()[:-20])
    promote(registry, second)
    told = [event["revision"] for event in registry.events() if event["what"] == "promote"]
    assert told == [1, 2]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

"""Published directories are whole or absent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from index import artifact
from index.errors import ArtifactError


def publish(path: Path, text: str = "hello", *, overwrite: bool = False) -> None:
    with artifact.create(path, "thing", overwrite=overwrite) as draft:
        (draft.path / "inner").mkdir()
        (draft.path / "inner" / "a.txt").write_text(text)
        draft.manifest["parents"] = ["p"]


def test_published_directory_verifies_and_carries_extra_keys(tmp_path: Path) -> None:
    publish(tmp_path / "x")
    manifest = artifact.read(tmp_path / "x", "thing")
    assert manifest.extra == {"parents": ["p"]}
    assert set(manifest.files) == {"inner/a.txt"}
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_equal_contents_give_equal_versions(tmp_path: Path) -> None:
    for name, text in [("x", "same"), ("y", "same"), ("z", "other")]:
        publish(tmp_path / name, text)
    versions = [artifact.read(tmp_path / name, "thing").version for name in "xyz"]
    assert versions[0] == versions[1] != versions[2]


def test_existing_directory_is_refused_and_kept(tmp_path: Path) -> None:
    publish(tmp_path / "x", "old")
    with pytest.raises(ArtifactError, match="already exists"):
        publish(tmp_path / "x", "new")
    assert (tmp_path / "x/inner/a.txt").read_text() == "old"
    publish(tmp_path / "x", "new", overwrite=True)
    assert (tmp_path / "x/inner/a.txt").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_failure_inside_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), artifact.create(tmp_path / "x", "thing") as draft:
        (draft.path / "a").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["change", "truncate", "remove", "kind", "manifest"])
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    publish(tmp_path / "x")
    target = tmp_path / "x/inner/a.txt"
    match damage:
        case "change":
            target.write_text("hellO")
        case "truncate":
            target.write_text("hell")
        case "remove":
            target.unlink()
        case "manifest":
            (tmp_path / "x/manifest.json").write_text("{")
        case _:
            pass
    expected = {"kind": "is a thing", "manifest": "not valid JSON"}.get(damage, "a.txt")
    with pytest.raises(ArtifactError, match=expected):
        artifact.read(tmp_path / "x", "other" if damage == "kind" else "thing")


def test_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not there"):
        artifact.read(tmp_path / "none", "thing")


def test_killed_writer_publishes_nothing_and_is_cleaned_up(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from index import artifact\n"
        "with artifact.create(Path(sys.argv[1]), 'thing') as d:\n"
        "    (d.path / 'a').write_text('half'); print('ready', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "x")], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    assert not (tmp_path / "x").exists()
    assert len(list(tmp_path.iterdir())) == 1
    time.sleep(0.05)
    publish(tmp_path / "x")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_writer_killed_between_its_two_renames_loses_nothing(tmp_path: Path) -> None:
    publish(tmp_path / "x", "old")
    code = (
        "import os, signal, sys; from pathlib import Path; from index import artifact\n"
        "rename = Path.rename\n"
        "def killed_after_first(self, target):\n"
        "    rename(self, target); os.kill(os.getpid(), signal.SIGKILL)\n"
        "Path.rename = killed_after_first\n"
        "with artifact.create(Path(sys.argv[1]), 'thing', overwrite=True) as d:\n"
        "    (d.path / 'a').write_text('new')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")])
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "x").exists()
    artifact.read(tmp_path / "x", "thing")
    assert (tmp_path / "x/inner/a.txt").read_text() == "old"
    publish(tmp_path / "x", "newer", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    "manifest",
    [
        "[]",
        '"text"',
        '{"kind": "thing", "format_version": 1, "files": []}',
        '{"kind": "thing", "format_version": 1, "files": {"a": 1}}',
        '{"kind": "thing", "format_version": 1, "files": {"../a": {"bytes": 1, "sha256": "x"}}}',
        '{"kind": "thing", "format_version": 1, "files": {}}',
    ],
)
def test_a_manifest_of_another_shape_is_named(tmp_path: Path, manifest: str) -> None:
    publish(tmp_path / "x")
    (tmp_path / "x/manifest.json").write_text(manifest)
    with pytest.raises(ArtifactError, match=r"manifest\.json .*damaged"):
        artifact.read(tmp_path / "x", "thing")


def test_overwrite_replaces_directories_of_its_own_kind_only(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/p.jpg").write_text("precious")
    publish(tmp_path / "other")
    for name, kind in [("photos", "thing"), ("other", "snapshot")]:
        with (
            pytest.raises(ArtifactError, match="so it is not replaced"),
            artifact.create(tmp_path / name, kind, overwrite=True),
        ):
            pass
    assert (tmp_path / "photos/p.jpg").read_text() == "precious"
    assert artifact.read(tmp_path / "other", "thing")


def test_a_file_in_place_of_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="is a file"):
        artifact.read(tmp_path / "file", "thing")
    with (
        pytest.raises(ArtifactError, match="cannot be written"),
        artifact.create(tmp_path / "file" / "x", "thing"),
    ):
        pass

"""Snapshots, checkpoints and registries made by somebody else: nothing of them runs, leaves its
directory, or unpacks."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.arrays import open_array
from index.errors import ArtifactError
from index.snapshot import Snapshot
from models.checkpoint import Checkpoint
from models.registry.publication import publish
from models.registry.registry import Registry
from models.registry.store import version_of

MILLION = 1_000_000


@pytest.fixture
def checkpoint(tiny_pair: Any, tmp_path: Path) -> Path:
    copy = tmp_path / "checkpoint"
    shutil.copytree(tiny_pair.checkpoint, copy)
    return copy


def seal(directory: Path, *more: str) -> None:
    """Make the manifest say what an attacker wants it to say: every hash is right."""
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in (*manifest["files"], *more):
        data = (directory / name).read_bytes()
        facts = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        manifest["files"][name] = facts
    manifest["files"] = dict(sorted(manifest["files"].items()))
    manifest["version"] = version_of(manifest["files"])
    path.write_text(json.dumps(manifest))


class Trap:
    """Says that it was unpickled."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was read",))


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.pth", "weights.pkl", "model.ckpt", "setup.py"]
)
def test_pickles_and_code_are_not_taken(
    checkpoint: Path, tiny_pair: Any, tmp_path: Path, name: str
):
    (checkpoint / name).write_bytes(pickle.dumps(Trap()))
    seal(checkpoint, name)
    with pytest.raises(ArtifactError, match="runs when it is read"):
        Checkpoint.open(checkpoint)
    registry = Registry(tmp_path / "registry")
    with pytest.raises(ArtifactError, match="runs when it is read"):
        publish(registry, tiny_pair.snapshot, checkpoint)
    assert not [path for path in registry.path.rglob("*") if path.name == name]


@pytest.mark.parametrize("packed", ["pickle", "zip"])
def test_weights_are_safetensors_whatever_they_are_called(checkpoint: Path, packed: str):
    weights = checkpoint / "model.safetensors"
    if packed == "pickle":
        weights.write_bytes(pickle.dumps(Trap()))
    else:
        with zipfile.ZipFile(weights, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Trap()))
            archive.writestr("zeros", b"\0" * (64 * 1024 * 1024))
    seal(checkpoint)
    with pytest.raises(ArtifactError, match="cannot be read"):
        Checkpoint.open(checkpoint)


@pytest.mark.parametrize("size", [1 << 40, (1 << 63) - 1, 200 * MILLION])
def test_a_header_larger_than_its_file_is_refused(checkpoint: Path, size: int):
    (checkpoint / "model.safetensors").write_bytes(struct.pack("<Q", size) + b"{}")
    seal(checkpoint)
    with pytest.raises(ArtifactError, match="cannot be read"):
        Checkpoint.open(checkpoint)


@pytest.mark.parametrize("name", ["config.json", "onesearch.json", "tokenizer.json"])
def test_deep_json_is_refused(checkpoint: Path, name: str):
    (checkpoint / name).write_bytes(b'{"a":' * MILLION + b"1" + b"}" * MILLION)
    seal(checkpoint)
    with pytest.raises(ArtifactError, match=name):
        Checkpoint.open(checkpoint)


def test_a_deep_manifest_is_refused(checkpoint: Path):
    (checkpoint / "manifest.json").write_bytes(b"[" * MILLION)
    with pytest.raises(ArtifactError, match="not valid JSON"):
        Checkpoint.open(checkpoint)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../outside", "..", "a/.."])
def test_names_stay_inside(checkpoint: Path, tmp_path: Path, name: str):
    (tmp_path / "outside").write_text("secret")
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    facts = {"sha256": hashlib.sha256(b"secret").hexdigest(), "bytes": 6}
    manifest["files"][name] = facts
    manifest["version"] = version_of(manifest["files"])
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="no manifest of this program"):
        Checkpoint.open(checkpoint)


@pytest.mark.parametrize("whole", [False, True], ids=["a file", "a directory"])
def test_links_stay_inside(checkpoint: Path, tiny_pair: Any, tmp_path: Path, whole: bool):
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    if whole:
        (checkpoint / "inside").symlink_to(outside)
    else:
        (checkpoint / "inside").mkdir()
        (checkpoint / "inside" / "secret").symlink_to(outside / "secret")
    seal(checkpoint, "inside/secret")
    for verify in (True, False):
        with pytest.raises(ArtifactError, match="outside of the directory"):
            Checkpoint.open(checkpoint, verify=verify)
    with pytest.raises(ArtifactError, match="outside of the directory"):
        publish(Registry(tmp_path / "registry"), tiny_pair.snapshot, checkpoint)


def test_the_directory_itself_may_be_a_link(checkpoint: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(checkpoint)
    assert Checkpoint.open(tmp_path / "link").path == tmp_path / "link"


def test_shards_are_named_inside_too(checkpoint: Path, tmp_path: Path):
    """An index of shards is for starting from a foreign checkpoint; its names have no folders."""
    from models.checkpoint import _read_all_tensors  # pyright: ignore[reportPrivateUsage]

    weights = checkpoint / "model.safetensors"
    weights.rename(tmp_path / "model.safetensors")
    index = {"weight_map": {"a": "../model.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ArtifactError, match="cannot be read"):
        _read_all_tensors(checkpoint)


def test_arrays_are_neither_pickles_nor_larger_than_their_files(tmp_path: Path):
    path = tmp_path / "a.npy"
    np.save(path, np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(ArtifactError, match="cannot be read"):
        open_array(path)
    np.save(path, np.zeros(4, np.float32))
    data = path.read_bytes()
    path.write_bytes(data.replace(b"(4,)", b"(4000000000000,)".ljust(4)))
    with pytest.raises(ArtifactError, match="cannot be read"):
        open_array(path)
    np.savez_compressed(tmp_path / "b.npz", zeros=np.zeros(1 << 20))
    with pytest.raises((ArtifactError, AttributeError)):
        open_array(tmp_path / "b.npz")


def test_a_snapshot_of_which_a_part_is_swapped_is_refused(tiny_pair: Any, tmp_path: Path):
    copy = tmp_path / "snapshot"
    shutil.copytree(tiny_pair.snapshot, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    for name in manifest["files"]:
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ArtifactError, match="sha256"):
            Snapshot.open(copy)
        (copy / name).write_bytes(whole)
    Snapshot.open(copy)

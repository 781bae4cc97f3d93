from pathlib import Path

import pytest

import server.memory
from server.memory import NotEnoughMemory, available_bytes, check_memory, needed_bytes


def test_the_need_follows_the_files(tmp_path: Path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "weights").write_bytes(b"0" * 1000)
    assert needed_bytes([tmp_path]) == 2000
    check_memory([tmp_path])


def test_what_does_not_fit_is_told_in_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server.memory, "available_bytes", lambda _: 100_000_000)
    with pytest.raises(NotEnoughMemory, match="134 MB are kept free, 100 MB are available"):
        check_memory([tmp_path])


def test_a_control_groups_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server.memory, "_CONTROL_GROUP", tmp_path)
    unlimited = available_bytes()
    (tmp_path / "memory.current").write_text("9000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 500\n")
    (tmp_path / "memory.max").write_text("10000\n")
    assert available_bytes() == 1500
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes() > 0.5 * unlimited

import os
import resource
from pathlib import Path

import pytest

from index.errors import ArtifactError
from index.live.log import ChangeLog, LogRecord, read_log, repair, segments_of


def written(directory: Path, payloads: list[bytes], first: int = 1) -> Path:
    """A log of one segment, a record of two changes for each payload."""
    log = ChangeLog(directory, first - 1)
    for payload in payloads:
        log.append(payload, 2)
    log.close()
    return segments_of(directory)[-1]


def test_what_was_appended_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, [b"one", b"", b"three"])
    assert list(read_log(tmp_path, 0)) == [
        LogRecord(1, 2, b"one"),
        LogRecord(3, 4, b""),
        LogRecord(5, 6, b"three"),
    ]
    assert [record.payload for record in read_log(tmp_path, 2)] == [b"", b"three"]
    assert list(read_log(tmp_path, 6)) == []
    assert repair(tmp_path) is None
    log = ChangeLog(tmp_path, 6)
    assert log.append(b"four", 1) == 7
    assert log.n_bytes == path.stat().st_size
    log.close()
    assert [record.first for record in read_log(tmp_path, 0)] == [1, 3, 5, 7]


def test_a_record_torn_at_any_byte_is_cut_off(tmp_path: Path) -> None:
    path = written(tmp_path / "whole", [b"first", b"second record"])
    data = path.read_bytes()
    sound = len(data) - len(b"second record") - 24
    for length in range(sound, len(data)):
        directory = tmp_path / f"cut{length}"
        directory.mkdir()
        (directory / path.name).write_bytes(data[:length])
        note = repair(directory)
        assert (note is None) == (length == sound)
        assert [record.payload for record in read_log(directory, 0)] == [b"first"]
        log = ChangeLog(directory, 2)
        log.append(b"again", 1)
        log.close()
        assert [record.payload for record in read_log(directory, 0)] == [b"first", b"again"]


def test_a_tail_that_was_promised_but_not_filled_is_cut_off(tmp_path: Path) -> None:
    path = written(tmp_path, [b"first", b"second record"])
    data = path.read_bytes()
    for torn in (data + bytes(100), data[:-3] + bytes(3)):
        path.write_bytes(torn)
        assert "unfinished" in (repair(tmp_path) or "")
    assert [record.payload for record in read_log(tmp_path, 0)] == [b"first"]


def test_a_segment_that_was_never_begun_is_removed(tmp_path: Path) -> None:
    path = written(tmp_path, [b"first"])
    for length in range(8):
        later = tmp_path / f"{3:020d}.log"
        later.write_bytes(path.read_bytes()[:length])
        assert "never begun" in (repair(tmp_path) or "")
        assert segments_of(tmp_path) == [path]


def test_a_disk_that_refuses_a_new_segment_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    log = ChangeLog(tmp_path, 0)
    log.append(b"one", 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            log.rotate()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    log.append(b"two", 1)
    log.rotate()
    log.append(b"three", 1)
    log.close()
    assert [path.stem.lstrip("0") for path in segments_of(tmp_path)] == ["1", "3"]
    assert [record.payload for record in read_log(tmp_path, 0)] == [b"one", b"two", b"three"]


def test_what_could_not_be_cut_off_is_cut_off_before_the_next_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = ChangeLog(tmp_path, 0)
    log.append(b"one", 1)

    def refuse(*arguments: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", refuse)
        broken.setattr(os, "ftruncate", refuse)
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output"):
                log.append(b"lost", 1)
    assert log.append(b"two", 1) == 2
    log.close()
    assert [record.payload for record in read_log(tmp_path, 0)] == [b"one", b"two"]


def test_damage_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, [b"first", b"second", b"third"])
    data = path.read_bytes()
    end_of_second = len(data) - len(b"third") - 24
    for at in range(end_of_second):
        damaged = bytearray(data)
        damaged[at] ^= 0x40
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match="damaged"):
            repair(tmp_path)
        with pytest.raises(ArtifactError, match="damaged"):
            list(read_log(tmp_path, 0))
        assert path.read_bytes() == bytes(damaged)


def test_missing_changes_are_an_error(tmp_path: Path) -> None:
    log = ChangeLog(tmp_path, 4)
    log.append(b"5", 1)
    log.rotate()
    log.append(b"6", 1)
    log.rotate()
    log.append(b"7", 1)
    log.close()
    with pytest.raises(ArtifactError, match="missing"):
        list(read_log(tmp_path, 2))
    assert len(list(read_log(tmp_path, 4))) == 3
    segments_of(tmp_path)[1].unlink()
    with pytest.raises(ArtifactError, match="expected 6"):
        list(read_log(tmp_path, 4))


def test_segments_are_dropped_once_merged(tmp_path: Path) -> None:
    log = ChangeLog(tmp_path, 0)
    log.rotate()
    assert len(segments_of(tmp_path)) == 1
    for change in range(4):
        log.append(b"change", 1)
        if change % 2:
            log.rotate()
    assert [path.stem.lstrip("0") for path in segments_of(tmp_path)] == ["1", "3", "5"]
    log.drop_through(3)
    assert [record.first for record in read_log(tmp_path, 2)] == [3, 4]
    assert log.n_bytes == sum(path.stat().st_size for path in segments_of(tmp_path))
    log.drop_through(4)
    assert len(segments_of(tmp_path)) == 1
    log.append(b"change", 1)
    log.close()
    assert [record.first for record in read_log(tmp_path, 4)] == [5]


def test_what_the_disk_refuses_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, [b"first"])
    before = path.read_bytes()
    log = ChangeLog(tmp_path, 2)

    def refuse(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", refuse)
        with pytest.raises(OSError, match="space"):
            log.append(b"second", 1)
    assert path.read_bytes() == before
    assert log.append(b"third", 1) == 3
    log.close()
    assert [record.payload for record in read_log(tmp_path, 0)] == [b"first", b"third"]

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from server.cli import doctor
from server.cli.main import main

Usage = namedtuple("Usage", "total used free")


def test_json_is_one_object_on_standard_output(capsys: pytest.CaptureFixture[str]):
    status = main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert [check["name"] for check in report["checks"]] == [
        *("python", "cpu", "torch", "gpu", "redis", "disk", "memory"),
    ]
    failed = [check for check in report["checks"] if check["state"] == "fail"]
    assert report["ok"] is (not failed)
    assert status == (1 if failed else 0)
    assert all(check["remedy"] for check in failed)


def test_a_full_disk_fails_and_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1, 1, 1000))
    assert main(["doctor"]) == 1
    assert "make 1.0 GiB free" in capsys.readouterr().out


@pytest.mark.parametrize("url", ["redis://:secret@127.0.0.1:1/0", "unix:///secret", "redis://[1"])
def test_a_redis_that_does_not_answer_is_told_without_its_password(
    monkeypatch: pytest.MonkeyPatch, url: str
):
    monkeypatch.setenv(doctor.REDIS_VARIABLE, url)
    check = doctor.check_redis()
    assert [check.state, check.remedy] == ["ok", ""]
    assert "optional, nothing uses it yet" in check.finding
    assert "does not answer" in check.finding
    assert "secret@" not in check.finding
    assert ":secret" not in check.finding


def test_without_any_redis_all_is_well(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(doctor.REDIS_VARIABLE, raising=False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda _: None)
    check = doctor.check_redis()
    assert check.state == "ok"
    assert check.finding.startswith("optional, nothing uses it yet")
    assert check.finding.endswith("none found")


def test_cpu_features_are_read_from_the_kernels_list(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    listed = "processor : 0\nflags\t: fpu avx2 avx512f avx512_bf16 amx_tile\n"
    monkeypatch.setattr(Path, "read_text", lambda self: listed)
    monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")
    assert doctor.check_cpu().finding.endswith("avx2, avx512, bf16, amx")
    monkeypatch.setattr(Path, "read_text", lambda self: "flags : fpu\n")
    assert doctor.check_cpu().state == "warn"

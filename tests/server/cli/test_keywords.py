"""Keywords from the command line: a worker process, warming up, looking, mending, exporting."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from server.redis.embedded import process_of

COMMAND = (sys.executable, "-c", "from server.cli.main import run; run()")


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An embedded server of the test's own, in a folder without a champion."""
    for name in ("ONESEARCH_REDIS_URL", "ONESEARCH_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}


def onesearch(
    environment: dict[str, str], *arguments: object, expect: int = 0
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert done.returncode == expect, done.stderr
    return done


def facts(environment: dict[str, str], *arguments: object, expect: int = 0) -> dict[str, Any]:
    return json.loads(onesearch(environment, *arguments, "--json", expect=expect).stdout)


def test_the_journey_of_a_query_log(environment: dict[str, str], tmp_path: Path):
    (tmp_path / "log.csv").write_text("query\n" + "Oak Desk\noak desk\nlamp\n" * 50)
    entered = facts(environment, "keywords", "warm", "log.csv")
    assert [entered["rows"], entered["queries"], entered["queued"]] == [150, 2, 2]
    assert "no worker" in onesearch(environment, "keywords", "show", "lamp", expect=2).stderr
    assert facts(environment, "keywords", "status")["waiting"] == {"live": 0, "warm": 2}

    worker = subprocess.Popen(
        [*COMMAND, "worker", "--generator", "null", "--metrics-port", "0", "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert worker.stderr is not None
        line = next(line for line in worker.stderr if '"event":"working"' in line)
        warmed = facts(environment, "keywords", "warm", "log.csv", "--wait")
        assert warmed["unfinished"] == 0
        assert warmed["duplicate"] + warmed["stored"] == 2
        url = f"http://127.0.0.1:{json.loads(line)['metrics']}/metrics"
        with urllib.request.urlopen(url, timeout=60) as answer:
            metrics = answer.read().decode()
        assert 'onesearch_keyword_jobs_total{generator="null",outcome="nothing"} 2.0' in metrics
    finally:
        worker.send_signal(signal.SIGTERM)
        out, _ = worker.communicate(timeout=60)
    assert [worker.returncode, json.loads(out)["nothing"]] == [0, 2]

    shown = facts(environment, "keywords", "show", " OAK desk")
    assert [shown["stored"], shown["keywords"]["query"]] == [True, "oak desk"]
    assert not facts(environment, "keywords", "show", "chair", expect=1)["stored"]
    assert facts(environment, "keywords", "dead") == {"dead": 0, "letters": []}
    assert facts(environment, "keywords", "replay", "--all")["queued"] == 0
    assert facts(environment, "keywords", "export", "made.parquet")["rows"] == 2
    assert set(pq.read_table(tmp_path / "made.parquet")["query"].to_pylist()) == {
        *("oak desk", "lamp")
    }
    # Each command started and stopped the server; nothing of it is left.
    assert process_of(tmp_path / "var" / "redis" / "redis.sock") is None


def test_the_statistical_generator_works_for_a_snapshot(
    environment: dict[str, str], tmp_path: Path, tiny_pair: Any
):
    (tmp_path / "log.txt").write_text("red oak desk\n")
    facts(environment, "keywords", "warm", "log.txt")
    done = facts(environment, "worker", "--snapshot", tiny_pair.snapshot, "--until-empty")
    assert [done["made"] + done["nothing"], done["generator"]] == [1, "statistical"]
    shown = facts(environment, "keywords", "show", "red oak desk")
    assert shown["version"] == done["version"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["keywords", "warm", "none.txt"], "no such file"),
        (["keywords", "replay"], "--all"),
        (["worker", "--generator", "other"], "keyword_generator"),
        (["worker"], "--snapshot"),
        (["worker", "--generator", "llm"], "ONESEARCH_KEYWORD_LLM_URL"),
    ],
)
def test_wrong_input_is_told_in_one_line(
    environment: dict[str, str], arguments: list[str], told: str
):
    error = onesearch(environment, *arguments, expect=2).stderr
    assert told in error
    assert len(error.strip().splitlines()) == 1


def test_a_server_that_is_away_is_told_in_one_line(environment: dict[str, str]):
    away = environment | {"ONESEARCH_REDIS_URL": "redis://127.0.0.1:1"}
    error = onesearch(away, "keywords", "status", expect=2).stderr
    assert error.startswith("error: Redis does not answer")
    wrong = environment | {"ONESEARCH_REDIS_URL": "http://127.0.0.1:1"}
    assert "redis_url must begin" in onesearch(wrong, "keywords", "status", expect=2).stderr

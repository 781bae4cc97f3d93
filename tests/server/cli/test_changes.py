"""`onesearch index add|remove|changes|merge` on the tiny snapshot, and a server that is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from index.live.catalogue import LiveCatalogue
from index.snapshot import Snapshot
from server.cli.main import main

STARTING_S = 60
RUN = "from server.cli.main import run; run()"


@pytest.fixture
def snapshot(tiny_pair: tuple[Path, Path], tmp_path: Path) -> Path:
    shutil.copytree(tiny_pair[0], tmp_path / "snapshot")
    return tmp_path / "snapshot"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """`run("index", …)` → the one JSON object on standard output."""

    def run(*arguments: object) -> dict[str, Any]:
        assert main([*map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def write_items(path: Path) -> Path:
    rows = [
        {"item_id": "n1", "title": "<b>Purple</b> stool", "color": ["purple"], "price": "$1,200"},
        {"item_id": "n2", "title": "purple lamp", "attributes": {"size": "S|M"}, "stock": 3},
        {"item_id": "", "title": "nobody"},
        {"item_id": "i0", "title": "red oak desk, improved"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_items_of_a_file_are_added_and_named_ones_removed(snapshot: Path, tmp_path: Path, run: Any):
    done = run("index", "add", snapshot, write_items(tmp_path / "new.jsonl"))
    assert [done["applied"], done["rejected"], done["items"]] == [3, 0, 38]
    assert done["unreadable"] == {"item_id: missing": 1}
    names = tmp_path / "names.txt"
    names.write_text("i1\n\ni2\nnone\n")
    done = run("index", "remove", snapshot, "n2", "--file", names)
    assert [done["applied"], done["rejected"], done["items"]] == [3, 1, 35]
    assert done["rejected_changes"] == [
        {"index": 3, "item_id": "none", "reason": "no item has this id"}
    ]
    with LiveCatalogue.open(snapshot) as catalogue:
        items = catalogue.view.items
        assert items.row_of("i1") is None
        row = items.row_of("n1")
        assert row is not None
        assert [items.get(row)["title"], items.get(row)["price"]] == ["Purple stool", 1200.0]


def test_what_changed_is_told_and_merged(snapshot: Path, tmp_path: Path, run: Any):
    run("index", "remove", snapshot, "i1")
    run("index", "add", snapshot, write_items(tmp_path / "new.jsonl"))
    facts = run("index", "changes", snapshot)
    assert [facts["sequence"], facts["pending_changes"], facts["items"]] == [4, 4, 37]
    assert facts["log_bytes"] > 0
    stats = run("index", "stats", snapshot)
    assert [stats["trie"]["sids"] > 0, stats["catalogue"]] == [True, facts]
    verified = run("index", "verify", snapshot)
    assert [verified["ok"], verified["items"], verified["catalogue"]["items"]] == [True, 36, 37]
    target = tmp_path / "merged"
    written = run("index", "merge", snapshot, target)
    assert [written["snapshot"], written["items"]] == [str(target), 37]
    assert len(Snapshot.open(target).items) == 37
    own = run("index", "merge", snapshot)
    assert [own["sequence"], own["items"]] == [4, 37]
    after = run("index", "changes", snapshot)
    assert [after["pending_changes"], after["items"]] == [0, 37]
    assert after["index_version"] == facts["index_version"]


def test_csv_and_parquet_are_read_too(snapshot: Path, tmp_path: Path, run: Any):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    table = tmp_path / "new.csv"
    table.write_text("sku,title,stock\nc1,Purple stool,4\nc2,Purple desk,\n")
    mapping = tmp_path / "mapping.toml"
    mapping.write_text('[items]\nitem_id = "sku"\n')
    assert run("index", "add", snapshot, table, "--mapping", mapping)["items"] == 38
    columns = {"item_id": ["p1"], "title": ["Purple bed"], "category": [["home", "bed"]]}
    parquet.write_table(pa.table(columns), tmp_path / "new.parquet")
    assert run("index", "add", snapshot, tmp_path / "new.parquet")["items"] == 39


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["add", "{}/none", "{}/new.jsonl"], "none is not there"),
        (["add", "{}/snapshot", "{}/none.jsonl"], "none.jsonl: no such file"),
        (["add", "{}/snapshot", "{}/names.txt"], "unknown kind of file"),
        (["add", "{}/snapshot", "{}/new.jsonl", "--strict"], "row 3, field 'item_id'"),
        (["remove", "{}/snapshot"], "no item is named"),
        (["remove", "{}/snapshot", "--file", "{}/none"], "none is not there"),
        (["changes", "{}/none"], "none is not there"),
        (["merge", "{}/snapshot", "{}/snapshot"], "already exists"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    snapshot: Path, tmp_path: Path, capsys: Any, arguments: list[str], told: str
):
    write_items(tmp_path / "new.jsonl")
    (tmp_path / "names.txt").write_text("i1\n")
    assert main(["index", *(part.replace("{}", str(tmp_path)) for part in arguments)]) == 2
    captured = capsys.readouterr()
    [line] = captured.err.splitlines()
    assert line.startswith("error: ")
    assert told in line
    assert captured.out == ""
    with LiveCatalogue.open(snapshot) as catalogue:
        assert catalogue.view.sequence == 0


@contextmanager
def serving(snapshot: Path, checkpoint: Path) -> Generator[tuple[Any, httpx.Client], None, None]:
    """A server process of its own, ready for changes."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", RUN, "serve", "--snapshot", snapshot),
            *("--checkpoint", checkpoint, "--port", "0"),
        ],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ONESEARCH_ENGINE_THREADS": "1"},
    )
    assert process.stderr is not None
    try:
        url = json.loads(process.stderr.readline())["url"]
        with httpx.Client(base_url=url, timeout=STARTING_S) as client:
            until = time.monotonic() + STARTING_S
            while client.get("/readyz").status_code != 200:
                assert time.monotonic() < until
                time.sleep(0.05)
            yield process, client
    finally:
        process.kill()
        process.communicate()


def test_a_killed_server_has_lost_nothing_that_it_acknowledged(
    snapshot: Path, tiny_pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str], run: Any
):
    with serving(snapshot, tiny_pair[1]) as (process, client):
        assert main(["index", "remove", str(snapshot), "i1"]) == 2
        assert "A server takes them as PUT, PATCH or DELETE /v1/items" in capsys.readouterr().err
        assert (
            main(
                [
                    "serve",
                    "--snapshot",
                    str(snapshot),
                    "--checkpoint",
                    str(tiny_pair[1]),
                    "--port",
                    "0",
                ]
            )
            == 2
        )
        [line] = capsys.readouterr().err.splitlines()
        assert f"in another process (number {process.pid})" in line
        assert "catalogue_changes=false" in line
        for number in range(30):
            item = {"item_id": f"n{number}", "title": f"purple stool {number}", "stock": number}
            assert client.put("/v1/items", json={"items": [item]}).status_code == 200
        assert client.request("DELETE", "/v1/items", json={"item_ids": ["i0"]}).status_code == 200
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert run("index", "changes", snapshot)["sequence"] == 31
    with serving(snapshot, tiny_pair[1]) as (_, client):
        body = {"query": "purple stool", "limit": 100, "beam_width": 1024}
        hits = {hit["item_id"]: hit for hit in client.post("/v1/search", json=body).json()["hits"]}
        assert len(hits) == 36 + 30 - 1
        assert {hits[f"n{number}"]["stock"] for number in range(30)} == set(range(30))
        assert "i0" not in hits

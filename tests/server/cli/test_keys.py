"""`onesearch keys`: made, listed, replaced, revoked."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from server.cli.main import main
from server.keys import KeySet
from server.keys_file import read_keys


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """`run(*arguments)` → status, standard output, standard error; keys are in keys.json."""

    def call(*arguments: str) -> tuple[int, str, str]:
        status = main(["keys", *arguments, "--file", str(tmp_path / "keys.json")])
        told = capsys.readouterr()
        return status, told.out, told.err

    return call


def test_from_making_to_revoking(run: Any, tmp_path: Path):
    status, out, err = run("create", "shop", "--scope", "search", "--scope", "events")
    text = out.strip()
    assert [status, text[:4], len(text)] == [0, "osk_", 64]
    assert "not shown again" in err
    file = tmp_path / "keys.json"
    assert KeySet(read_keys(file)).find(text, time.time()) == read_keys(file)[0]

    status, out, _ = run("rotate", "shop", "--grace", "1h", "--expires", "90d", "--json")
    made = json.loads(out)
    assert [made["name"], made["scopes"], made["valid"]] == ["shop", ["events", "search"], True]
    old, new = read_keys(file)
    assert old.expires is not None and 3500 < old.expires - time.time() <= 3600
    assert new.expires is not None and new.expires - time.time() > 89 * 24 * 3600
    both = KeySet((old, new))
    for one in (text, made["key"]):
        assert not isinstance(both.find(one, time.time()), str)
    assert both.find(text, time.time() + 3601) == "expired"

    listed = json.loads(run("list", "--json")[1])["keys"]
    assert [key["name"] for key in listed] == ["shop", "shop"]
    shown = run("list")[1]
    assert all(key["id"] in shown for key in listed)
    for told in (shown, json.dumps(listed)):
        assert text not in told and old.digest.hex() not in told

    assert run("revoke", old.id)[0] == 0
    assert read_keys(file) == (new,)
    assert json.loads(run("revoke", "shop", "--json")[1]) == {"revoked": [new.id]}
    assert read_keys(file) == ()
    assert "nobody" in run("list")[1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("create", "a", "--scope", "everything"), "search, events, ingest, admin, metrics"),
        (("create", "a b", "--scope", "search"), "key name"),
        (("create", "a", "--scope", "search", "--expires", "soon"), "--expires must be like 90d"),
        (("create", "a", "--scope", "search", "--rate", "0"), "rate"),
        (("create", "a"), "--scope"),
        (("rotate", "nobody"), "no valid key is called 'nobody'"),
        (("revoke", "nobody"), "no key has the id or name 'nobody'"),
        (("list",), "is not there"),
    ],
)
def test_wrong_input_is_one_line(run: Any, arguments: tuple[str, ...], told: str):
    status, out, err = run(*arguments)
    assert [status, out, err.count("\n")] == [2, "", 1]
    assert told in err


def test_the_setting_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("ONESEARCH_KEYS_FILE", str(tmp_path / "other.json"))
    assert main(["keys", "create", "a", "--scope", "search"]) == 0
    assert capsys.readouterr().out.startswith("osk_")
    assert len(read_keys(tmp_path / "other.json")) == 1


def test_keys_made_at_the_same_time_are_all_kept(run: Any, tmp_path: Path):
    file = str(tmp_path / "keys.json")
    threads = [
        threading.Thread(
            target=main, args=(["keys", "create", f"k{i}", "--scope", "search", "--file", file],)
        )
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.name for key in read_keys(tmp_path / "keys.json")} == {f"k{i}" for i in range(8)}
    assert not list(tmp_path.glob(".*.tmp-*"))

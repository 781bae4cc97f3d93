"""The gateway's benchmark at a size that only shows that it works."""

import subprocess
import sys

import pytest

from index.errors import OnesearchError
from loadtest.bench import gateway
from loadtest.bench.gateway import BARE, GATEWAY, PEER, Plan
from loadtest.bench.load import Tally


def test_both_tables_from_real_servers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gateway, "QUICK", Plan(0.2, 1))
    monkeypatch.setattr(gateway, "CLIENTS", (2,))
    monkeypatch.setattr(gateway, "RATES", (50.0,))
    rate, added = gateway.rows(quick=True)
    assert rate["setting"] == {"clients": 2}
    assert rate["ours"] > 0
    assert rate["peers"][PEER] > 0
    assert added["setting"] == {"requests/s": 50}
    assert added["ours"] > 0
    assert isinstance(added["added_ms"], float)


def test_refusals_are_told_and_failures_are_no_measurement():
    tally = Tally()
    tally.add("200", 0.001)
    assert gateway._check({GATEWAY: [tally], BARE: [tally]}) == 0
    tally.add("503", 0.001)
    assert gateway._check({GATEWAY: [tally], BARE: []}) == 50
    tally.add("lost")
    with pytest.raises(OnesearchError, match="gateway: not all were answered"):
        gateway._check({GATEWAY: [tally]})


def test_a_server_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gateway, "GATEWAY", "nonsense")
    with pytest.raises(OnesearchError, match="nonsense did not start"):
        gateway.rate(quick=True)


def test_the_null_server_names_what_it_takes():
    command = [sys.executable, "-m", "loadtest.bench.null_server"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "give one of gateway, bare" in done.stderr

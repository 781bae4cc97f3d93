"""The gateway with nothing behind it: what HTTP, validation, logs, metrics and writing cost.

`loadtest.bench.null_server` runs as a child on one process: the application of `onesearch serve`
over a searcher that answers at once with ten hits, and beside it the same HTTP server with a
function that reads nothing and always sends the same bytes. The gateway writes its log to a file.

Tables: `rate`, answers per second to clients that send again at once; `added`, milliseconds of the
median answer at a fixed rate of arrivals, and how much of it is above the bare server's.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson

from index.errors import OnesearchError
from loadtest.bench.load import Tally, offer, post, press
from loadtest.bench.overload import REFUSED, in_loop
from loadtest.bench.report import Row, row

GATEWAY, BARE = "gateway", "bare"
PEER = "bare HTTP server"
CLIENTS = (1, 4, 16)
RATES = (200.0, 1000.0, 2000.0)
START_S = 60.0
QUERY_WORDS = ("waterproof", "hiking", "boots", "for", "wide", "feet", "in", "green", "or", "blue")


class Plan(NamedTuple):
    """Seconds of each measurement, and how many rounds."""

    seconds: float
    rounds: int


QUICK = Plan(1.0, 2)
FULL = Plan(2.0, 3)


def rows(quick: bool = False) -> list[Row]:
    """Both tables."""
    return rate(quick) + added(quick)


def rate(quick: bool = False) -> list[Row]:
    """Answers per second, by the number of clients."""
    plan = QUICK if quick else FULL
    with _servers() as ports:
        return in_loop(_rate(ports, plan))


def added(quick: bool = False) -> list[Row]:
    """Median milliseconds, by the rate of arrivals."""
    plan = QUICK if quick else FULL
    with _servers() as ports:
        return in_loop(_added(ports, plan))


TABLES = {"rate": rate, "added": added}


def requests() -> list[bytes]:
    """Searches as a shop sends them."""
    bodies = [
        {
            "query": " ".join(QUERY_WORDS[: 2 + number % 8]),
            "user_id": f"user-{number}",
            "limit": 10,
            "filters": {"price_max": 120, "in_stock": True},
            "beam_width": 32,
        }
        for number in range(64)
    ]
    return [post("/v1/search", orjson.dumps(body)) for body in bodies]


async def _rate(ports: dict[str, int], plan: Plan) -> list[Row]:
    random, sent = np.random.default_rng(0), requests()
    table: list[Row] = []
    for clients in CLIENTS:
        found: dict[str, list[Tally]] = {name: [] for name in ports}
        for turn in range(plan.rounds):
            for name in _in_turn(ports, turn):
                found[name].append(
                    await press(
                        ports[name], sent, clients=clients, seconds=plan.seconds, random=random
                    )
                )
        refused = _check(found)
        table.append(
            row(
                "answers per second of one process",
                {"clients": clients},
                [tally.goodput for tally in found[GATEWAY]],
                {PEER: [tally.goodput for tally in found[BARE]]},
                "1/s",
                higher_is_better=True,
                p99_ms=_ms(found[GATEWAY], 0.99),
                refused_percent=refused,
            )
        )
    return table


async def _added(ports: dict[str, int], plan: Plan) -> list[Row]:
    random, sent = np.random.default_rng(1), requests()
    table: list[Row] = []
    for arrivals in RATES:
        found: dict[str, list[Tally]] = {name: [] for name in ports}
        for turn in range(plan.rounds):
            for name in _in_turn(ports, turn):
                found[name].append(
                    await offer(
                        ports[name], sent, rate=arrivals, seconds=plan.seconds, random=random
                    )
                )
        refused = _check(found)
        medians = {
            name: [tally.percentile(0.5) * 1000 for tally in tallies]
            for name, tallies in found.items()
        }
        gains = [ours - peer for ours, peer in zip(*medians.values(), strict=True)]
        table.append(
            row(
                "median of answers",
                {"requests/s": round(arrivals)},
                medians[GATEWAY],
                {PEER: medians[BARE]},
                "ms",
                added_ms=float(f"{np.median(gains):.4g}"),
                p99_ms=_ms(found[GATEWAY], 0.99),
                refused_percent=refused,
                load_late_p99_ms=float(f"{1000 * np.quantile(_late(found[GATEWAY]), 0.99):.4g}"),
            )
        )
    return table


def _in_turn(ports: dict[str, int], turn: int) -> Sequence[str]:
    names = list(ports)
    return names if turn % 2 == 0 else names[::-1]


def _late(tallies: Sequence[Tally]) -> list[float]:
    return [value for tally in tallies for value in tally.started_late]


def _ms(tallies: Sequence[Tally], share: float) -> float:
    return float(f"{np.median([tally.percentile(share) for tally in tallies]) * 1000:.4g}")


def _check(found: dict[str, list[Tally]]) -> float:
    """Percent of the gateway's that were refused: more at once than its limit, after a hiccup.
    Raises OnesearchError when something was neither answered nor refused."""
    for name, tallies in found.items():
        for tally in tallies:
            if set(tally.outcomes) - {"200", REFUSED}:
                raise OnesearchError(f"{name}: not all were answered: {dict(tally.outcomes)}")
    offered = sum(tally.outcomes.total() for tally in found[GATEWAY])
    refused = sum(tally.outcomes[REFUSED] for tally in found[GATEWAY])
    return float(f"{100 * refused / max(1, offered):.3g}")


@contextmanager
def _servers() -> Generator[dict[str, int], None, None]:
    """Both, running; ports by name. Raises OnesearchError when one does not start."""
    with tempfile.TemporaryDirectory(prefix="onesearch-gateway-") as name, ExitStack() as stack:
        yield {kind: stack.enter_context(_server(kind, Path(name))) for kind in (GATEWAY, BARE)}


@contextmanager
def _server(kind: str, folder: Path) -> Generator[int, None, None]:
    file, log = folder / f"{kind}.port", folder / f"{kind}.log"
    with (
        log.open("wb") as stream,
        subprocess.Popen(
            [sys.executable, "-m", "loadtest.bench.null_server", kind, str(file)],
            stdout=stream,
            stderr=stream,
        ) as child,
    ):
        try:
            until = time.monotonic() + START_S
            while not (file.exists() and file.read_text()):
                if child.poll() is not None or time.monotonic() > until:
                    lines = log.read_text(errors="replace").strip().splitlines()
                    raise OnesearchError(f"{kind} did not start: {lines[-1:] or 'no output'}")
                time.sleep(0.05)
            yield int(file.read_text())
        finally:
            child.terminate()

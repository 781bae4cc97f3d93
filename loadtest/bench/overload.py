"""More requests than one server on this machine can answer.

A server (`onesearch serve`) runs as a child process. First the sustainable load is found: the
largest rate at which, for a quarter of a minute, less than 1 % is refused and 99 % of the answers
come within a quarter of a second. Then 80, 100, 200 and 400 % of it are offered in turns, several
times, and pressed by clients that send again as soon as they have an answer. Ours is compared with
80 % of the same server.
`lasting_p99_ms` leaves out what was due in the first third of a run: a crowd that comes suddenly is
let in (`server.admission`).

Load and server share the machine's cores: the load takes a part of them, more with more refusals,
so the rates are lower than those of a server that has the machine for itself. All traffic stays on
127.0.0.1. Tables: `rates` and `clients`.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from index.errors import OnesearchError
from loadtest.bench.load import ANSWERED, Ended, Tally, offer, post, press
from loadtest.bench.report import Row, row
from loadtest.bench.sustainable import FULL, QUICK, WARM_UP_RATE, Plan, lasting_rate
from server.cli.serve import loop_factory
from server.settings import DEFAULT_BEAM_WIDTH

LOADS = (0.8, 1.0, 2.0, 4.0)
CLIENTS = (16, 64)
PRESSED_TIMEOUT_MS = 100
WARM_UP_S = 1.5
START_S = 180.0
"""vLLM takes most of a minute."""
PAUSE_S = 0.5
DEMO_ITEMS = 1500
DEMO_MINUTES = 0.05
"""The decoder's training: a search costs the same however little was learned."""
RECOVERY_S = 1.0
SUDDEN_SHARE = 1 / 3
"""Of a run: for a moment a server lets more in than it would in the long run."""
REFUSED = "503"
QUERIES = 1000
Result = TypeVar("Result")


class Server(NamedTuple):
    """A running child and what to ask it."""

    port: int
    queries: Sequence[str]

    def requests(self, timeout_ms: int | None = None) -> list[bytes]:
        """One for each query."""
        extra = {} if timeout_ms is None else {"timeout_ms": timeout_ms}
        bodies = [{"query": query, "limit": 10} | extra for query in self.queries]
        return [post("/v1/search", json.dumps(body).encode()) for body in bodies]


def rows(
    quick: bool = False, *, snapshot: Path | None = None, checkpoint: Path | None = None
) -> list[Row]:
    """Both tables, on one server; without a pair, a small simulated shop is built first."""
    return _run(quick, snapshot, checkpoint, (_rates, _clients))


def rates(
    quick: bool = False, *, snapshot: Path | None = None, checkpoint: Path | None = None
) -> list[Row]:
    """Open loop at 80 … 400 % of the sustainable load."""
    return _run(quick, snapshot, checkpoint, (_rates,))


def clients(
    quick: bool = False, *, snapshot: Path | None = None, checkpoint: Path | None = None
) -> list[Row]:
    """Clients that come back at once, with deadlines of 100 ms."""
    return _run(quick, snapshot, checkpoint, (_clients,))


TABLES = {"rates": rates, "clients": clients}
_Part = Callable[[Server, Plan], Awaitable[list[Row]]]


def _run(
    quick: bool, snapshot: Path | None, checkpoint: Path | None, parts: Sequence[_Part]
) -> list[Row]:
    plan = QUICK if quick else FULL

    async def work(server: Server) -> list[Row]:
        random = np.random.default_rng(0)
        await offer(
            server.port, server.requests(), rate=WARM_UP_RATE, seconds=WARM_UP_S, random=random
        )
        return [one for part in parts for one in await part(server, plan)]

    with tempfile.TemporaryDirectory(prefix="onesearch-overload-") as folder:
        if snapshot is None or checkpoint is None:
            snapshot, checkpoint = demo_pair(Path(folder))
        with serving(snapshot, checkpoint, Path(folder)) as server:
            return in_loop(work(server))


async def _rates(server: Server, plan: Plan) -> list[Row]:
    random, requests = np.random.default_rng(1), server.requests()

    ended: list[Ended] = []

    async def at(rate: float, seconds: float) -> Tally:
        await asyncio.sleep(PAUSE_S)
        ended.clear()
        return await offer(
            server.port, requests, rate=rate, seconds=seconds, random=random, seen=ended.append
        )

    sustainable = await lasting_rate(at, plan)
    found: dict[float, list[Tally]] = {load: [] for load in LOADS}
    lasting: dict[float, list[float]] = {load: [] for load in LOADS}
    recovery: list[Tally] = []
    for repeat in range(plan.repeats):
        shift = repeat % len(LOADS)
        for load in LOADS[shift:] + LOADS[:shift]:
            found[load].append(await at(load * sustainable, plan.phase_s))
            lasting[load].append(_lasting_p99_ms(ended, plan.phase_s * SUDDEN_SHARE))
            if load == max(LOADS):
                # No pause: what is left of the storm shows in the second after it.
                recovery.append(
                    await offer(
                        server.port,
                        requests,
                        rate=LOADS[0] * sustainable,
                        seconds=RECOVERY_S,
                        random=random,
                    )
                )
    calm = found[LOADS[0]]
    table: list[Row] = []
    for load, tallies in [*found.items(), (LOADS[0], recovery)]:
        setting: dict[str, Any] = {
            "load": f"{load:.0%}" + (" after 400%" if tallies is recovery else ""),
            "requests/s": round(load * sustainable),
            "beam": beam_width(),
        }
        shares = _shares(tallies)
        table.append(
            row(
                "p99 of answers under load",
                setting,
                [tally.percentile(0.99) * 1000 for tally in tallies],
                {"at 80%": [tally.percentile(0.99) * 1000 for tally in calm]},
                "ms",
                p50_ms=_median(tally.percentile(0.5) * 1000 for tally in tallies),
                **({} if tallies is recovery else {"lasting_p99_ms": _median(lasting[load])}),
                **shares,
            )
        )
    best = max(_median(tally.goodput for tally in tallies) for tallies in found.values())
    for load, tallies in found.items():
        table.append(
            row(
                "answers per second under load",
                {
                    "load": f"{load:.0%}",
                    "requests/s": round(load * sustainable),
                    "beam": beam_width(),
                },
                [tally.goodput for tally in tallies],
                {"best of all": best},
                "1/s",
                higher_is_better=True,
            )
        )
    return table


async def _clients(server: Server, plan: Plan) -> list[Row]:
    random = np.random.default_rng(2)
    requests = server.requests(PRESSED_TIMEOUT_MS)
    table: list[Row] = []
    for count in CLIENTS:
        tallies: list[Tally] = []
        for _ in range(plan.repeats):
            await asyncio.sleep(PAUSE_S)
            tallies.append(
                await press(
                    server.port, requests, clients=count, seconds=plan.phase_s, random=random
                )
            )
        table.append(
            row(
                "p99 of answers to clients that send at once",
                {"clients": count, "timeout_ms": PRESSED_TIMEOUT_MS, "beam": beam_width()},
                [tally.percentile(0.99) * 1000 for tally in tallies],
                {"timeout": float(PRESSED_TIMEOUT_MS)},
                "ms",
                p50_ms=_median(tally.percentile(0.5) * 1000 for tally in tallies),
                slowest_ms=_rounded(max(tally.percentile(1) for tally in tallies) * 1000),
                answers_per_s=_median(tally.goodput for tally in tallies),
                **_shares(tallies),
            )
        )
    return table


def _lasting_p99_ms(ended: Sequence[Ended], after_s: float) -> float:
    """p99 of the answers that were due when the load had lasted for so long."""
    since = min((one.due for one in ended), default=0.0) + after_s
    late = [
        one.latency
        for one in ended
        if one.due >= since and one.outcome in ANSWERED and one.latency is not None
    ]
    return float(np.quantile(late, 0.99)) * 1000 if late else math.nan


def _shares(tallies: Sequence[Tally]) -> dict[str, Any]:
    """Of all requests, in percent: what became of them; and how late the load itself was."""
    offered = sum(tally.offered for tally in tallies)
    counts = {
        "whole": sum(tally.outcomes["200"] for tally in tallies),
        "degraded": sum(tally.outcomes["degraded"] for tally in tallies),
        "refused": sum(tally.outcomes[REFUSED] for tally in tallies),
    }
    counts["other"] = offered - sum(counts.values())
    late = [value for tally in tallies for value in tally.started_late]
    return {
        "percent": {name: _rounded(100 * count / offered) for name, count in counts.items()},
        "load_late_p99_ms": _rounded(float(np.quantile(late, 0.99)) * 1000),
    }


def _median(values: Any) -> float:
    return _rounded(float(np.median(list(values))))


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


@contextmanager
def serving(
    snapshot: Path, checkpoint: Path, folder: Path, settings: Mapping[str, str] | None = None
) -> Generator[Server, None, None]:
    """`onesearch serve` as a child on a free port of 127.0.0.1; its log goes into `folder`.
    `settings`: more of its environment.

    Raises OnesearchError when it does not start.
    """
    arguments = ["--snapshot", str(snapshot), "--checkpoint", str(checkpoint)]
    with running(arguments, folder, settings) as (port, _):
        yield Server(port, queries_of(snapshot))


@contextmanager
def running(
    arguments: Sequence[str], folder: Path, settings: Mapping[str, str] | None = None
) -> Generator[tuple[int, int], None, None]:
    """`onesearch serve` with these arguments: its port and process id. Otherwise as `serving`."""
    log = folder / "server.log"
    with (
        log.open("wb") as stream,
        subprocess.Popen(
            [*_COMMAND, "serve", *arguments, "--host", "127.0.0.1", "--port", "0"],
            stdout=stream,
            stderr=stream,
            env=os.environ | {"ONESEARCH_DRAIN_S": "0"} | dict(settings or {}),
        ) as child,
    ):
        try:
            yield _port(log, child), child.pid
        finally:
            child.terminate()


_COMMAND = (sys.executable, "-c", "from server.cli.main import run; run()")


def _port(log: Path, child: subprocess.Popen[bytes]) -> int:
    until = time.monotonic() + START_S
    while time.monotonic() < until and child.poll() is None:
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("{") and '"event":"serving"' in line:
                return int(json.loads(line)["url"].rstrip("/").rsplit(":", 1)[1])
        time.sleep(0.1)
    child.kill()
    lines = log.read_text(errors="replace").strip().splitlines()
    raise OnesearchError(f"the server did not start: {lines[-1] if lines else 'no output'}")


def beam_width() -> int:
    """What the server takes for requests that ask for none, as those here do."""
    return int(os.environ.get("ONESEARCH_BEAM_WIDTH", DEFAULT_BEAM_WIDTH))


def queries_of(snapshot: Path) -> list[str]:
    """Beginnings of titles: text that the catalogue knows."""
    from index.snapshot import Snapshot

    titles = Snapshot.open(snapshot, verify=False).items.table["title"]
    chosen = np.random.default_rng(0).permutation(len(titles))[:QUERIES]
    return [" ".join(title.split()[:4]) or "x" for title in titles.take(chosen).to_pylist()]


def demo_pair(folder: Path) -> tuple[Path, Path]:
    """A small simulated shop, built by the command that a user would run."""
    demo = folder / "demo"
    subprocess.run(
        [
            *_COMMAND,
            *("demo", "--directory", str(demo), "--items", str(DEMO_ITEMS)),
            *("--training-minutes", str(DEMO_MINUTES), "--no-serve"),
        ],
        check=True,
        stdout=sys.stderr,
        stderr=subprocess.DEVNULL,
    )
    return demo / "snapshot", demo / "checkpoint"


def in_loop(work: Coroutine[Any, Any, Result]) -> Result:
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(work)

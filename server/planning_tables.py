"""What was measured, as the planner reads it: `planning.json`, or tables of a shop's own machine.

`planning.json` is made by `python -m loadtest.planning_table` from docs/measurements; every part of
it names its file and machine. Own tables come in the same form, any of its parts alone too, or as
reports of `onesearch bench engine`, `onesearch bench overload` and `onesearch loadtest run`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import orjson
from pydantic import TypeAdapter, ValidationError

from index.errors import ConfigError

Device = Literal["cpu", "cuda"]
DEVICES: tuple[Device, ...] = get_args(Device)
SHIPPED = Path(__file__).with_name("planning.json")
WHOLE_PERCENT = 99.0
"""Of the answers at a rate that counts as carried; the others were refused or degraded."""
_ENGINE = re.compile(r"engine, (\d+) layers, d (\d+), (float32|bfloat16)$")
_LOAD = "p99 of answers under load"


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides a decoder's cost. `head_dim` · `key_heads` keys and as many values a token."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_heads: int
    head_dim: int
    vocabulary: int = 0

    @property
    def layer_parameters(self) -> int:
        """Weights that a token passes: attention and SwiGLU of all layers."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.key_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def parameters(self) -> int:
        """All weights: those, and two matrices of the vocabulary."""
        return self.layer_parameters + 2 * self.vocabulary * self.hidden

    @property
    def key_values(self) -> int:
        """Numbers kept of one token."""
        return 2 * self.layers * self.key_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class EngineTime:
    """A batch of searches in the engine alone. `threads`: of a CPU, 1 on a GPU."""

    device: Device
    model: str
    beam: int
    queries: int
    ms: float
    source: str
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Rate:
    """What became of searches at a rate of arrivals; the share of them answered whole."""

    searches_per_s: float
    p50_ms: float
    p99_ms: float
    whole_percent: float = 100.0


@dataclass(frozen=True, slots=True)
class Serving:
    """A gateway under load, with everything around the engine. `cores` of the machine, which the
    load shared where `load_beside` says so."""

    model: str
    beam: int
    items: int
    cores: int
    load_beside: bool
    rates: tuple[Rate, ...]
    source: str


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory of a gateway, in bytes: of the program, of an item, of a SID in the trie."""

    program: float
    item: float
    trie_sid: float
    source: str


@dataclass(frozen=True, slots=True)
class RedisBytes:
    """Bytes of one entry of each kind. `user`: with 50 recent items."""

    keywords: float
    answer: float
    job: float
    event: float
    event_id: float
    exposure: float
    user: float
    source: str


@dataclass(frozen=True, slots=True)
class Tables:
    """Everything that was measured. `machines`: what each source ran on."""

    models: Mapping[str, Shape]
    engine: tuple[EngineTime, ...]
    serving: tuple[Serving, ...]
    footprint: Footprint
    redis: RedisBytes
    machines: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """As `planning.json` has it."""
        return asdict(self)


_TABLES = TypeAdapter(Tables)


def shipped() -> Tables:
    """The tables of this package."""
    return _read(SHIPPED.read_bytes(), SHIPPED)


def with_measured(tables: Tables, file: Path, model: str, beam: int, items: int) -> Tables:
    """Tables with a file's in the place of those that say the same thing.

    A report of `bench overload` or `loadtest run` does not say what was searched: it counts for the
    model, beam and items that are planned. Raises ConfigError when the file is none of these.
    """
    try:
        raw = orjson.loads(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"--measured {file}: {error.strerror}") from None
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"--measured {file} is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"--measured {file}: {_WANTED}")
    report = cast(dict[str, Any], raw)
    if "rows" not in report and "phases" not in report:
        if not report or set(report) - set(tables.to_json()):
            raise ConfigError(f"--measured {file}: {_WANTED}")
        empty = {"engine": [], "serving": []}
        return _over(tables, _read(orjson.dumps(tables.to_json() | empty | report), file))
    machine = report.get("machine", {})
    source = str(file)
    try:
        rows = report.get("rows", ())
        engine, serving = engine_times(rows, source), rates(rows) or phase_rates(report)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ConfigError(f"--measured {file}: {_WANTED}") from None
    if not engine and not serving:
        raise ConfigError(f"--measured {file}: {_WANTED}")
    ours = ()
    if serving:
        ours = (Serving(model, beam, items, int(machine.get("cores", 1)), True, serving, source),)
    changed = Tables(
        tables.models, engine, ours, tables.footprint, tables.redis, {source: machine_of(machine)}
    )
    return _over(tables, changed)


_WANTED = (
    "neither tables of the planner nor a report of `onesearch bench engine`, `onesearch bench "
    "overload` (--out or --json writes one) or `onesearch loadtest run` (OUT/report.json)"
)


def engine_times(rows: Sequence[Mapping[str, Any]], source: str) -> tuple[EngineTime, ...]:
    """Ours of `bench engine`'s rows, by the model's shape."""
    found: list[EngineTime] = []
    for row in rows:
        match = _ENGINE.match(str(row.get("what", "")))
        if match:
            setting, model = row["setting"], model_name(int(match[1]), int(match[2]))
            times = row.get("by_threads", {}).get("ours") or {"1": row["ours"]}
            # Under load one thread does the most for its core.
            threads = min(times, key=int)
            found.append(
                EngineTime(
                    *("cpu", model, setting["beam"], setting["queries"], float(times[threads])),
                    source,
                    int(threads),
                )
            )
    return tuple(found)


def rates(rows: Sequence[Mapping[str, Any]]) -> tuple[Rate, ...]:
    """Rates of `bench overload`'s rows, slowest first; the one after a storm is left out."""
    found = [
        Rate(
            float(row["setting"]["requests/s"]),
            float(row["p50_ms"]),
            float(row["ours"]),
            float(row["percent"]["whole"]),
        )
        for row in rows
        if row.get("what") == _LOAD and "after" not in str(row["setting"]["load"])
    ]
    return tuple(sorted(found, key=lambda rate: rate.searches_per_s))


def phase_rates(report: Mapping[str, Any]) -> tuple[Rate, ...]:
    """Rates of the phases of a load test, slowest first: its levels about the knee among them."""
    found: list[Rate] = []
    for phase in report.get("phases", ()):
        search = phase["kinds"].get("search")
        if search is None or search["p99_ms"] is None:
            continue
        lost = sum(float(search[f"{name}_share"]) for name in ("degraded", "refused", "error"))
        found.append(
            Rate(
                float(phase["searches_per_s"]),
                float(search["p50_ms"]),
                float(search["p99_ms"]),
                round(100 * (1 - lost), 3),
            )
        )
    return tuple(sorted(found, key=lambda rate: rate.searches_per_s))


def model_name(layers: int, hidden: int) -> str:
    """What the tables call a decoder of that shape."""
    known = {(2, 256): "small", (12, 768): "large"}
    return known.get((layers, hidden), f"{layers} layers, d {hidden}")


def machine_of(machine: Mapping[str, Any]) -> str:
    """A report's machine on one line."""
    if "card" in machine:
        return str(machine["card"])
    return f"{machine.get('cores', '?')} cores {machine.get('cpu', 'of an unnamed CPU')}"


def _read(data: bytes, file: Path) -> Tables:
    try:
        return _TABLES.validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise ConfigError(f"{file}: {where}: {first['msg']}; {_WANTED}") from None


def _over(tables: Tables, measured: Tables) -> Tables:
    known = {(one.device, one.model, one.beam, one.queries) for one in measured.engine}
    kept = [
        one for one in tables.engine if (one.device, one.model, one.beam, one.queries) not in known
    ]
    return Tables(
        {**tables.models, **measured.models},
        (*measured.engine, *kept),
        # A machine's own figures are not mixed with another's.
        measured.serving or tables.serving,
        measured.footprint,
        measured.redis,
        {**tables.machines, **measured.machines},
    )

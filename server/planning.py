"""How many gateways, of what size, and how much Redis: arithmetic on measured tables.

Of a measured gateway (`Serving`) with C cores that carries R searches a second within the latency:

    core seconds of a search         c = C / R             engine's part e(beam), the rest is g
    another beam, model or device    c' = g + e'(beam')    e' as measured alone, in batches of 8
    what a replica carries           R' = C / c', at most 1 / (e' / engine threads)
    latency                          times R / R': where everything takes k times as long, so do
                                     answers at the same share of the full load

On a GPU a replica has the GPU beside C cores, and the two are not assumed to overlap:
R' = 1 / (g / C + e'). Of a replica's rate a share stays free (`headroom`); `spare` replicas more
stay, so that so many may be away. What is not a measurement says so: `Figure.kind`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from index.errors import ConfigError
from server.planning_tables import WHOLE_PERCENT, Device, EngineTime, Rate, Serving, Shape, Tables
from server.redis.keys import (
    DAY_S,
    EVENT_ENTRIES,
    EXPOSURE_ENTRIES,
    GENERIC_TTL_S,
    MADE_ENTRIES,
    RECENT_TTL_S,
)
from server.settings import BEHAVIOUR_RETENTION_DAYS, KEYWORD_QUEUE_LIMIT, MERGE_SHARE

HEADROOM = 0.3
SPARE = 1
BATCH_QUERIES = 8
WAVE_ROWS = {"cpu": 512, "cuda": 2048}
PROMPT_TOKENS = 64
LEVELS = 5
MORE_ITEMS = 2.0
"""Times the measured catalogue: above, its rates are no measurement of the planned one."""
SWAP_BYTES = 128 * 1024**2
FLOAT_BYTES = {"cpu": 4, "cuda": 2}
MEMORY_STEP = 512 * 1024**2
REDIS_STEP = 64 * 1024**2
REWRITE_FACTOR = 2
"""Redis's limit above maxmemory: a rewrite of the append-only file copies pages."""

Kind = Literal["measured", "between measurements", "extrapolated", "computed", "assumed"]


@dataclass(frozen=True, slots=True)
class Demand:
    """What has to be carried, at the busiest time. `latency_ms`: of 99 % of the answers.

    `users`: with an event in 30 days. `queries`: different ones in 7 days.
    """

    searches_per_s: float
    beam: int
    model: str
    items: int
    latency_ms: float
    device: Device = "cpu"
    sids: int | None = None
    users: int = 0
    events_per_s: float = 0.0
    queries: int = 0
    headroom: float = HEADROOM
    spare: int = SPARE


@dataclass(frozen=True, slots=True)
class Figure:
    """A number of the plan, what it rests on, and how far."""

    name: str
    value: float
    unit: str
    kind: Kind
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. Bytes are of one replica; Redis's limit is twice its maxmemory."""

    replicas: int
    searches_per_replica: float
    cores_per_replica: int
    gpus_per_replica: int
    gpu_memory_bytes: int
    memory_bytes: int
    redis_maxmemory: int
    figures: tuple[Figure, ...]
    machines: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """One object; memory in bytes."""
        return {
            "replicas": self.replicas,
            "searches_per_replica": self.searches_per_replica,
            "cores_per_replica": self.cores_per_replica,
            "gpus_per_replica": self.gpus_per_replica,
            "gpu_memory_bytes": self.gpu_memory_bytes,
            "memory_bytes": self.memory_bytes,
            "redis_maxmemory_bytes": self.redis_maxmemory,
            "redis_limit_bytes": REWRITE_FACTOR * self.redis_maxmemory,
            "extrapolated": any(one.kind == "extrapolated" for one in self.figures),
            "figures": [
                {
                    "name": one.name,
                    "value": one.value,
                    "unit": one.unit,
                    "kind": one.kind,
                    "why": one.why,
                }
                for one in self.figures
            ],
            "machines": dict(self.machines),
        }


def plan(demand: Demand, tables: Tables, shape: Shape | None = None) -> Plan:
    """The smallest fleet that the tables promise. `shape`: of a model that they do not name.

    Raises ConfigError for a model that is not known, and for a latency that was never measured.
    """
    _check(demand)
    shape = shape or tables.models.get(demand.model)
    if shape is None:
        names = ", ".join(sorted(tables.models))
        raise ConfigError(f"model {demand.model!r} is none of {names}, nor a checkpoint directory")
    serving = _nearest(tables.serving, demand)
    carried, capacity = _capacity(demand, tables, shape, serving)
    usable = carried * (1 - demand.headroom)
    needed = max(1, math.ceil(demand.searches_per_s / usable))
    replicas = needed + demand.spare
    memory = _memory(demand, tables, shape)
    redis = _redis(demand, tables)
    card = _card_memory(demand, tables, shape) if demand.device == "cuda" else ()
    figures = (
        *capacity,
        _computed(
            "searches a replica is planned for", usable, "1/s", f"{demand.headroom:.0%} free"
        ),
        _computed("replicas that carry the load", needed, "", "rounded up"),
        Figure("spare replicas", demand.spare, "", "assumed", "so many may be away"),
        *memory,
        *card,
        *redis,
    )
    used = {one.source for one in (serving, tables.footprint, tables.redis)}
    used |= {one.why.split(": ")[0] for one in capacity}
    return Plan(
        replicas=replicas,
        searches_per_replica=float(f"{usable:.4g}"),
        cores_per_replica=serving.cores,
        gpus_per_replica=int(demand.device == "cuda"),
        gpu_memory_bytes=_stepped(sum(one.value for one in card), MEMORY_STEP),
        memory_bytes=_stepped(sum(one.value for one in memory), MEMORY_STEP),
        redis_maxmemory=_stepped(sum(one.value for one in redis), REDIS_STEP),
        figures=figures,
        machines={name: of for name, of in tables.machines.items() if name in used},
    )


def _check(demand: Demand) -> None:
    wrong = [
        (demand.searches_per_s <= 0, "searches per second must be above 0"),
        (not 1 <= demand.beam <= 1024, f"beam {demand.beam}: 1 to 1024"),
        (demand.items < 1, f"items {demand.items}: at least 1"),
        (demand.latency_ms <= 0, "latency must be above 0 ms"),
        (not 0 <= demand.headroom < 1, f"headroom {demand.headroom:g}: from 0 to below 1"),
        (min(demand.spare, demand.users, demand.queries) < 0, "counts are not negative"),
        (demand.events_per_s < 0, "events per second are not negative"),
    ]
    for is_wrong, message in wrong:
        if is_wrong:
            raise ConfigError(message)


def _nearest(measured: tuple[Serving, ...], demand: Demand) -> Serving:
    """The measured gateway that is most like the wanted one: its model, then its beam."""
    if not measured:
        raise ConfigError("the tables have no gateway under load; measure one: `bench overload`")
    return min(
        measured,
        key=lambda one: (
            one.model != demand.model,
            abs(math.log(one.beam / demand.beam)),
            abs(math.log(one.items / demand.items)),
        ),
    )


def _capacity(
    demand: Demand, tables: Tables, shape: Shape, serving: Serving
) -> tuple[float, tuple[Figure, ...]]:
    """What a replica carries within the latency, and how that was found."""
    there = engine_seconds(tables, "cpu", serving.model, serving.beam, tables.models[serving.model])
    ours = engine_seconds(tables, demand.device, demand.model, demand.beam, shape)
    same = (serving.model, serving.beam, "cpu") == (demand.model, demand.beam, demand.device)
    larger = demand.items / serving.items
    within: list[tuple[Rate, float]] = []
    for rate in serving.rates:
        carried = rate.searches_per_s
        if not same:
            carried = _carried(rate, serving, there.value, ours.value, demand.device)
        within.append((rate, carried))
    fitting = [
        (rate, carried)
        for rate, carried in within
        if rate.whole_percent >= WHOLE_PERCENT
        and rate.p99_ms * rate.searches_per_s / carried <= demand.latency_ms
    ]
    if not fitting:
        rate, carried = within[0]
        least = rate.p99_ms * rate.searches_per_s / carried
        raise ConfigError(
            f"99 % of the answers within {demand.latency_ms:g} ms: the calmest measurement has "
            f"{least:,.0f} ms, at {carried:,.3g} searches a second on {serving.cores} cores "
            f"({serving.source}); a smaller beam or model, a GPU, or a later deadline"
        )
    rate, carried = max(fitting, key=lambda pair: pair[1])
    beside = ", the load on the same cores" if serving.load_beside else ""
    figures = [
        Figure(
            "searches that the measured gateway carries",
            rate.searches_per_s,
            "1/s",
            "measured",
            f"{serving.source}: {serving.model}, beam {serving.beam}, {serving.items:,} items, "
            f"{serving.cores} cores{beside}, p99 {rate.p99_ms:g} ms",
        )
    ]
    if larger > MORE_ITEMS:
        why = (
            "dense search reads every item: fewer searches than planned, unless it is switched off"
        )
        figures.append(Figure("items", larger, "times the measured one", "extrapolated", why))
    if not same:
        figures += [there, ours]
        figures.append(
            Figure(
                "searches that a replica carries",
                carried,
                "1/s",
                "extrapolated",
                f"the gateway's own work as measured, with the engine's time of {demand.model}, "
                f"beam {demand.beam}, {demand.device}",
            )
        )
    return carried, tuple(figures)


def _carried(rate: Rate, serving: Serving, there: float, ours: float, device: Device) -> float:
    """See the module: another engine's time in the place of the measured one's."""
    rest = max(0.0, serving.cores / rate.searches_per_s - there)
    if device == "cuda":
        return 1 / (rest / serving.cores + ours)
    threads = max(1, serving.cores // 2)
    return min(serving.cores / (rest + ours), threads / ours)


def engine_seconds(tables: Tables, device: Device, model: str, beam: int, shape: Shape) -> Figure:
    """Core seconds of a search in the engine, or seconds of a GPU: in batches of 8, beams between
    measured ones by the logarithm, other models by the weights that a token passes."""
    measured = [
        one for one in tables.engine if one.device == device and one.queries == BATCH_QUERIES
    ]
    known = {one.model for one in measured}
    if not known:
        raise ConfigError(f"the tables have no engine on {device}")
    like, factor, kind = model, 1.0, "measured"
    if model not in known:
        like = min(
            known,
            key=lambda name: abs(
                math.log(tables.models[name].layer_parameters / shape.layer_parameters)
            ),
        )
        factor = shape.layer_parameters / tables.models[like].layer_parameters
        kind = "extrapolated"
    rows = sorted((one for one in measured if one.model == like), key=lambda one: one.beam)
    seconds, between, source = _at_beam(rows, beam)
    told: Kind = "measured"
    if kind == "extrapolated" or between == "extrapolated":
        told = "extrapolated"
    elif between:
        told = "between measurements"
    scaled = f", times {factor:.3g} for the weights" if factor != 1 else ""
    unit = "core seconds" if device == "cpu" else "GPU seconds"
    name = f"engine, {model}, beam {beam}, {device}"
    return Figure(name, seconds * factor, unit, told, f"{source}: {like}{scaled}")


def _at_beam(rows: list[EngineTime], beam: int) -> tuple[float, str, str]:
    """Seconds of one search; "", "between" or "extrapolated"; the file."""

    def seconds(one: EngineTime) -> float:
        return one.ms / 1000 * one.threads / one.queries

    exact = [one for one in rows if one.beam == beam]
    if exact:
        return seconds(exact[0]), "", exact[0].source
    below = [one for one in rows if one.beam < beam]
    above = [one for one in rows if one.beam > beam]
    if not below:
        # A search costs something at any beam: the smallest measured one is an upper bound.
        return seconds(above[0]), "extrapolated", above[0].source
    if not above:
        last = below[-1]
        return seconds(last) * beam / last.beam, "extrapolated", last.source
    low, high = below[-1], above[0]
    share = math.log(beam / low.beam) / math.log(high.beam / low.beam)
    value = seconds(low) ** (1 - share) * seconds(high) ** share
    return value, "between", low.source


def _memory(demand: Demand, tables: Tables, shape: Shape) -> tuple[Figure, ...]:
    """Bytes of a gateway's process; on a GPU its weights are there and in its memory."""
    of, sids = tables.footprint, demand.sids or demand.items
    catalogue = of.item * demand.items
    weights = shape.parameters * FLOAT_BYTES[demand.device]
    trie = f"of which the trie {of.trie_sid * sids:,.0f}"
    measured = f"{of.source}: {of.item:,.0f} bytes an item"
    swap = "loaded beside the live one, and 128 MB"
    return (
        Figure("the program", of.program, "bytes", "measured", of.source),
        Figure("catalogue", catalogue, "bytes", "measured", f"{measured}, {trie}"),
        _computed("weights", weights, "bytes", f"{shape.parameters:,} parameters"),
        _computed("keys and values", *_key_values(demand, shape)),
        Figure("changes until a merge", catalogue * MERGE_SHARE, "bytes", "assumed", "merge_share"),
        _computed("a second generation", catalogue + weights + SWAP_BYTES, "bytes", swap),
    )


def _card_memory(demand: Demand, tables: Tables, shape: Shape) -> tuple[Figure, ...]:
    """Bytes of a GPU's memory, of two generations; cuBLAS and graphs come on top."""
    weights = 2 * shape.parameters * FLOAT_BYTES["cuda"]
    trie = 2 * tables.footprint.trie_sid * (demand.sids or demand.items)
    return (
        _computed("GPU: weights", weights, "bytes", "of two generations, bfloat16"),
        Figure("GPU: tries", trie, "bytes", "measured", tables.footprint.source),
        _computed("GPU: keys and values", *_key_values(demand, shape)),
    )


def _key_values(demand: Demand, shape: Shape) -> tuple[float, str, str]:
    """Of a full wave: prompts once, and a position of each row and level."""
    rows = WAVE_ROWS[demand.device]
    tokens = max(1, rows // demand.beam) * PROMPT_TOKENS + rows * LEVELS
    size = tokens * shape.key_values * FLOAT_BYTES[demand.device]
    each = shape.key_values * FLOAT_BYTES[demand.device]
    return size, "bytes", f"a wave of {rows} rows, {each:,} bytes a token"


def _redis(demand: Demand, tables: Tables) -> tuple[Figure, ...]:
    """Bytes of everything that is kept, at the limits of `server/redis/keys.py`."""
    of = tables.redis
    events = min(demand.events_per_s * BEHAVIOUR_RETENTION_DAYS * DAY_S, EVENT_ENTRIES)
    exposures = demand.searches_per_s * BEHAVIOUR_RETENTION_DAYS * DAY_S
    jobs = min(demand.queries, KEYWORD_QUEUE_LIMIT)
    kept = (
        ("keywords", demand.queries, of.keywords, f"{GENERIC_TTL_S // DAY_S} days"),
        ("answers for training", min(demand.queries, MADE_ENTRIES), of.answer, "the newest"),
        ("keyword jobs", jobs, of.job, "all of them waiting"),
        ("events", events, of.event, "30 days, bounded"),
        ("ids of events", demand.events_per_s * DAY_S, of.event_id, "one day"),
        ("exposures", min(exposures, EXPOSURE_ENTRIES), of.exposure, "30 days, bounded"),
        ("recent items of users", demand.users, of.user, f"{RECENT_TTL_S // DAY_S} days"),
    )
    figures = [
        Figure(
            f"Redis: {name}",
            count * size,
            "bytes",
            "measured",
            f"{of.source}: {size:,.0f} bytes each, {count:,.0f} of them, {how}",
        )
        for name, count, size, how in kept
    ]
    total = sum(one.value for one in figures)
    free = f"{demand.headroom:.0%} free"
    figures.append(_computed("Redis: room", total * demand.headroom, "bytes", free))
    return tuple(figures)


def _computed(name: str, value: float, unit: str, why: str) -> Figure:
    return Figure(name, value, unit, "computed", why)


def _stepped(value: float, step: int) -> int:
    return math.ceil(value / step) * step

"""Makes `server/planning.json`, which `onesearch plan` reads, from docs/measurements.

    python -m loadtest.planning_table            # writes it
    python -m loadtest.planning_table --check    # status 1 when it is not what the files say

Read are: the engine's times (`bench engine`, bfloat16; h100.json); gateways under load
(overload-BEAM.json: ONESEARCH_BEAM_WIDTH=BEAM onesearch bench overload --quick, with `make demo`'s
pair; overload-BEAM-homedepot.json: with the README's pair of Home Depot); the trie's size; the
memory of gateways, in footprint.json (`bench footprint`) and, of a larger catalogue,
footprint-homedepot.json (the same with --snapshot and --checkpoint).
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import orjson

from loadtest.bench.random_checkpoint import SIZES
from server.planning_tables import (
    SHIPPED,
    EngineTime,
    Footprint,
    RedisBytes,
    Serving,
    Shape,
    Tables,
    engine_times,
    machine_of,
    model_name,
    rates,
)

MEASUREMENTS = Path(__file__).parents[1] / "docs" / "measurements"
ENGINE = ("engine-small-bfloat16", "engine-large-bfloat16-1", "engine-large-bfloat16-8")
CARD = "h100"
CARD_MODELS = {"small decoder": "small"}
VOCABULARY = 9216
DEMO_ITEMS = 6000
HOMEDEPOT_ITEMS = 54_667
_OVERLOAD = re.compile(r"overload-(\d+)(-homedepot)?$")
REDIS = {
    "keywords": "keywords of a query",
    "answer": "an answer kept for training",
    "job": "a keyword job that waits",
    "event": "an event",
    "event_id": "an event's id, known for a day",
    "exposure": "an exposure of 10 items",
    "user": "a user's 50 recent items",
}


def tables(folder: Path = MEASUREMENTS) -> Tables:
    """What the files say."""
    machines: dict[str, str] = {}

    def report(name: str) -> tuple[str, dict[str, Any]]:
        raw = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        source = f"docs/measurements/{name}.json"
        machines[source] = machine_of(raw["machine"])
        return source, raw

    engine: list[EngineTime] = []
    for name in ENGINE:
        source, raw = report(name)
        engine += engine_times(raw["rows"], source)
    source, raw = report(CARD)
    engine += _card(raw["rows"], source)
    serving: list[Serving] = []
    for path in sorted(folder.glob("overload-*.json")):
        if match := _OVERLOAD.match(path.stem):
            source, raw = report(path.stem)
            cores = int(raw["machine"]["cores"])
            items = HOMEDEPOT_ITEMS if match[2] else DEMO_ITEMS
            known = ("small", int(match[1]), items, cores, True)
            serving.append(Serving(*known, rates(raw["rows"]), source))
    trie_source, raw = report("trie-memory")
    sizes = [row for row in raw["rows"] if row["what"] == "trie, size"]
    source, raw = report("footprint")
    larger_source, larger = report("footprint-homedepot")
    models = {
        model_name(size.layers, size.hidden): Shape(
            *(size.layers, size.hidden, size.intermediate, size.heads, size.key_heads),
            size.head_dim,
            VOCABULARY,
        )
        for size in SIZES.values()
    }
    return Tables(
        models,
        tuple(engine),
        tuple(serving),
        _footprint(
            [*raw["rows"], *larger["rows"]],
            max(row["ours"] for row in sizes),
            f"{source}, {larger_source}, {trie_source}",
        ),
        _redis(raw["rows"], source),
        machines,
    )


def _card(rows: list[dict[str, Any]], source: str) -> list[EngineTime]:
    found: list[EngineTime] = []
    for row in rows:
        model = CARD_MODELS.get(row["what"])
        if model:
            setting = row["setting"]
            found.append(
                EngineTime(
                    *("cuda", model, setting["beam"], setting["queries"], row["ours"]), source
                )
            )
    return found


def _footprint(rows: list[dict[str, Any]], trie_sid: float, source: str) -> Footprint:
    """The line through gateways of two sizes; what it has without items and weights."""
    points = [row for row in rows if row["what"] == "gateway, memory"]
    small, large = min(points, key=_items), max(points, key=_items)
    # Weights are planned apart.
    first, second = ((row["ours"] - row["checkpoint_mb"]) * 1e6 for row in (small, large))
    item = (second - first) / (_items(large) - _items(small))
    return Footprint(round(first - _items(small) * item), float(f"{item:.4g}"), trie_sid, source)


def _items(row: dict[str, Any]) -> int:
    return row["setting"]["items"]


def _redis(rows: list[dict[str, Any]], source: str) -> RedisBytes:
    sizes = {row["setting"]["what"]: row["ours"] for row in rows if "what" in row["setting"]}
    return RedisBytes(**{name: sizes[what] for name, what in REDIS.items()}, source=source)


def exported(found: Tables) -> bytes:
    """The file's bytes."""
    return orjson.dumps(found.to_json(), option=orjson.OPT_INDENT_2) + b"\n"


def main(arguments: list[str]) -> int:
    """See the module."""
    data = exported(tables())
    if "--check" in arguments:
        return int(data != SHIPPED.read_bytes())
    SHIPPED.write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

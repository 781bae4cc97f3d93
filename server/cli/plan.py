"""`onesearch plan`: replicas, cores or GPUs, memory and Redis for a load, from measured tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import orjson
import typer
from rich.console import Console
from rich.table import Table

from index.errors import ConfigError
from server.planning import HEADROOM, REWRITE_FACTOR, SPARE, Demand, Figure, Plan
from server.planning import plan as planned
from server.planning_tables import DEVICES, Shape, shipped, with_measured
from server.settings import DEFAULT_BEAM_WIDTH

WIDTH = 150


def plan(
    searches: Annotated[float, typer.Option(help="Searches a second at the busiest time.")],
    items: Annotated[int, typer.Option(help="Items of the catalogue.")],
    beam: Annotated[int, typer.Option(help="Beam width.")] = DEFAULT_BEAM_WIDTH,
    model: Annotated[
        str, typer.Option(help="small, large or another name of the tables, or a checkpoint.")
    ] = "small",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    latency_ms: Annotated[float, typer.Option(help="99 % of the answers within.")] = 250.0,
    sids: Annotated[
        int | None, typer.Option(help="Semantic IDs; one an item if not given.")
    ] = None,
    users: Annotated[int, typer.Option(help="Users with an event in 30 days.")] = 0,
    events: Annotated[float, typer.Option(help="Events a second.")] = 0.0,
    queries: Annotated[int, typer.Option(help="Different queries in 7 days; 0: no keywords.")] = 0,
    headroom: Annotated[float, typer.Option(help="Share that stays free.")] = HEADROOM,
    spare: Annotated[int, typer.Option(help="Replicas that may be away.")] = SPARE,
    measured: Annotated[
        list[Path] | None,
        typer.Option(help="Own measurements, over the shipped ones: docs/scale.md. Repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    values: Annotated[
        bool, typer.Option("--values", help="Print values for the Helm chart (JSON is YAML).")
    ] = False,
) -> None:
    """How much of what carries a load, by measurements; what is not measured says so."""
    if device not in DEVICES:
        raise ConfigError(f"--device {device!r} is none of {', '.join(DEVICES)}")
    tables, shape = shipped(), None
    if model not in tables.models and Path(model).is_dir():
        shape = shape_of(Path(model))
    for file in measured or []:
        tables = with_measured(tables, file, model, beam, items)
    demand = Demand(
        *(searches, beam, model, items, latency_ms, device),
        sids=sids,
        users=users,
        events_per_s=events,
        queries=queries,
        headroom=headroom,
        spare=spare,
    )
    found = planned(demand, tables, shape)
    if values:
        typer.echo(orjson.dumps(helm_values(demand, found), option=orjson.OPT_INDENT_2).decode())
    elif as_json:
        typer.echo(orjson.dumps(found.to_json()).decode())
    else:
        _print(found)


def shape_of(checkpoint: Path) -> Shape:
    """The shape that a checkpoint's config.json tells. Raises ConfigError."""
    file = checkpoint / "config.json"
    try:
        raw = cast(dict[str, Any], orjson.loads(file.read_bytes()))
        return Shape(
            layers=int(raw["num_hidden_layers"]),
            hidden=int(raw["hidden_size"]),
            intermediate=int(raw["intermediate_size"]),
            heads=int(raw["num_attention_heads"]),
            key_heads=int(raw["num_key_value_heads"]),
            head_dim=int(raw["head_dim"]),
            vocabulary=int(raw["vocab_size"]),
        )
    except OSError as error:
        raise ConfigError(f"--model {checkpoint}: {file.name}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"--model {checkpoint}: {file.name} is no decoder's: {error}") from None


def helm_values(demand: Demand, found: Plan) -> dict[str, Any]:
    """What deploy/helm/onesearch takes of a plan."""
    resources: dict[str, Any] = {
        "cpu": str(found.cores_per_replica),
        "memory": _gibibytes(found.memory_bytes),
    }
    pool = "gpu" if demand.device == "cuda" else "cpu"
    if found.gpus_per_replica:
        resources["nvidia.com/gpu"] = str(found.gpus_per_replica)
    return {
        "settings": {"beam_width": demand.beam},
        "gateways": {
            pool: {
                "enabled": True,
                "replicas": found.replicas,
                "resources": {"requests": resources, "limits": resources},
                "autoscaling": {
                    "minReplicas": 1 + demand.spare,
                    "maxReplicas": found.replicas,
                    "searchesPerReplica": found.searches_per_replica,
                },
            }
        },
        "redis": {
            "maxmemory": f"{found.redis_maxmemory // 1024**2}mb",
            "resources": {
                "limits": {"memory": f"{REWRITE_FACTOR * found.redis_maxmemory // 1024**2}Mi"},
                "requests": {"memory": f"{REWRITE_FACTOR * found.redis_maxmemory // 1024**2}Mi"},
            },
        },
    }


def _print(found: Plan) -> None:
    console = Console(highlight=False, width=WIDTH)
    each = f"{found.cores_per_replica} cores, {_gibibytes(found.memory_bytes)}"
    if found.gpus_per_replica:
        each += f", {found.gpus_per_replica} GPU with {_gibibytes(found.gpu_memory_bytes)} free"
    redis = found.redis_maxmemory // 1024**2
    console.print(f"{found.replicas} gateways, each {each}")
    console.print(f"Redis: maxmemory {redis} MiB, limit {REWRITE_FACTOR * redis} MiB")
    table = Table(box=None, pad_edge=False)
    for name in ("", "value", "", "what it is", "why"):
        table.add_column(name, justify="right" if name == "value" else "left", overflow="fold")
    for one in found.figures:
        table.add_row(one.name, *_shown(one), one.kind, one.why)
    console.print()
    console.print(table)
    console.print()
    for source, machine in found.machines.items():
        console.print(f"{source}: {machine}")
    if any(one.kind == "extrapolated" for one in found.figures):
        console.print("Parts are extrapolated: measure them before you rely on them.")


def _shown(one: Figure) -> tuple[str, str]:
    if one.unit == "bytes":
        return f"{one.value / 1024**2:,.1f}", "MiB"
    if one.unit.endswith("seconds"):
        return f"{one.value * 1000:.3g}", f"ms ({one.unit})"
    return f"{one.value:,.4g}", one.unit


def _gibibytes(size: int) -> str:
    """As Kubernetes writes it."""
    return f"{size // 1024**2}Mi" if size % 1024**3 else f"{size // 1024**3}Gi"

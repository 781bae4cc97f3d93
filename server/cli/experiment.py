"""`onesearch experiment`: compare the arms of an online experiment, from what was logged."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated

import orjson
import typer

from index.errors import ConfigError

SIMULATED_USERS = 5_000
SIMULATED_LIFT = 0.05
VISITORS = 500

app = typer.Typer(no_args_is_help=True, help="Compare arms of an online experiment.")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


@app.command("report")
def report(
    exposures: Annotated[
        Path, typer.Option(help="Exposures: .jsonl (also .gz), .parquet, or an export.")
    ],
    events: Annotated[Path, typer.Option(help="Clicks and orders: the same.")],
    items: Annotated[
        Path | None,
        typer.Option(help="Dataset directory or item file, for segments of items."),
    ] = None,
    experiment: Annotated[
        str | None, typer.Option(help="Which experiment, where there are several.")
    ] = None,
    control: Annotated[
        str | None, typer.Option(help="The arm to compare with; champion unless given.")
    ] = None,
    shares: Annotated[
        str | None,
        typer.Option(help="Planned shares, such as champion=0.9,challenger=0.1; else as logged."),
    ] = None,
    bootstrap: Annotated[
        int,
        typer.Option(min=0, help="Resamples of a bootstrap over units, beside the intervals."),
    ] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.json, report.md and plots.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Lift of every metric with its 95 % interval, by arm and by segment; is the split sound?"""
    from server.experiment.outcomes import join
    from server.experiment.output import as_json as to_json
    from server.experiment.output import as_markdown, write_report
    from server.experiment.records import Rejected, read_events, read_exposures
    from server.experiment.report import build_report
    from server.experiment.segments import read_items

    planned = None if shares is None else _shares(shares)
    rejected = Rejected()
    facts = None if items is None else read_items(items)
    outcomes, notes = join(
        read_exposures(exposures, rejected), read_events(events, rejected), experiment
    )
    found = build_report(
        outcomes, notes, control=control, shares=planned, facts=facts, resamples=bootstrap
    )
    if rejected.reasons:
        count = sum(rejected.reasons.values())
        found["notes"].append(f"{count:,} rows were left out; the first: {rejected.first}")
    written = [] if out is None else write_report(found, out)
    if as_json:
        typer.echo(to_json(found | {"files": [str(path) for path in written]}))
        return
    typer.echo(as_markdown(found))
    for path in written:
        typer.echo(f"wrote {path}", err=True)


@app.command("simulate")
def simulate(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder for the three files; none with --server.")
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="URL of a running server for the users to search.")
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="With --server: dataset whose judgments say what is liked.")
    ] = None,
    users: Annotated[
        int | None,
        typer.Option(min=2, help=f"Simulated users: {SIMULATED_USERS}, {VISITORS} with --server."),
    ] = None,
    searches: Annotated[
        float, typer.Option(min=1, max=100, help="With --server: mean of each user.")
    ] = 3.0,
    lift: Annotated[
        float | None,
        typer.Option(
            min=-0.9,
            max=5.0,
            help=f"Planted relative lift of item CTR: {SIMULATED_LIFT}, none with --server.",
        ),
    ] = None,
    shares: Annotated[
        str, typer.Option(help="Shares of the arms; with --server it has its own.")
    ] = "champion=0.5,challenger=0.5",
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 7,
    as_json: Json = False,
) -> None:
    """Simulated users: write exposures, events and items to FOLDER, or visit a running server,
    which writes exposures and takes events as of anybody. All of it is marked as simulated."""
    if (folder is None) == (server is None) or (server is None) != (dataset is None):
        raise ConfigError("give a folder, or --server with --dataset")
    if server is not None and dataset is not None:
        _visit(server, dataset, users or VISITORS, searches, lift or 0.0, seed, as_json)
    elif folder is not None:
        planted = SIMULATED_LIFT if lift is None else lift
        _write(folder, users or SIMULATED_USERS, planted, shares, seed, as_json)


def _visit(
    server: str,
    dataset: Path,
    users: int,
    searches: float,
    lift: float,
    seed: int,
    as_json: bool,
) -> None:
    import asyncio

    from index.dataset import Dataset
    from server.cli.bar import Bar
    from server.experiment.visitors import Demand, Visits, visit

    demand = Demand.of(Dataset.open(dataset))
    visits = Visits(users, searches, lift, seed=seed)
    with Bar() as bar:
        task = bar.bar.add_task("simulated users", total=users, note="")

        def show(left: int) -> None:
            bar.bar.update(task, completed=left)
            bar.plain(left / users, f"{left:,} of {users:,} simulated users have left")

        done = asyncio.run(visit(server, demand, visits, show))
    facts = {
        "simulated": True,
        "users": users,
        "searches": done.searches,
        "clicks": done.clicks,
        "orders": done.orders,
        "arms": dict(done.arms),
        "planted_lift": lift,
    }
    if as_json:
        typer.echo(orjson.dumps(facts).decode())
        return
    arms = ", ".join(f"{arm} {count:,}" for arm, count in done.arms.items())
    typer.echo(
        f"{users:,} simulated users: {done.searches:,} searches ({arms}), {done.clicks:,} clicks, "
        f"{done.orders:,} orders; planted lift of item CTR {lift:+.1%}"
    )


def _write(folder: Path, users: int, lift: float, shares: str, seed: int, as_json: bool) -> None:
    import numpy as np

    from server.experiment.assignment import Experiment
    from server.experiment.simulation import (
        SimulatedShop,
        events_of,
        exposures_of,
        item_rows,
    )
    from server.experiment.simulation import simulate as simulate_users

    shop = SimulatedShop(users=users, click_lift=lift)
    named = {arm: Fraction(share).limit_denominator() for arm, share in _shares(shares).items()}
    experiment = Experiment.of("simulated", named)
    outcomes = simulate_users(shop, experiment, np.random.default_rng(seed))
    folder.mkdir(parents=True, exist_ok=True)
    rows = {
        "exposures.jsonl": (one.to_json() for one in exposures_of(outcomes, experiment)),
        "events.jsonl": (one.to_json() for one in events_of(outcomes)),
        "items.jsonl": item_rows(shop),
    }
    for name, records in rows.items():
        with (folder / name).open("wb") as file:
            file.writelines(orjson.dumps(one) + b"\n" for one in records)
    facts = {
        "simulated": True,
        "units": outcomes.n_units,
        "pages": outcomes.n_pages,
        "planted_lift": lift,
        "files": [str(folder / name) for name in rows],
    }
    if as_json:
        typer.echo(orjson.dumps(facts).decode())
        return
    typer.echo(
        f"{outcomes.n_units:,} simulated users, {outcomes.n_pages:,} pages, planted lift of item "
        f"CTR {lift:+.1%}; in {folder}: {', '.join(rows)}"
    )


def _shares(text: str) -> dict[str, float]:
    """`a=0.9,b=0.1` as numbers. Raises ConfigError."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        arm, _, share = (side.strip() for side in part.partition("="))
        try:
            value = float(Fraction(share))
        except (ValueError, ZeroDivisionError, OverflowError):
            value = None
        if not arm or value is None:
            raise ConfigError(
                f"shares {text!r} are not understood; give them as champion=0.9,challenger=0.1"
            )
        if arm in shares:
            raise ConfigError(f"shares {text!r} name arm {arm!r} twice")
        shares[arm] = value
    return shares

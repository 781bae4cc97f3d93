"""`onesearch index`: build snapshots, look into them, verify them, change their catalogues."""

from __future__ import annotations

from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from server.cli import changes, compaction

ENCODER_KINDS = changes.ENCODER_KINDS

app = typer.Typer(no_args_is_help=True, help="Build and inspect snapshots, change catalogues.")
app.command("add")(changes.add)
app.command("remove")(changes.remove)
app.command("changes")(changes.changes)
app.command("merge")(changes.merge)
app.command("compact")(compaction.compact)
app.command("drift")(compaction.drift)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


@app.command("build")
def build(
    dataset: Annotated[Path, typer.Argument(help="Dataset directory.")],
    snapshot: Annotated[Path, typer.Argument(help="Snapshot directory to write.")],
    layout: Annotated[
        str,
        typer.Option(
            help="Codes of each level: 'auto' (chosen by candidate recall), 'published' "
            "(4096-1024-512 + OPQ 256-256), or sizes such as 1024-32 or 256-64-32+16-16."
        ),
    ] = "auto",
    balance: Annotated[
        bool, typer.Option("--balance", help="Balance the third level (with explicit sizes).")
    ] = False,
    keyword_fusion: Annotated[
        float, typer.Option(min=0.0, max=0.99, help="Weight of matched keywords in embeddings.")
    ] = 0.0,
    attributes: Annotated[
        Path | None, typer.Option(help="JSON file that extends the attribute dictionary.")
    ] = None,
    encoder: Annotated[
        list[Path] | None,
        typer.Option(help="Further text encoder (ONNX or local Hugging Face directory); repeat."),
    ] = None,
    encoder_weight: Annotated[
        float, typer.Option(min=0.01, help="Weight of each further encoder; the default's is 1.")
    ] = 0.5,
    encoder_steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps of the static encoder.")
    ] = None,
    codec_items: Annotated[
        int | None,
        typer.Option(min=1, help="Learn the codec from so many items, where there are more."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Encode the items and assign their SIDs on this Ray cluster; 'auto': the one "
            "that this machine belongs to.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 7,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace SNAPSHOT.")] = False,
    as_json: Json = False,
) -> None:
    """Learn encoder and codec from DATASET and write SNAPSHOT."""
    from index.dataset import Dataset
    from models.training.build import BuildSettings, build_snapshot
    from models.training.cluster import joined
    from models.training.encoder import EncoderSettings
    from server.cli.progress import BuildProgress, open_extra_encoders, parse_layout

    settings = BuildSettings(
        encoder=EncoderSettings(seed=seed),
        encoder_steps=encoder_steps,
        codec=parse_layout(layout, balance=balance, seed=seed),
        codec_items=codec_items,
        keyword_fusion=keyword_fusion,
        attributes_file=attributes,
        extra_encoders=open_extra_encoders(encoder or [], encoder_weight),
        seed=seed,
    )
    with nullcontext() if ray is None else joined(ray) as passes, BuildProgress() as progress:
        built = build_snapshot(
            Dataset.open(dataset),
            snapshot,
            settings,
            overwrite=overwrite,
            report=progress.show,
            passes=passes,
        )
    _print_stats(built.path, built.report, built.version, as_json)


@app.command("stats")
def stats(
    snapshot: Annotated[Path, typer.Argument(help="Snapshot directory.")],
    live: changes.Live = None,
    as_json: Json = False,
) -> None:
    """What SNAPSHOT holds and what its build measured: CUR, ICR, candidate recall, sizes."""
    from index.snapshot import Snapshot

    import_module(ENCODER_KINDS)
    opened = Snapshot.open(snapshot)
    facts = {
        **opened.report,
        "layout": list(opened.layout.level_sizes),
        "simulated": opened.manifest["simulated"],
        "trie": {
            "sids": opened.trie.n_leaves,
            "nodes": list(opened.trie.node_counts),
            "bytes_per_sid": opened.trie.bytes_per_sid,
        },
    }
    if changes.has_changes(snapshot, live):
        facts["catalogue"] = changes.changed(snapshot, live)
    _print_stats(snapshot, facts, opened.version, as_json)


@app.command("verify")
def verify(
    snapshot: Annotated[Path, typer.Argument(help="Snapshot directory.")],
    live: changes.Live = None,
    as_json: Json = False,
) -> None:
    """Check every file of SNAPSHOT against its manifest and open it; the same for its changes."""
    from index.snapshot import Snapshot

    import_module(ENCODER_KINDS)
    opened = Snapshot.open(snapshot, verify=True)
    facts = {"snapshot": str(snapshot), "version": opened.version, "items": len(opened.items)}
    told = f"{snapshot}: version {opened.version}, {len(opened.items):,} items, sound"
    if changes.has_changes(snapshot, live):
        catalogue = changes.changed(snapshot, live, verify=True)
        facts = {**facts, "catalogue": catalogue}
        told += f"; {catalogue['sequence']:,} changes, {catalogue['items']:,} items with them"
    typer.echo(orjson.dumps({**facts, "ok": True}).decode() if as_json else told)


@app.command("codecs")
def codecs(
    dataset: Annotated[Path, typer.Argument(help="Dataset directory.")],
    snapshot: Annotated[Path, typer.Argument(help="Its snapshot: encoder and embeddings.")],
    as_json: Json = False,
) -> None:
    """The codec table: plain RQ, + keywords, + level-3 balance, + OPQ, and the chosen layout."""
    from index.dataset import Dataset
    from index.snapshot import Snapshot
    from models.training.codec_table import codec_table

    import_module(ENCODER_KINDS)
    rows = codec_table(Dataset.open(dataset), Snapshot.open(snapshot))
    if as_json:
        typer.echo(orjson.dumps({"rows": rows}, option=orjson.OPT_SERIALIZE_NUMPY).decode())
        return
    columns = list(rows[0])
    table = Table(*columns, title="codecs")
    for row in rows:
        table.add_row(*(_short(row[name]) for name in columns))
    Console(highlight=False, width=160).print(table)


def _print_stats(path: Path, facts: dict[str, Any], version: str, as_json: bool) -> None:
    whole = {"snapshot": str(path), "version": version, **facts}
    if as_json:
        typer.echo(orjson.dumps(whole, option=orjson.OPT_SERIALIZE_NUMPY).decode())
        return
    console = Console(highlight=False)
    table = Table("fact", "value", title=f"{path} (version {version})", title_justify="left")
    for section, value in facts.items():
        if isinstance(value, dict):
            for name, inner in value.items():
                table.add_row(f"{section}.{name}", _short(inner))
        elif section != "layouts_tried":
            table.add_row(section, _short(value))
    console.print(table)
    if tried := facts.get("layouts_tried"):
        names = ["layout", "beam", "candidate_recall", "candidates", "items_per_sid", "ICR"]
        layouts = Table(*names, title="layouts tried, at an equal budget of items")
        for row in tried:
            layouts.add_row(*(_short(row[name]) for name in names))
        console.print(layouts)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

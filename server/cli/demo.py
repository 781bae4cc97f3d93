"""`onesearch demo`: from nothing to a running search, each step skipped where it is done already.

simulated shop → import → snapshot → checkpoint → registry → serve. Every step is the command that
a user would run on their own data; what a killed run left behind is built again or continued. The
server follows the registry beside the demo's directory: another generation that was made champion
there is what a second run serves.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from index.errors import ArtifactError

DEMO_ITEMS = 6000
DEMO_USERS = 2000
DEMO_SESSIONS = 12_000
TRAINING_MINUTES = 4.0
DEMO_EXAMPLES = 400_000
ENCODER_STEPS = 250
MIN_ENCODER_STEPS = 10


def demo(
    port: Annotated[int | None, typer.Option(help="Port; 8080 or ONESEARCH_PORT.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    directory: Annotated[Path, typer.Option(help="Where everything is kept.")] = Path("var/demo"),
    items: Annotated[int, typer.Option(min=60, help="Items of the shop.")] = DEMO_ITEMS,
    sessions: Annotated[
        int | None,
        typer.Option(min=200, help="Simulated searches; two an item unless given."),
    ] = None,
    training_minutes: Annotated[
        float, typer.Option(min=0.05, help="Time budget of the decoder's training.")
    ] = TRAINING_MINUTES,
    serve: Annotated[
        bool, typer.Option("--serve/--no-serve", help="Serve when everything is ready.")
    ] = True,
) -> None:
    """Build a simulated shop, train on it and serve it. Ready in minutes, then in seconds."""
    if serve:
        _check_port(host, port)
    started = time.monotonic()
    console = Console(stderr=True, highlight=False)
    shop, dataset = directory / "shop", directory / "dataset"
    snapshot, checkpoint = directory / "snapshot", directory / "checkpoint"
    share = items / DEMO_ITEMS
    steps: list[tuple[str, Path, Callable[[], None]]] = [
        (
            "dataset: a simulated shop, imported",
            dataset,
            lambda: _import(shop, dataset, share, sessions),
        ),
        ("snapshot: encoder, codec, trie", snapshot, lambda: _build(dataset, snapshot, share)),
        (
            "checkpoint: the decoder",
            checkpoint,
            lambda: _train(dataset, snapshot, checkpoint, training_minutes),
        ),
    ]
    for number, (name, path, make) in enumerate(steps, 1):
        if _is_whole(path):
            console.print(f"[{number}/{len(steps)}] {name}: {path} is there", markup=False)
            continue
        console.print(f"[{number}/{len(steps)}] {name} …", markup=False)
        make()
    registry = directory.parent / "registry"
    for line in _register(registry, snapshot, checkpoint):
        console.print(line, markup=False)
    from server.generation import write_champion

    # Programs that only need the snapshot find it without a registry.
    write_champion(directory.parent / "champion.json", snapshot, checkpoint)
    console.print(f"ready after {time.monotonic() - started:.0f} s; behaviour is simulated")
    if serve:
        from server import settings as settings_of
        from server.cli.serve import run_server

        settings = settings_of.load(None, registry=registry, engine=None, port=port, host=host)
        # A pair that the settings name would go before the registry.
        run_server(settings.model_copy(update={"snapshot": None, "checkpoint": None}))


def _check_port(host: str | None, port: int | None) -> None:
    """Better now than after minutes of training. Raises ConfigError when the port is taken."""
    from server import settings as settings_of
    from server.cli.serve import bind

    settings = settings_of.load(None, port=port, host=host)
    bind(settings.host, settings.port).close()


def _import(shop: Path, dataset: Path, share: float, sessions: int | None) -> None:
    from index.importers.demo_shop import generate
    from index.importers.formats import import_dataset

    generate(
        shop,
        n_items=round(DEMO_ITEMS * share),
        n_users=max(round(DEMO_USERS * share), 20),
        n_sessions=sessions or max(round(DEMO_SESSIONS * share), 200),
    )
    import_dataset("jsonl", shop, dataset)


def _build(dataset: Path, snapshot: Path, share: float) -> None:
    from index.dataset import Dataset
    from models.training.build import BuildSettings, build_snapshot
    from server.cli.progress import BuildProgress

    with BuildProgress() as progress:
        steps = max(MIN_ENCODER_STEPS, round(ENCODER_STEPS * min(share, 1.0)))
        settings = BuildSettings(encoder_steps=steps)
        build_snapshot(Dataset.open(dataset), snapshot, settings, report=progress.show)


def _train(dataset: Path, snapshot: Path, checkpoint: Path, minutes: float) -> None:
    from index.dataset import Dataset
    from index.snapshot import Snapshot
    from models.training.run_sft import SftRun, run_sft
    from models.training.sft import SftSettings
    from server.cli.progress import TrainingProgress

    settings = SftSettings(max_minutes=minutes, examples=DEMO_EXAMPLES)
    run = SftRun(Dataset.open(dataset), Snapshot.open(snapshot), checkpoint, settings=settings)
    with TrainingProgress() as progress:
        run_sft(run, progress.show, progress.announce)


def _register(folder: Path, snapshot: Path, checkpoint: Path) -> list[str]:
    """Publish the pair where that was not done, and make it champion where it is new or there is
    none; what to tell of it."""
    from index import artifact
    from models.registry import promotion, publication
    from models.registry.registry import Provenance, Registry

    registry, by = Registry(folder), Provenance(why="onesearch demo")
    versions = tuple(
        artifact.read(path, kind, verify=False).version
        for path, kind in ((snapshot, "snapshot"), (checkpoint, "checkpoint"))
    )
    if registry.exists and registry.aliases().champion is not None:
        for record in registry.records()[0]:
            if (record.pairing.snapshot, record.pairing.checkpoint) == versions:
                champion = registry.aliases().champion
                return [f"registry: {folder} has it; its champion is {champion}"]
    done = publication.publish(registry, snapshot, checkpoint, by=by)
    promotion.promote(registry, done.record.version, by=by)
    told = f"registry: champion of {folder} is generation {done.record.version}"
    return [told, *(f"note: {note}" for note in done.notes)]


def _is_whole(path: Path) -> bool:
    """Whether a published directory is there; its parts are verified when it is opened to serve."""
    if not path.exists():
        return False
    if not (path / "manifest.json").is_file():
        raise ArtifactError(f"{path} is in the way and is none of ours; move it or remove it")
    return True

"""`onesearch keywords`: warm up from a query log, look into the store, mend what failed, export."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import orjson
import typer
from rich.console import Console
from rich.table import Table

from index.errors import ConfigError
from index.text import normalise
from server import settings as settings_of
from server.cli.bar import Bar
from server.cli.keyword_evaluation import evaluate
from server.settings import Settings

if TYPE_CHECKING:
    from server.keywords.dead_letters import DeadLetters
    from server.keywords.queue import KeywordQueue
    from server.keywords.store import KeywordStore
    from server.keywords.warm import WarmProgress
    from server.redis.connection import RedisConnection
    from server.redis.keys import Keys

DEFAULT_LETTERS = 20
_NO_VERSION = "no worker has made keywords yet; start one: onesearch worker"
Result = TypeVar("Result")

app = typer.Typer(no_args_is_help=True, help="Warm up, show and mend keywords.")
Config = Annotated[
    Path | None, typer.Option(help="TOML file of settings; ONESEARCH_CONFIG names one too.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


class Opened(NamedTuple):
    """What the commands work on."""

    redis: RedisConnection
    keys: Keys
    store: KeywordStore
    queue: KeywordQueue
    dead: DeadLetters


@app.command()
def warm(
    file: Annotated[Path, typer.Argument(help="Query log: text (one a line), CSV or Parquet.")],
    column: Annotated[str, typer.Option(help="Column of a CSV or Parquet file.")] = "query",
    most: Annotated[
        int | None, typer.Option("--most", min=1, help="Only so many, the most frequent.")
    ] = None,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="Wait for room in a full queue, and until all is made."),
    ] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Enter the queries of a log, the most frequent first. What is stored stays out."""
    from server.keywords.warm import read_head
    from server.keywords.warm import warm as warm_up

    head = read_head(file, column, most)
    with _WarmBar() as bar:

        async def work(opened: Opened) -> WarmProgress:
            return await warm_up(
                opened.queue,
                head.queries,
                await opened.store.version(),
                wait_for_room=wait,
                wait_for_answers=wait,
                show=bar.show,
            )

        done = _run(config, work)
    report: dict[str, Any] = {
        "rows": head.rows,
        "empty": head.empty,
        "too_long": head.too_long,
        "queries": len(head.queries),
        **done.entered,
        "unfinished": done.unfinished,
    }
    if as_json:
        typer.echo(orjson.dumps(report).decode())
    else:
        typer.echo(", ".join(f"{name} {count:,}" for name, count in report.items()))
    if done.entered["full"] and not as_json:
        typer.echo("the queue is full; run it again later, or with --wait", err=True)


@app.command()
def show(
    query: Annotated[str, typer.Argument(help="The query, in any spelling.")],
    user: Annotated[str | None, typer.Option(help="Personalised ones of this user id.")] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """What is stored for a query. Status 1 when there is nothing."""

    async def work(opened: Opened) -> dict[str, Any]:
        version = await opened.store.version()
        if version is None:
            raise ConfigError(_NO_VERSION)
        key = normalise(query)
        [stored] = await opened.store.read(version, key, (user,))
        found: dict[str, Any] = {"query": key, "user_id": user, "version": version, "stored": False}
        if stored is None:
            return found
        left_s = await opened.store.lifetime_s(version, key, user)
        found |= {"stored": True, "lifetime_s": None if left_s is None else round(left_s)}
        return found | {"keywords": stored.keywords, "failure": stored.failure or None}

    found = _run(config, work)
    if as_json:
        typer.echo(orjson.dumps(found).decode())
    elif not found["stored"]:
        typer.echo(f"nothing stored for {found['query']!r} in version {found['version']}")
    else:
        typer.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
    if not found["stored"]:
        raise typer.Exit(1)


@app.command()
def status(config: Config = None, as_json: AsJson = False) -> None:
    """The queue in numbers."""

    async def work(opened: Opened) -> dict[str, Any]:
        found = await opened.queue.status()
        return {
            "version": await opened.store.version(),
            "jobs": found.jobs,
            "waiting": {str(name): count for name, count in found.waiting.items()},
            "in_hand": found.in_hand,
            "postponed": found.postponed,
            "dead": found.dead,
            "made": found.made,
            "oldest_s": {str(name): round(age, 3) for name, age in found.oldest_s.items()},
        }

    found = _run(config, work)
    if as_json:
        typer.echo(orjson.dumps(found).decode())
    else:
        for name, value in found.items():
            typer.echo(f"{name:<10} {value}")


@app.command()
def dead(
    count: Annotated[int, typer.Option(min=1, max=10_000, help="How many.")] = DEFAULT_LETTERS,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Jobs that could not be done, the newest first, and why."""
    from server.keywords.dead_letters import letter_to_json

    async def work(opened: Opened) -> dict[str, Any]:
        letters = await opened.dead.newest(count)
        total = (await opened.queue.status()).dead
        return {"dead": total, "letters": [letter_to_json(letter) for letter in letters]}

    found = _run(config, work)
    if as_json:
        typer.echo(orjson.dumps(found).decode())
        return
    table = Table(
        "id", "query", "user", "attempts", "reason", title=f"{found['dead']} dead letters"
    )
    for letter in found["letters"]:
        cells = (letter["query"], letter["user_id"], letter["attempts"], letter["reason"])
        table.add_row(letter["id"], *("" if cell is None else str(cell) for cell in cells))
    Console(highlight=False, markup=False).print(table)


@app.command()
def replay(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids as `keywords dead` shows.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All dead letters.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Make jobs of dead letters again."""
    if bool(ids) == everything:
        raise ConfigError("name the dead letters to replay, or give --all")

    async def work(opened: Opened) -> dict[str, int]:
        return await opened.dead.replay(ids or None, await opened.store.version())

    counts = _run(config, work)
    if as_json:
        typer.echo(orjson.dumps(counts).decode())
    else:
        typer.echo(", ".join(f"{name} {count:,}" for name, count in counts.items()))


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="Parquet file to write.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Write what was made, query by query, for training."""
    from server.keywords.export import export as write

    rows = _run(config, lambda opened: write(opened.redis, opened.keys, file))
    if as_json:
        typer.echo(orjson.dumps({"file": str(file), "rows": rows}).decode())
    else:
        typer.echo(f"wrote {rows:,} rows to {file}")


app.command()(evaluate)


class _WarmBar(Bar):
    """Queries handed in, then jobs done."""

    def __init__(self) -> None:
        super().__init__()
        self._task = self.bar.add_task("entering", total=None, note="")

    def show(self, progress: WarmProgress) -> None:
        entered = ", ".join(f"{name} {count:,}" for name, count in progress.entered.items())
        offered, queries = progress.offered, max(progress.queries, 1)
        if offered < progress.queries:
            self.bar.update(self._task, completed=offered, total=queries, note=entered)
            self.plain(offered / queries, f"entered {offered:,} of {queries:,}: {entered}")
            return
        done = queries - progress.unfinished
        self.bar.update(
            self._task, description="making", completed=done, total=queries, note=entered
        )
        self.plain(1 + done / queries, f"made {done:,} of {queries:,}: {entered}")


def _run(config: Path | None, work: Callable[[Opened], Awaitable[Result]]) -> Result:
    settings = settings_of.load(config)
    return asyncio.run(_opened(settings, work))


async def _opened(settings: Settings, work: Callable[[Opened], Awaitable[Result]]) -> Result:
    from server.keywords.dead_letters import DeadLetters
    from server.keywords.queue import KeywordQueue
    from server.keywords.store import KeywordStore
    from server.redis.keys import Keys
    from server.redis.opening import open_redis

    keys, limit = Keys(settings.redis_prefix), settings.keyword_queue_limit
    async with open_redis(settings) as redis:
        opened = Opened(
            redis,
            keys,
            KeywordStore(redis, keys),
            KeywordQueue(redis, keys, limit=limit),
            DeadLetters(redis, keys, limit),
        )
        return await work(opened)

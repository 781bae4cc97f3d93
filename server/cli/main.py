"""`onesearch`: the command line. A command's module is imported when the command is used.

Wrong input ends in one line on standard error and status 2; Ctrl-C in 130; a bug in one line and
status 1, with its traceback under `--debug` or ONESEARCH_DEBUG=1.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, NamedTuple, cast

import typer
from typer.core import TyperCommand, TyperGroup

from index.errors import OnesearchError

EXIT_BUG = 1
EXIT_WRONG_INPUT = 2
EXIT_INTERRUPTED = 130
DEBUG_VARIABLE = "ONESEARCH_DEBUG"
# Single searches multiply small matrices: a pool of BLAS threads beside the engine's only makes
# them wait for each other. Read by OpenBLAS when it is loaded, so it is set before any import.
SERIAL_BLAS = {"serve", "evaluate"}
# Typer's own errors about arguments: their common base has no public name.
_USAGE_ERROR = cast(type[Exception], typer.BadParameter.__mro__[2])


class Command(NamedTuple):
    """Where a command lives: a typer app (a group) or a function, by the name of its module, since
    `bench` belongs to a package above this one."""

    module: str
    attribute: str
    help: str


COMMANDS = {
    "data": Command("server.cli.data", "app", "Import and check datasets."),
    "index": Command("server.cli.index", "app", "Build snapshots and look into them."),
    "train": Command("server.cli.train", "app", "Train checkpoints, stage by stage."),
    "evaluate": Command("server.cli.evaluate", "evaluate", "Measure rankings on judgments."),
    "serve": Command("server.cli.serve", "serve", "Answer searches over HTTP."),
    "worker": Command("server.cli.worker", "worker", "Make keywords for queries that wait."),
    "keywords": Command("server.cli.keywords", "app", "Warm up, show and mend keywords."),
    "generations": Command(
        "server.cli.generations", "app", "Publish, promote, roll back: what is served."
    ),
    "events": Command(
        "server.cli.events", "app", "Export what users were shown and did; forget a user."
    ),
    "sidecar": Command(
        "server.cli.sidecar", "app", "Train on what users do; publish what passes the gate."
    ),
    "keys": Command("server.cli.keys", "app", "Make, list, replace and revoke API keys."),
    "experiment": Command("server.cli.experiment", "app", "Compare arms of an online experiment."),
    "demo": Command("server.cli.demo", "demo", "From nothing to a search on a small catalogue."),
    "plan": Command("server.cli.plan", "plan", "Replicas, memory and Redis for a load."),
    "bench": Command("loadtest.bench.cli", "bench", "Measure against peers."),
    "loadtest": Command("loadtest.cli", "app", "Load on a shop over HTTP, and its report."),
    "doctor": Command("server.cli.doctor", "doctor", "Check this machine and say what to do."),
}


class Deferred(TyperCommand):
    """Stands for a command in the list of commands; becomes the real one when it is called."""

    def __init__(self, name: str, command: Command) -> None:
        super().__init__(name, help=command.help, add_help_option=False)
        self._command = command

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """The real command's context, so that it parses and runs in this one's place."""
        return self._load().make_context(info_name, args, parent, **extra)

    def _load(self) -> Any:
        module = import_module(self._command.module)
        target: Any = getattr(module, self._command.attribute)
        # A parent of its own keeps the command free of options that belong to a whole program.
        parent = typer.Typer(add_completion=False)
        if isinstance(target, typer.Typer):
            parent.add_typer(target, name=self.name)
        else:
            parent.command(self.name)(target)
        parent.callback()(_no_options)
        return typer.main.get_group(parent).commands[self.name or ""]


class DeferredGroup(TyperGroup):
    """A group of deferred commands."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The commands, in the order in which they are first needed."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        """A stand-in for the command, or None."""
        command = COMMANDS.get(cmd_name)
        return None if command is None else Deferred(cmd_name, command)


app = typer.Typer(
    cls=DeferredGroup,
    no_args_is_help=True,
    add_completion=False,
    help="A generative search engine for product catalogues.",
)


def _no_options() -> None: ...


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"onesearch {version('onesearch')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and end.", is_eager=True, callback=_print_version
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """What holds for all commands. `--debug` is read by `run`."""


def run() -> None:
    """Entry point of the `onesearch` program."""
    if SERIAL_BLAS & set(sys.argv[1:2]):
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Run one command line; the exit status."""
    debug = "--debug" in arguments or os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")
    try:
        status = app(list(arguments), prog_name="onesearch", standalone_mode=False)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except typer.Abort:
        return EXIT_INTERRUPTED
    except OnesearchError as error:
        return _fail(str(error), EXIT_WRONG_INPUT, debug)
    except _USAGE_ERROR as error:
        return _fail_usage(error, debug)
    except Exception as error:  # noqa: BLE001  the last boundary: a bug must end in one line
        what = f"unexpected {type(error).__name__}: {error}"
        hint = "" if debug else " (a bug; --debug before the command shows its traceback)"
        return _fail(what + hint, EXIT_BUG, debug)
    return status if isinstance(status, int) else 0


def _fail(message: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print("error:", " ".join(message.split()), file=sys.stderr)
    return status


def _fail_usage(error: Any, debug: bool) -> int:
    """A wrong argument: one line; no argument where there must be one: the help."""
    message = str(error.format_message())
    context: Any = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(message, file=sys.stderr)
        return EXIT_WRONG_INPUT
    path = context.command_path if context is not None else "onesearch"
    return _fail(f"{message.rstrip('.')}. Try: {path} --help", EXIT_WRONG_INPUT, debug)

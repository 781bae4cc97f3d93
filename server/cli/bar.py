"""One progress bar on standard error; plain lines where it is no terminal."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class Bar:
    """One rich progress bar on standard error; plain lines where it is no terminal."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
            transient=False,
        )
        self.console = console
        self.last_line = -1.0

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def plain(self, share: float, text: str) -> None:
        """Without a terminal: one line for each tenth of the work."""
        if not self.console.is_terminal and share - self.last_line >= 0.1:
            self.last_line = share
            self.console.print(text, highlight=False)

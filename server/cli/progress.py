"""Progress on standard error for long commands, and the parsing of their arguments."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from index.encoder import TextEncoder
from index.errors import ConfigError
from models.training.codec import PUBLISHED, CodecSettings
from models.training.loop import Progress as TrainingStep
from server.cli.bar import Bar

_SIZES = re.compile(r"(\d+(?:-\d+)*)(?:\+(\d+)-(\d+))?")


class BuildProgress(Bar):
    """Phases of an index build, the encoder's training with its loss."""

    def __init__(self) -> None:
        super().__init__()
        self._task = self.bar.add_task("reading", total=None, note="")
        self._phase = ""

    def show(self, phase: str, done: int, total: int, loss: float) -> None:
        if phase != self._phase:
            self._phase, self.last_line = phase, -1.0
            if phase != "encoder":
                self.console.print(f"{phase} …", highlight=False)
        note = f"loss {loss:.3f}" if loss else ""
        size = total if phase == "encoder" else None
        self.bar.update(self._task, description=phase, completed=done, total=size, note=note)
        if phase == "encoder":
            self.plain(done / total, f"encoder: step {done}/{total}, loss {loss:.3f}")


class TrainingProgress(Bar):
    """Steps, loss, examples a second and time left."""

    def __init__(self) -> None:
        super().__init__()
        self._task = self.bar.add_task("starting", total=None, note="")

    def announce(self, message: str) -> None:
        self.bar.update(self._task, description=message)
        self.console.print(f"{message} …", highlight=False)

    def show(self, step: TrainingStep) -> None:
        minutes, seconds = divmod(int(step.left_s), 60)
        note = (
            f"loss {step.loss:.3f}, {step.examples_per_s:,.0f} examples/s, "
            f"{minutes}:{seconds:02d} left"
        )
        self.bar.update(
            self._task,
            description=f"stage {step.stage}, step {step.step}/{step.planned_steps}",
            completed=step.step,
            total=step.planned_steps,
            note=note,
        )
        share = step.step / max(step.planned_steps, 1)
        self.plain(share, f"step {step.step}/{step.planned_steps}: {note}")


def parse_layout(text: str, *, balance: bool, seed: int) -> CodecSettings | None:
    """'auto' → None, 'published', or sizes like 1024-32 or 256-64-32+16-16 (OPQ after the plus)."""
    if text in ("auto", "published"):
        if balance:
            raise ConfigError(
                f"--balance goes with explicit sizes; --layout {text} decides it itself"
            )
        return None if text == "auto" else PUBLISHED
    match = _SIZES.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"--layout {text!r} is not understood; give auto, published, or sizes such as 1024-32 "
            "or 256-64-32+16-16"
        )
    residual = tuple(int(size) for size in match[1].split("-"))
    product = (int(match[2]), int(match[3])) if match[2] else ()
    if balance and len(residual) < 3:
        raise ConfigError(
            f"--balance balances the third residual level; --layout {text!r} has {len(residual)}"
        )
    if min(residual + product) < 2:
        raise ConfigError(f"--layout {text!r}: every level needs at least 2 codes")
    settings = CodecSettings(residual, product, balance_third_level=balance, seed=seed)
    _ = settings.layout  # Raises ConfigError for sizes that no SID can hold.
    return settings


def open_extra_encoders(
    directories: Sequence[Path], weight: float
) -> tuple[tuple[TextEncoder, float], ...]:
    """Further encoders of an index build, each with its weight."""
    if not directories:
        return ()
    from models.text_encoders import open_text_encoder

    return tuple((open_text_encoder(directory), weight) for directory in directories)


def chosen_device(name: str) -> str:
    """'auto' → cuda where there is one, else cpu. Raises ConfigError for one that is not there."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not (name.split(":")[0] == "cuda" and torch.cuda.is_available()):
        raise ConfigError(f"--device {name!r} is not there; use cpu, or auto")
    return name

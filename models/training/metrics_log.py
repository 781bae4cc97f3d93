"""Training metrics as they happen: metrics.jsonl and a TensorBoard log in one directory."""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

from models.training.loop import Progress

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Appends one JSON line a step; TensorBoard too where its package is installed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer: Any = None

    def __enter__(self) -> MetricsLog:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._file = (self._directory / METRICS_FILE).open("a", encoding="utf-8")
        try:
            with warnings.catch_warnings():
                # TensorBoard's own dependencies warn on import; nothing here can mend that.
                warnings.simplefilter("ignore")
                from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            return self
        self._writer = SummaryWriter(str(self._directory))
        return self

    def write(self, step: Progress) -> None:
        """One step's figures."""
        facts = {
            "step": step.step,
            "stage": step.stage,
            "loss": step.loss,
            "examples_per_s": round(step.examples_per_s, 1),
            "learning_rate": step.learning_rate,
            **step.measures,
            "time": round(time.time(), 3),
        }
        self._file.write(json.dumps(facts) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name in ("loss", "examples_per_s", "learning_rate", *step.measures):
                self._writer.add_scalar(name, facts[name], step.step)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if self._writer is not None:
            self._writer.close()

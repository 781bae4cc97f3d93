"""What is known of a sidecar, for Prometheus: a port, or a text file after each step.

Figures are read off the rounds, so they are right after a restart.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from index.errors import ConfigError
from models.training.loop import Progress
from server.processes import ProcessCollector
from server.sidecar.rounds import STEPS, Round

OUTCOMES = ("open", "published", "refused", "failed", "superseded")


class SidecarMetrics:
    """`onesearch_sidecar_…`. `file`: a text file that is replaced at each `write`."""

    def __init__(self, file: Path | None = None) -> None:
        self.registry = CollectorRegistry()
        self._file = file
        self._rounds = self._gauge("rounds", "Rounds by what became of them", "outcome")
        self._step = self._gauge("step", "1 for the step that the open round is at", "step")
        self._ended = self._gauge("last_round_seconds", "Unix time of the last end", "outcome")
        self._waiting = self._gauge("waiting_clicks", "Clicks that no round has used yet")
        self._held = self._gauge("lease_held", "Whether this process is the one that works")
        self._gain = self._gauge("gain", "Of the last comparison, held-out searches", "edge")
        self._refused = self._gauge("failed_checks", "Checks that the last refusal failed", "check")
        self._trained = self._gauge("training_share", "Of the stage that is trained", "stage")
        self._loss = self._gauge("training_loss", "Mean loss of the last step", "stage")
        self._reward = self._gauge("training_reward", "Of the last step's rollouts, mean", "stage")
        self.registry.register(ProcessCollector("sidecar"))
        for outcome in OUTCOMES:
            self._rounds.labels(outcome).set(0)

    def tell(self, rounds: list[Round]) -> None:
        """After each step: everything that the rounds say."""
        counts = Counter(one.outcome for one in rounds)
        for outcome in OUTCOMES:
            self._rounds.labels(outcome).set(counts[outcome])
        last = rounds[-1] if rounds else None
        for step in STEPS:
            at = last is not None and last.outcome == "open" and last.step == step
            self._step.labels(step).set(float(at))
        for one in rounds:
            if one.outcome != "open":
                self._ended.labels(one.outcome).set(one.updated)
        gains = [one.facts["gain"] for one in rounds if "gain" in one.facts]
        for edge in ("mean", "low", "high") if gains else ():
            self._gain.labels(edge).set(gains[-1][edge])
        self._refused.clear()
        refused = [one for one in rounds if one.outcome == "refused"]
        for name in failed_checks(refused[-1]) if refused else ():
            self._refused.labels(name).set(1)

    def waiting(self, clicks: int) -> None:
        """So many clicks are there for the next round."""
        self._waiting.set(clicks)

    def holds(self, held: bool) -> None:
        """Whether the lease is this process's."""
        self._held.set(float(held))

    def training(self, stage: str, progress: Progress) -> None:
        """After each step of a training."""
        self._trained.labels(stage).set(progress.step / max(progress.planned_steps, 1))
        self._loss.labels(stage).set(progress.loss)
        if "reward" in progress.measures:
            self._reward.labels(stage).set(progress.measures["reward"])

    def write(self) -> None:
        """Replace the text file, if there is one. Raises ConfigError when it cannot be written."""
        if self._file is None:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_to_textfile(str(self._file), self.registry)
        except OSError as error:
            raise ConfigError(f"{self._file} cannot be written: {error.strerror}") from None

    def _gauge(self, name: str, what: str, *labels: str) -> Gauge:
        return Gauge(f"onesearch_sidecar_{name}", what, labels, registry=self.registry)


def failed_checks(one: Round) -> list[str]:
    """Names of the checks that a round failed."""
    verdicts: list[Any] = [one.facts.get("batch_verdict"), one.facts.get("verdict")]
    checks = [check for verdict in verdicts if verdict for check in verdict["checks"]]
    return sorted({check["name"] for check in checks if not check["passed"]})

"""Command line of the GPU check; see the package's head."""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

BUDGET_S = 540.0
_SHOWN = ("p99", "floor", "over_floor", "p99_over_p50", "capture_ms", "peers", "answers")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.gpu_check")
    parser.add_argument("--out", type=Path, required=True, help="directory for the results")
    parser.add_argument("--commit", default="", help="recorded; default: what git says")
    parser.add_argument("--only", nargs="*", default=[], help="names of checks and measurements")
    parser.add_argument(
        "--budget-s", type=float, default=BUDGET_S, help="no measurement starts after so long"
    )
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu-check needs a CUDA device and torch for CUDA; torch sees none", file=sys.stderr)
        return 2
    report = Report(arguments.out, arguments.only, arguments.budget_s)
    report.run(arguments.commit)
    if unknown := report.unknown():
        print(f"nothing is called {', '.join(unknown)}", file=sys.stderr)
        return 2
    print(f"{'passed' if report.passed else 'FAILED'}, written: {report.path}")
    return 0 if report.passed else 1


class Report:
    """Runs everything, writing what is known after each part: one that fails does not stop the
    others, and one that takes the process with it does not lose them."""

    def __init__(self, directory: Path, only: list[str], budget_s: float) -> None:
        from loadtest.gpu_check.machine import describe_card, short_name

        self.machine: dict[str, Any] = describe_card()
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / f"{short_name(self.machine['card'])}.json"
        self._only, self._budget_s = set(only), budget_s
        self._started = time.monotonic()
        self._checks: list[dict[str, Any]] = []
        self._rows: list[dict[str, Any]] = []
        self._failures: dict[str, str] = {}
        self._skipped: list[str] = []
        self._seen: set[str] = set()

    def unknown(self) -> list[str]:
        """Names that were asked for and that no part has."""
        return sorted(self._only - self._seen)

    @property
    def passed(self) -> bool:
        return not self._failures and all(check["passed"] for check in self._checks)

    def run(self, commit: str) -> None:
        from loadtest.bench.machine import describe_machine
        from loadtest.gpu_check.correctness import checks
        from loadtest.gpu_check.machine import measure_ceilings
        from loadtest.gpu_check.timing import measurements

        torch.backends.cuda.matmul.allow_tf32 = False
        ceilings = measure_ceilings()
        host = describe_machine()
        self.machine |= {
            "host": host["cpu"],
            "commit": commit or host["commit"],
            "bf16_product_tflops": round(ceilings.operations / 1e12, 1),
            "copy_tb_per_s": round(ceilings.bandwidth / 1e12, 3),
        }
        print(json.dumps(self.machine), flush=True)
        for check in checks():
            self._part(check.__name__, lambda check=check: self._add_check(check()))
        for measure in measurements(ceilings):
            self._part(measure.__name__, lambda measure=measure: self._add_rows(measure()))
        self._write()

    def _part(self, name: str, work: Callable[[], Any]) -> None:
        self._seen.add(name)
        if self._only and name not in self._only:
            return
        started = time.monotonic()
        if started - self._started > self._budget_s:
            self._skipped.append(name)
            return
        try:
            work()
        except Exception:  # noqa: BLE001  one failure must not lose the rest
            self._failures[name] = traceback.format_exc(limit=-6)
            print(f"FAILED {name}\n{self._failures[name]}")
        print(f"{name}: {time.monotonic() - started:.1f} s", flush=True)
        self._write()

    def _add_check(self, check: Any) -> None:
        passed = bool(check.passed)
        self._checks.append({"name": check.name, "passed": passed, "detail": check.detail})
        print("ok  " if passed else "BAD ", check.name, check.detail)

    def _add_rows(self, rows: list[dict[str, Any]]) -> None:
        self._rows.extend(rows)
        for one in rows:
            setting = " ".join(f"{key} {value}" for key, value in one["setting"].items())
            extra = {key: one[key] for key in _SHOWN if one.get(key)}
            print(f"{one['what']}: {setting}: {one['ours']} {one['unit']} {extra}")

    def _write(self) -> None:
        text = json.dumps(self.to_json(), indent=2) + "\n"
        self.path.write_text(text, encoding="utf-8")

    def to_json(self) -> dict[str, Any]:
        return {
            "machine": self.machine,
            "passed": self.passed,
            "seconds": round(time.monotonic() - self._started, 1),
            "checks": self._checks,
            "rows": self._rows,
            "failures": self._failures,
            "skipped": self._skipped,
        }


if __name__ == "__main__":
    sys.exit(main())

"""Not a test: `onesearch sidecar` that is killed at a moment.

    interrupted_sidecar.py MOMENT ARGUMENTS…

Moments: `begun`, the batch is on disk and its record is not; `training`, in the third step of it;
`published`, the alias is changed and the record is not written; `never`.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from server.cli.main import main
from server.sidecar.rounds import Round, Rounds
from server.sidecar.sidecar import Sidecar

KILLED_IN_STEP = 3


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: str) -> None:
    write, show = Rounds.write, Sidecar._show  # pyright: ignore[reportPrivateUsage]

    def written(self: Rounds, one: Round) -> Round:
        now = {
            "begun": one.attempts == 0 and one.step == "check",
            "published": one.outcome == "published",
        }
        if now.get(moment):
            die()
        return write(self, one)

    def shown(self: Sidecar, stage: str, progress: Any) -> None:
        if moment == "training" and progress.step >= KILLED_IN_STEP:
            die()
        show(self, stage, progress)

    Rounds.write = written  # type: ignore[method-assign]
    Sidecar._show = shown  # type: ignore[method-assign]


if __name__ == "__main__":
    arm(sys.argv[1])
    sys.exit(main(sys.argv[2:]))

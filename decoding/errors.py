"""What can go wrong while decoding.

OnesearchError
├── DeadlineExceeded    the search was not done in time
├── EngineOverloaded    the search was refused at once; try again after `retry_after_s`
├── EngineClosed        the engine is going away
├── EngineRestarting    the engine broke and is being started again
└── GenerationReplaced  the weights that the search names are no longer loaded
"""

from __future__ import annotations

from index.errors import OnesearchError


class DeadlineExceeded(OnesearchError):
    """The deadline passed before the search ended. Partial work is dropped."""


class EngineOverloaded(OnesearchError):
    """The queue is full, or longer than the deadline allows."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(f"{message}; try again in {retry_after_s:.2f} s")
        self.retry_after_s = retry_after_s


class EngineClosed(OnesearchError):
    """The engine no longer takes searches."""


class EngineRestarting(OnesearchError):
    """What the engine computes with has ended; it takes searches again as soon as it can."""


class GenerationReplaced(OnesearchError):
    """The search names weights that an engine with room for one set has replaced. Nothing was
    searched; prepare the search again, for the live ones."""

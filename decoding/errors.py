"""What can go wrong while decoding.

OnesearchError
├── DeadlineExceeded    the search was not done in time
├── EngineOverloaded    the search was refused at once; try again after `retry_after_s`
└── EngineClosed        the engine is going away
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

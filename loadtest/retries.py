"""How a client asks again when the replica that had its search is gone.

A search changes nothing, so it may be sent twice. The policy, for any client of several gateways
behind a proxy or load balancer:

- again after a connection that could not be made or was closed without an answer, and after 502,
  503 and 504; never after another status, and never after a read timeout: the time is spent
- up to `attempts` in all; before each one `Retry-After` if it was given, else a random time up to
  `first_wait_s`, doubled each time, at most `longest_wait_s`
- never beyond the caller's own deadline
- out of a budget: `share` of the searches, and `burst` saved up, so that clients do not bury what
  is left of an overloaded service under repetitions
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

AGAIN = frozenset({502, 503, 504})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Times in seconds."""

    attempts: int = 4
    first_wait_s: float = 0.05
    longest_wait_s: float = 1.0
    share: float = 0.2
    burst: int = 50

    def wait_s(self, repetition: int, retry_after: str | None) -> float:
        """Before the first (0), second, … repetition."""
        if retry_after is not None and retry_after.isdigit():
            return min(float(retry_after), self.longest_wait_s)
        return random.uniform(0, min(self.first_wait_s * 2**repetition, self.longest_wait_s))


@dataclass(slots=True)
class RetryingClient:
    """Sends searches over an httpx client, on one event loop. `repeated`: how many were."""

    client: httpx.AsyncClient
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    repeated: int = 0
    _budget: float = field(init=False)

    def __post_init__(self) -> None:
        self._budget = float(self.policy.burst)

    async def search(self, url: str, body: dict[str, Any], timeout_s: float) -> httpx.Response:
        """The last answer. Raises httpx.TransportError when there was none."""
        until = time.monotonic() + timeout_s
        self._budget = min(self._budget + self.policy.share, float(self.policy.burst))
        repetition = 0
        while True:
            answer, error = None, None
            try:
                left_s = max(until - time.monotonic(), 0.001)
                answer = await self.client.post(url, json=body, timeout=left_s)
                if answer.status_code not in AGAIN:
                    return answer
            except (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout) as failed:
                error = failed
            after = None if answer is None else answer.headers.get("Retry-After")
            wait_s = self.policy.wait_s(repetition, after)
            may = repetition + 1 < self.policy.attempts and self._budget >= 1
            if not may or time.monotonic() + wait_s >= until:
                if answer is None:
                    assert error is not None
                    raise error
                return answer
            repetition += 1
            self.repeated += 1
            self._budget -= 1
            await asyncio.sleep(wait_s)

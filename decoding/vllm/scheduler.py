"""vLLM's scheduler, which begins the requests of a round together.

They come as single messages, and an idle core would begin a step with the first one or two: a step
that costs almost as much as one of all. So requests wait here until their round is whole. A round's
number and size are in its requests' ids; other requests are none of its business.
"""

# vLLM lives in another environment than the one that is checked.
# pyright: reportMissingImports=false, reportUntypedBaseClass=false
# pyright: reportUnknownParameterType=false, reportIncompatibleMethodOverride=false
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

from decoding.vllm.round_names import round_of


class RoundScheduler(Scheduler):
    """Requests of a round are added when the last of them has come."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._incomplete: dict[str, dict[str, Any]] = {}

    def add_request(self, request: Any) -> None:
        name, size = round_of(request.request_id)
        if size <= 1:
            super().add_request(request)
            return
        held = self._incomplete.setdefault(name, {})
        held[request.request_id] = request
        if len(held) == size:
            del self._incomplete[name]
            for one in held.values():
                super().add_request(one)

    def finish_requests(self, request_ids: Any, finished_status: Any) -> list[Any]:
        """Whoever gives up a request gives up its round."""
        if self._incomplete:
            for name in self._given_up(request_ids):
                self._incomplete.pop(name, None)
        return super().finish_requests(request_ids, finished_status)

    def _given_up(self, request_ids: str | Iterable[str] | None) -> list[str]:
        if request_ids is None:
            return list(self._incomplete)
        names = [request_ids] if isinstance(request_ids, str) else request_ids
        return [round_of(name)[0] for name in names]

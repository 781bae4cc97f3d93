"""The protocol's values and the generator that does nothing."""

from __future__ import annotations

import asyncio

from server.keywords.generator import Failure, GenerationError, KeywordGenerator, NullGenerator
from server.keywords.keywords import KeywordRequest, Keywords


def test_null_generator_answers_each_request_in_order() -> None:
    generator: KeywordGenerator = NullGenerator(clock=lambda: 7.0)
    requests = [KeywordRequest("B"), KeywordRequest("a", "u", recent_queries=("x",))]
    answers = asyncio.run(generator.generate(requests))
    found = [answer for answer in answers if isinstance(answer, Keywords)]
    assert [keywords.query for keywords in found] == ["b", "a"]
    assert [keywords.personalised for keywords in found] == [False, True]
    assert all(keywords.terms == () and keywords.created_s == 7.0 for keywords in found)
    assert all(keywords.source.version == generator.version for keywords in found)


def test_what_may_pass_is_retried() -> None:
    assert GenerationError(Failure.TIMEOUT, "late").retryable
    assert not GenerationError(Failure.INVALID_ANSWER, "no JSON").retryable

"""Answers in one word, and which of them need an explanation."""

import pytest

from loadtest.outcomes import is_answered, is_unexplained, outcome_of


@pytest.mark.parametrize(
    ("status", "body", "kind", "outcome", "answered", "unexplained"),
    [
        (200, b'{"hits":[],"degraded":[]}', "search", "whole", True, False),
        (
            200,
            b'{"degraded":["engine_deadline","x"]}',
            "search",
            "degraded: engine_deadline, x",
            True,
            False,
        ),
        (200, b"{", "search", "lost", False, True),
        (202, b"{}", "event", "whole", True, False),
        (503, b'{"type":"/problems/overloaded"}', "search", "overloaded", False, False),
        (504, b'{"type":"/problems/deadline-exceeded"}', "x", "deadline-exceeded", False, False),
        (503, b'{"type":"/problems/not-ready"}', "search", "not-ready", False, True),
        (422, b'{"type":"/problems/invalid-request"}', "search", "invalid-request", False, True),
        (502, b"<html>", "search", "status 502", False, True),
        (500, b"[]", "search", "status 500", False, True),
        (0, b"", "search", "lost", False, True),
    ],
)
def test_outcomes(
    status: int, body: bytes, kind: str, outcome: str, answered: bool, unexplained: bool
):
    found = outcome_of(status, body, kind)
    assert found == outcome
    assert is_answered(found) is answered
    assert is_unexplained(found) is unexplained

from types import SimpleNamespace

import pytest

from decoding.vllm.round_names import request_names, round_of

pytest.importorskip("vllm", reason="vLLM lives in an environment of its own: make test-vllm")

from vllm.v1.core.sched.scheduler import Scheduler

from decoding.vllm.scheduler import RoundScheduler


@pytest.fixture
def added(monkeypatch) -> list[str]:
    """Ids of the requests that reach vLLM's own scheduler."""
    seen: list[str] = []
    monkeypatch.setattr(Scheduler, "__init__", lambda self: None)
    monkeypatch.setattr(Scheduler, "add_request", lambda _, one: seen.append(one.request_id))
    monkeypatch.setattr(Scheduler, "finish_requests", lambda *_: [])
    return seen


def come(scheduler: RoundScheduler, *names: str) -> None:
    for name in names:
        scheduler.add_request(SimpleNamespace(request_id=name))


def test_a_round_begins_when_it_is_whole(added):
    scheduler = RoundScheduler()
    one, two = request_names(1, 3), request_names(2, 2)
    come(scheduler, one[0], "cmpl-4/5", two[0], one[1])
    assert added == ["cmpl-4/5"]
    come(scheduler, two[1])
    assert added[1:] == two
    come(scheduler, one[2])
    assert added[3:] == one
    come(scheduler, *request_names(3, 1))
    assert added[6:] == request_names(3, 1)


def test_a_round_that_is_given_up_leaves_nothing(added):
    scheduler = RoundScheduler()
    names = request_names(1, 3)
    come(scheduler, *names[:2])
    scheduler.finish_requests(names[:2], None)
    come(scheduler, *request_names(2, 3)[:1])
    scheduler.finish_requests(None, None)
    assert not scheduler._incomplete and not added


def test_names_say_round_and_size():
    assert [round_of(name) for name in request_names(7, 2)] == [("7", 2), ("7", 2)]
    assert len(set(request_names(7, 2))) == 2
    assert round_of("chatcmpl-1/2/3/4") == ("", 0)

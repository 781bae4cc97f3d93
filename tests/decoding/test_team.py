import threading

import numpy as np
import pytest
import torch
from numba import njit

from decoding.team import ALONE, Team, shared, torch_team


@njit(nogil=True)
def _add_squares(first, last, offset, squares, visits):
    for place in range(first, last):
        squares[place] = (place + offset) ** 2
        visits[place] += 1


_share_squares = shared(_add_squares)


@njit(nogil=True)
def squares_from(team, begin, end, offset, squares, visits):
    _share_squares(team, begin, end, (offset, squares, visits))


@pytest.fixture(params=[1, 2, 3])
def team(request) -> Team:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    found = torch_team()
    torch.set_num_threads(before)
    return found


def check(team: Team, begin: int, end: int) -> None:
    squares, visits = np.zeros(1000, dtype=np.int64), np.zeros(1000, dtype=np.int64)
    squares_from(team, begin, end, 3, squares, visits)
    inside = (np.arange(1000) >= begin) & (np.arange(1000) < end)
    assert np.array_equal(visits, inside)
    assert np.array_equal(squares, np.where(inside, (np.arange(1000) + 3) ** 2, 0))


@pytest.mark.parametrize("bounds", [(0, 1000), (0, 0), (7, 8), (5, 2), (3, 16), (990, 1000)])
def test_each_place_is_visited_once(team: Team, bounds: tuple[int, int]):
    check(team, *bounds)
    check(ALONE, *bounds)


def test_a_team_has_the_threads_of_torchs_products():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch_team() == ALONE
        torch.set_num_threads(2)
        assert torch_team().threads == (2 if torch_team().start else 1)
    finally:
        torch.set_num_threads(before)


def test_threads_may_share_loops_at_the_same_time(team: Team):
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(200):
                check(team, 1, 999)
        except AssertionError as error:
            failed.append(error)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failed


@njit(nogil=True)
def _fail(first, last, at):
    for place in range(first, last):
        if place == at:
            raise MemoryError


_share_failure = shared(_fail)


@njit(nogil=True)
def fail_at(team, at):
    _share_failure(team, 0, 100, (at,))


def test_a_part_that_fails_is_not_passed_over(team: Team):
    fail_at(team, 100)
    with pytest.raises(MemoryError, match="shared loop"):
        fail_at(team, 60)

"""Rows of a benchmark: what contenders needed, whether they were right, and who was better.

A row is a JSON object:

    {"what": …, "setting": {…}, "ours": x, "peers": {name: y}, "unit": …, "ratio": {name: r}}

`ratio` is how many times better ours is, whatever the unit: above 1 is in our favour. Rows of one
`what` are one table and one plot. A peer that cannot run has the reason in place of its figure, and
no ratio. Details go under further keys: `quartiles` (lower and upper of each contender), `answers`
(what was right of a peer's answer, ours being the measure; tests tie ours to brute force), and what
a benchmark adds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

Row = dict[str, Any]
Samples = Sequence[float]
OURS = "ours"
EQUAL = "equal"
_DIGITS = 4


class Timed(NamedTuple):
    """A contender's answer that brings its own seconds, where not all of the call counts."""

    answer: Any
    seconds: float


@dataclass(frozen=True, slots=True)
class Race:
    """What interleaved rounds gave: seconds of every call and the answer of the last one."""

    seconds: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    answers: dict[str, Any] = field(default_factory=dict[str, Any])

    def scaled(self, name: str, factor: float) -> list[float]:
        """Samples of a contender in another unit."""
        return [sample * factor for sample in self.seconds[name]]

    def peers(self, factor: float) -> dict[str, list[float]]:
        """Samples of all but ours in another unit."""
        return {name: self.scaled(name, factor) for name in self.seconds if name != OURS}


def race(
    contenders: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 7,
    budget_s: float = 3.0,
    slice_s: float = 0.01,
    warm_up: int = 1,
    least_rounds: int = 3,
) -> Race:
    """Time contenders in turns, so that whatever disturbs the machine disturbs all of them.

    Each is called `warm_up` times untimed. In a round each is called once, and again until
    `slice_s` is used up; another starts each round. After `least_rounds` the race ends as soon as
    `budget_s` is spent, at the latest after `rounds`.
    """
    result = Race({name: [] for name in contenders})
    for _ in range(warm_up):
        for run in contenders.values():
            run()
    names = list(contenders)
    started = time.perf_counter()
    for number in range(rounds):
        if number >= least_rounds and time.perf_counter() - started > budget_s:
            break
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            run, used = contenders[name], 0.0
            while not used or used < slice_s:
                begun = time.perf_counter()
                answer = run()
                took = time.perf_counter() - begun
                used += took
                if isinstance(answer, Timed):
                    answer, took = answer
                result.answers[name] = answer
                result.seconds[name].append(took)
    return result


def verdict(ours: Iterable[Any], theirs: Iterable[Any]) -> str:
    """ "equal" when the other answer holds exactly ours in any order, else how much of it does."""
    wanted, given = list(ours), list(theirs)
    right = len(set(wanted) & set(given))
    if right == len(wanted) == len(given):
        return EQUAL
    surplus = len(given) - right
    return f"{right} of {len(wanted)} right" + (f", {surplus} wrong" if surplus else "")


def row(
    what: str,
    setting: Mapping[str, Any],
    ours: Samples | float,
    peers: Mapping[str, Samples | float | str],
    unit: str,
    *,
    higher_is_better: bool = False,
    answers: Mapping[str, str] | None = None,
    **details: Any,
) -> Row:
    """One row. Samples become their median and, from three on, quartiles; a text in place of a
    peer's samples says why there are none. `details` are further keys of the row."""
    own = _median(ours)
    figures = {name: _figure(found) for name, found in peers.items()}
    ratios = {
        name: _rounded(_ratio(own, figure, higher_is_better))
        for name, figure in figures.items()
        if not isinstance(figure, str)
    }
    quartiles = {
        name: spread
        for name, found in {OURS: ours, **peers}.items()
        if (spread := _quartiles(found)) is not None
    }
    return {
        "what": what,
        "setting": dict(setting),
        "ours": _rounded(own),
        "peers": figures,
        "unit": unit,
        "ratio": ratios,
        **({"quartiles": quartiles} if quartiles else {}),
        **({"answers": dict(answers)} if answers else {}),
        **details,
    }


def tables(rows: Collection[Row]) -> dict[str, list[Row]]:
    """Rows by what they measure, in the order of their first appearance."""
    grouped: dict[str, list[Row]] = {}
    for one in rows:
        grouped.setdefault(one["what"], []).append(one)
    return grouped


def peer_names(rows: Iterable[Row]) -> list[str]:
    """Every peer of the rows, in the order of first appearance."""
    return list(dict.fromkeys(name for one in rows for name in one["peers"]))


def setting_text(setting: Mapping[str, Any]) -> str:
    """A setting on one line."""
    return ", ".join(f"{key} {_plain(value)}" for key, value in setting.items())


def _plain(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _median(found: Samples | float) -> float:
    return float(np.median(np.asarray(found, dtype=np.float64)))


def _figure(found: Samples | float | str) -> float | str:
    return found if isinstance(found, str) else _rounded(_median(found))


def _ratio(ours: float, theirs: float, higher_is_better: bool) -> float:
    above, below = (ours, theirs) if higher_is_better else (theirs, ours)
    return above / below if below else float("inf") if above else 1.0


def _quartiles(found: Samples | float | str) -> list[float] | None:
    if isinstance(found, str | int | float) or len(found) < 3:
        return None
    return [_rounded(float(value)) for value in np.quantile(found, (0.25, 0.75))]


def _rounded(value: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{value:.{_DIGITS}g}")

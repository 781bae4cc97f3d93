"""The gate: whether a batch of behaviour may be trained on, and a challenger may be served.

Pure functions of figures. Every check says what was found, what would have been right, and whether
it holds; a verdict is all of them, so that a refusal names each reason and an acceptance shows by
how much.

    batch        events that name nothing shown · one user, one item · click rate · clicked items
                 that judges find worse than what was shown beside them · made up or not
    challenger   loss on any group or slice of held-out searches · gain · legality · drift

A loss counts when it is larger than `margin` and its paired 95 % interval lies below zero, or, in
a group, when it is larger than `max_loss` whatever the interval says. Groups and slices of fewer
than `min_searches` searches say nothing. HR@10 counts for judgments only: what was clicked on the
champion's first page was among its first ten, so there a challenger could only lose.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from models.training.challenge import Comparison, Difference

MARGIN = 0.01
MAX_LOSS = 0.05
MIN_SEARCHES = 30
JUDGED = "judged"
_OF_JUDGMENTS = "hr@10"


@dataclass(frozen=True, slots=True)
class GateSettings:
    """Limits. Shares and rates are from 0 to 1; see docs/sidecar.md for the reason of each."""

    max_unmatched: float = 0.1
    max_user_share: float = 0.2
    max_item_share: float = 0.3
    max_click_rate: float = 0.5
    click_rate_factor: float = 3.0
    allow_simulated: bool = False
    metric: str = "ndcg@10"
    min_gain: float = 0.0
    margin: float = MARGIN
    max_loss: float = MAX_LOSS
    min_searches: int = MIN_SEARCHES
    min_valid_rate: float = 0.5
    max_valid_loss: float = 0.1
    max_weight_distance: float = 0.5
    min_overlap: float = 0.2
    max_score_shift: float = 5.0
    max_concentration_gain: float = 0.1


@dataclass(frozen=True, slots=True)
class BatchFacts:
    """A batch in figures. `unmatched`: share of clicks and orders that name no shown item of a
    known search. `user_share`, `item_share`: of the clicks, of the one with most. `click_rate`:
    clicks of an item shown, `usual_click_rate` in earlier batches. `grade_difference`: mean grade
    of what was clicked less that of what was shown beside it, by query; None without judgments.
    `simulated`: whether any of it is made up, `of_simulated` whether the dataset is."""

    searches: int
    clicks: int
    users: int
    unmatched: float
    user_share: float
    item_share: float
    click_rate: float
    usual_click_rate: float | None
    grade_difference: Difference | None
    simulated: bool
    of_simulated: bool


@dataclass(frozen=True, slots=True)
class Check:
    """One question. `value` was found, `limit` is the last that would have been right."""

    name: str
    passed: bool
    value: float
    limit: float
    detail: str = ""

    def __str__(self) -> str:
        more = f" ({self.detail})" if self.detail else ""
        return f"{self.name} {self.value:.4g}, limit {self.limit:.4g}{more}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """All checks; passed when each is."""

    checks: tuple[Check, ...] = field(default=())

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def reasons(self) -> list[str]:
        """One line for each check that failed."""
        return [str(check) for check in self.checks if not check.passed]

    def to_json(self) -> dict[str, Any]:
        return {"passed": self.passed, "checks": [asdict(check) for check in self.checks]}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Verdict:
        return cls(tuple(Check(**check) for check in raw["checks"]))


def judge_batch(facts: BatchFacts, settings: GateSettings) -> Verdict:
    """Whether a batch looks like what people do."""
    checks = [
        _most("unmatched events", facts.unmatched, settings.max_unmatched),
        _most("clicks of one user", facts.user_share, settings.max_user_share),
        _most("clicks on one item", facts.item_share, settings.max_item_share),
        _most("clicks of an item shown", facts.click_rate, settings.max_click_rate),
    ]
    if facts.usual_click_rate:
        rate = facts.click_rate / facts.usual_click_rate
        factor = settings.click_rate_factor
        checks.append(_most("click rate to the usual one", rate, factor))
        checks.append(_least("click rate to the usual one", rate, 1 / factor))
    if facts.grade_difference is not None:
        found = facts.grade_difference
        detail = f"95 % interval {found.low:.3g} to {found.high:.3g}"
        checks.append(_least("grade of what is clicked to what is shown", found.high, 0.0, detail))
    made_up = facts.simulated and not (facts.of_simulated or settings.allow_simulated)
    detail = "simulated events for a dataset that is not" if made_up else ""
    checks.append(Check("simulated", not made_up, float(facts.simulated), 1.0 - made_up, detail))
    return Verdict(tuple(checks))


def judge_challenger(comparison: Comparison, settings: GateSettings) -> Verdict:
    """Whether a challenger may take the champion's place."""
    drift, metric = comparison.drift, settings.metric
    held_out = comparison.groups.get("held out")
    searches = 0 if held_out is None else held_out.searches
    checks = [_least("held-out searches", searches, settings.min_searches)]
    if held_out is not None and searches >= settings.min_searches:
        gain = held_out.differences[metric]
        detail = f"95 % interval {gain.low:+.3f} to {gain.high:+.3f} of {searches} searches"
        checks.append(_least(f"gain of {metric}", gain.mean, settings.min_gain, detail))
    checks += _losses(comparison, settings)
    champion, challenger = comparison.valid_rates
    checks += [
        _least("legal SIDs", comparison.legal_rate, 1.0),
        _least("legal SIDs unconstrained", challenger, settings.min_valid_rate),
        _most("loss of legal SIDs unconstrained", champion - challenger, settings.max_valid_loss),
        _most("distance of the weights", drift.weight_distance, settings.max_weight_distance),
        _least("overlap of the first ten", drift.overlap, settings.min_overlap),
        _most("shift of the best score", abs(drift.score_shift), settings.max_score_shift),
        _most(
            "concentration on few items",
            drift.concentrations[1] - drift.concentrations[0],
            settings.max_concentration_gain,
        ),
    ]
    return Verdict(tuple(checks))


def _losses(comparison: Comparison, settings: GateSettings) -> Iterator[Check]:
    """One check for each metric of each group and slice that is large enough."""
    for where, groups in (("", comparison.groups), ("slice ", comparison.slices)):
        for name, group in groups.items():
            if group.searches < settings.min_searches:
                continue
            for metric, found in group.differences.items():
                if metric == _OF_JUDGMENTS and name != JUDGED:
                    continue
                surely = found.high < 0 and found.mean < -settings.margin
                far = not where and found.mean < -settings.max_loss
                detail = f"95 % interval {found.low:+.3f} to {found.high:+.3f}"
                limit = -settings.margin if found.high < 0 else -settings.max_loss
                what = f"difference of {metric}, {where}{name}"
                yield Check(what, not (surely or far), found.mean, limit, detail)


def _most(name: str, value: float, limit: float, detail: str = "") -> Check:
    return Check(name, value <= limit, float(value), limit, detail)


def _least(name: str, value: float, limit: float, detail: str = "") -> Check:
    return Check(name, value >= limit, float(value), limit, detail)

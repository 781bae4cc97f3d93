"""The report of one experiment: every arm against control, as a whole and by segment.

A JSON object:

    {"experiment", "simulated", "control", "trustworthy", "confidence",
     "sample_ratio": {"ok", "p_value", "chi_square", "counts", "expected"},
     "arms": {ARM: {"units", "pages", "shown_items", "clicks", "orders", "buyers",
                    "metrics": {METRIC: {"value", "ci95": [low, high]}}}},
     "comparisons": [{"arm", "metric", "lift", "ci95", "p_value", "significant", "p_corrected",
                      "detectable", "units_for_5_percent", "bootstrap_ci95"}],
     "segments": [{"segment", "value", "arm", "metric", "units", "lift", "ci95", "p_value",
                   "p_corrected", "significant"}],
     "notes": [text]}

Lifts, and what is detectable, are relative: 0.05 is +5 %. `p_corrected` is corrected (Holm) for the
number of rows of its table; `significant` in segments is by it. `detectable` is what an experiment
of this size finds with 80 % power, `units_for_5_percent` how many units it would take to find 5 %;
`bootstrap_ci95` is there where resamples were asked for. `trustworthy` is false when the
sample-ratio check fails or units were seen in two arms: then the figures mean nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from index.errors import ConfigError
from server.experiment.metrics import ITEM_METRICS, METRICS, Sums, in_arm, sums_of
from server.experiment.outcomes import Bools, JoinNotes, Outcomes
from server.experiment.sample_ratio import SampleRatio, check_sample_ratio
from server.experiment.segments import ItemFact, Segment, segments_of
from server.experiment.statistics import (
    CONFIDENCE,
    Lift,
    bootstrap_interval,
    detectable,
    holm,
    lift,
    ratio,
    units_for,
)

Report = dict[str, Any]
CONTROL = "champion"
CROSSED_SHARE = 0.001
"""More units than this in two arms: assignment is not stable."""
FEW_UNITS = 200
SHOWN_LIFT = 0.05
BOOTSTRAP_SEED = 7
_ALPHA = 1 - CONFIDENCE


def build_report(
    outcomes: Outcomes,
    notes: JoinNotes,
    *,
    control: str | None = None,
    shares: Mapping[str, float] | None = None,
    facts: Mapping[str, ItemFact] | None = None,
    resamples: int = 0,
) -> Report:
    """Everything above.

    `control`: "champion" where there is one, else the first arm by name. `shares`: of the arms; as
    the records say, else equal. `resamples`: of the bootstrap beside the intervals; 0 leaves it
    out. Raises ConfigError for unknown arms.
    """
    control = _control(outcomes, control)
    told: list[str] = []
    check = check_sample_ratio(notes.assigned, _shares(outcomes, notes, shares, told))
    arms = [arm for arm in outcomes.arms if arm != control]
    comparisons = _compare(outcomes, control, arms, resamples)
    segments = _compare_segments(outcomes, control, arms, facts)
    crossed = notes.crossed / max(sum(notes.assigned.values()), 1)
    trustworthy = check.ok and crossed <= CROSSED_SHARE
    return {
        "experiment": outcomes.experiment,
        "simulated": outcomes.simulated,
        "control": control,
        "trustworthy": trustworthy,
        "confidence": CONFIDENCE,
        "sample_ratio": _ratio_facts(check),
        "arms": {arm: _arm_facts(outcomes, arm) for arm in (control, *arms)},
        "comparisons": comparisons,
        "segments": segments,
        "notes": [*_notes(outcomes, notes, check, segments, facts), *told],
    }


def members_of(outcomes: Outcomes, arm: str) -> Bools:
    """The units of an arm, bool (U,)."""
    return outcomes.unit_arm == outcomes.arms.index(arm)


def lift_of(sums: Sums, control: Bools, treatment: Bools) -> Lift | None:
    """Lift of one metric between two sets of units; None where it is not defined."""
    ratios = [ratio(*in_arm(sums, members)) for members in (control, treatment)]
    if ratios[0] is None or ratios[1] is None:
        return None
    return lift(ratios[0], ratios[1])


def _control(outcomes: Outcomes, named: str | None) -> str:
    if named is None:
        return CONTROL if CONTROL in outcomes.arms else outcomes.arms[0]
    if named not in outcomes.arms:
        raise ConfigError(f"there is no arm {named!r}; there are: {', '.join(outcomes.arms)}")
    return named


def _shares(
    outcomes: Outcomes, notes: JoinNotes, given: Mapping[str, float] | None, told: list[str]
) -> Mapping[str, float]:
    if given is not None:
        return given
    named = {arm: share for arm, share in notes.shares.items() if share is not None}
    if len(named) == len(notes.shares):
        return named
    told.append(
        "the exposures do not name one share for each arm, so equal ones were expected; give "
        "--shares if they were not"
    )
    return dict.fromkeys(notes.shares, 1.0)


def _arm_facts(outcomes: Outcomes, arm: str) -> dict[str, Any]:
    members = members_of(outcomes, arm)
    pages = members[outcomes.page_unit]
    shown = pages[outcomes.shown_page]
    sums = sums_of(outcomes)
    metrics: dict[str, Any] = {}
    for name in METRICS:
        found = ratio(*in_arm(sums[name], members))
        value = None if found is None else found.value
        interval = None if found is None else list(found.interval())
        metrics[name] = {"value": value, "ci95": interval}
    return {
        "units": int(members.sum()),
        "pages": int(pages.sum()),
        "shown_items": int(shown.sum()),
        "clicks": int(outcomes.clicked[shown].sum()),
        "orders": int(outcomes.ordered[shown].sum()),
        "buyers": int(sums["buyers"].x[members].sum()),
        "metrics": metrics,
    }


def _compare(
    outcomes: Outcomes, control: str, arms: list[str], resamples: int
) -> list[dict[str, Any]]:
    sums = sums_of(outcomes)
    reference = members_of(outcomes, control)
    rows: list[dict[str, Any]] = []
    for arm in arms:
        members = members_of(outcomes, arm)
        for name in METRICS:
            found = lift_of(sums[name], reference, members)
            row = {"arm": arm, "metric": name, **_lift_facts(found)}
            row["significant"] = found is not None and found.significant
            if found is not None and found.se > 0:
                units = int(np.count_nonzero(reference | members))
                row["detectable"] = detectable(found.se)
                row["units_for_5_percent"] = units_for(SHOWN_LIFT, found.se, units)
            else:
                row["detectable"] = row["units_for_5_percent"] = None
            if resamples and found is not None:
                both = [in_arm(sums[name], one) for one in (reference, members)]
                random = np.random.default_rng(BOOTSTRAP_SEED)
                interval = bootstrap_interval(both[0], both[1], random, resamples=resamples)
                row["bootstrap_ci95"] = list(interval)
            rows.append(row)
    return _corrected(rows)


def _compare_segments(
    outcomes: Outcomes, control: str, arms: list[str], facts: Mapping[str, ItemFact] | None
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for segment in segments_of(outcomes, facts):
        sums = sums_of(outcomes, pages=segment.pages, shown=segment.shown)
        for arm in arms:
            rows += _segment_rows(outcomes, segment, sums, control, arm)
    rows = _corrected(rows)
    for row in rows:
        row["significant"] = row["p_corrected"] is not None and row["p_corrected"] < _ALPHA
    return rows


def _segment_rows(
    outcomes: Outcomes, segment: Segment, sums: Mapping[str, Sums], control: str, arm: str
) -> list[dict[str, Any]]:
    members = [members_of(outcomes, name) for name in (control, arm)]
    rows: list[dict[str, Any]] = []
    for name in METRICS if segment.shown is None else ITEM_METRICS:
        found = lift_of(sums[name], *members)
        rows.append(
            {
                "segment": segment.kind,
                "value": segment.value,
                "arm": arm,
                "metric": name,
                "units": int(np.count_nonzero((sums[name].y > 0) & (members[0] | members[1]))),
                **_lift_facts(found),
            }
        )
    return rows


def _lift_facts(found: Lift | None) -> dict[str, Any]:
    if found is None:
        return {"lift": None, "ci95": None, "p_value": None}
    return {
        "lift": found.relative,
        "ci95": [found.low, found.high],
        "p_value": found.p_value,
    }


def _corrected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with p-values corrected for their number."""
    known = [row for row in rows if row["p_value"] is not None]
    for row in rows:
        row["p_corrected"] = None
    for row, p_value in zip(known, holm([row["p_value"] for row in known]), strict=True):
        row["p_corrected"] = p_value
    return rows


def _ratio_facts(check: SampleRatio) -> dict[str, Any]:
    return {
        "ok": check.ok,
        "p_value": check.p_value,
        "chi_square": check.chi_square,
        "counts": dict(check.counts),
        "expected": dict(check.expected),
    }


def _notes(
    outcomes: Outcomes,
    notes: JoinNotes,
    check: SampleRatio,
    segments: list[dict[str, Any]],
    facts: Mapping[str, ItemFact] | None,
) -> list[str]:
    told: list[str] = []
    if outcomes.simulated:
        told.append("simulated users: nothing here says anything about people")
    if not check.ok:
        told.append(
            f"the sample-ratio check fails (p = {check.p_value:.2g}): assignment or logging is "
            "broken, do not use these figures"
        )
    if notes.crossed:
        told.append(f"{notes.crossed:,} units were seen in two arms and are left out")
    least = min(int(members_of(outcomes, arm).sum()) for arm in outcomes.arms)
    if least < FEW_UNITS:
        told.append(f"an arm has {least} units; below {FEW_UNITS} the intervals are too narrow")
    if segments:
        tests = sum(row["p_value"] is not None for row in segments)
        told.append(
            f"{tests} comparisons in segments: without correction about {tests * _ALPHA:.0f} of "
            "them would come out significant by chance; significance in segments is corrected"
        )
    if facts is None:
        told.append("no item table: no segments by category and popularity (--items)")
    for count, what in (
        (notes.repeated_exposures, "exposures were repeated and count once"),
        (notes.repeated_events, "events were repeated and count once"),
        (notes.unmatched_events, "events name no shown item of a known search"),
    ):
        if count:
            told.append(f"{count:,} {what}")
    return told

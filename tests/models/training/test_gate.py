"""The gate on figures made by hand: each reason to refuse, alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models.training.challenge import (
    Comparison,
    Difference,
    Drift,
    Group,
    concentration,
)
from models.training.gate import (
    BatchFacts,
    GateSettings,
    Verdict,
    judge_batch,
    judge_challenger,
)

SETTINGS = GateSettings()
USUAL = BatchFacts(
    searches=1000,
    clicks=300,
    users=200,
    unmatched=0.01,
    user_share=0.02,
    item_share=0.05,
    click_rate=0.04,
    usual_click_rate=0.05,
    grade_difference=Difference(0.4, 0.3, 0.5),
    simulated=False,
    of_simulated=False,
)


def group(difference: Difference, searches: int = 100) -> Group:
    return Group(searches, 50, {"ndcg@10": 0.5}, {"ndcg@10": 0.5}, {"ndcg@10": difference})


BETTER = Difference(0.05, 0.01, 0.09)
PASSING = Comparison(
    groups={name: group(BETTER) for name in ("judged", "earlier", "new", "held out")},
    slices={"tail": group(Difference(0.0, -0.02, 0.02))},
    legal_rate=1.0,
    valid_rates=(0.9, 0.9),
    drift=Drift(0.1, 0.6, 0.3, (0.2, 0.22)),
)


def test_a_usual_batch_passes() -> None:
    verdict = judge_batch(USUAL, SETTINGS)
    assert verdict.passed
    assert verdict.reasons == []
    assert Verdict.from_json(verdict.to_json()) == verdict


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"unmatched": 0.4}, "unmatched events 0.4, limit 0.1"),
        ({"user_share": 0.6}, "clicks of one user"),
        ({"item_share": 0.9}, "clicks on one item"),
        ({"click_rate": 0.8, "usual_click_rate": None}, "clicks of an item shown"),
        ({"click_rate": 0.2}, "click rate to the usual one 4, limit 3"),
        ({"click_rate": 0.01}, "click rate to the usual one 0.2"),
        ({"grade_difference": Difference(-0.4, -0.5, -0.3)}, "grade of what is clicked"),
        ({"simulated": True}, "simulated events for a dataset that is not"),
    ],
)
def test_each_sign_of_poison_is_a_reason(change: dict[str, Any], told: str) -> None:
    verdict = judge_batch(replace(USUAL, **change), SETTINGS)
    assert not verdict.passed
    assert len(verdict.reasons) == 1
    assert told in verdict.reasons[0]


def test_simulated_behaviour_may_be_allowed() -> None:
    made_up = replace(USUAL, simulated=True)
    assert judge_batch(made_up, replace(SETTINGS, allow_simulated=True)).passed
    assert judge_batch(replace(made_up, of_simulated=True), SETTINGS).passed


def test_a_better_challenger_passes() -> None:
    assert judge_challenger(PASSING, SETTINGS).reasons == []
    assert Comparison.from_json(PASSING.to_json()) == PASSING


@pytest.mark.parametrize(
    ("name", "difference", "refused"),
    [
        ("judged", Difference(-0.02, -0.03, -0.01), True),
        ("judged", Difference(-0.005, -0.008, -0.002), False),
        ("judged", Difference(-0.03, -0.07, 0.01), False),
        ("judged", Difference(-0.06, -0.15, 0.03), True),
        ("earlier", Difference(-0.02, -0.03, -0.01), True),
    ],
    ids=["surely", "within the margin", "perhaps", "far", "what was before"],
)
def test_a_loss_counts_when_it_is_sure_or_large(
    name: str, difference: Difference, refused: bool
) -> None:
    comparison = replace(PASSING, groups={**PASSING.groups, name: group(difference)})
    assert judge_challenger(comparison, SETTINGS).passed is not refused


def test_gain_on_the_new_searches_makes_up_for_nothing() -> None:
    groups = PASSING.groups | {
        "new": group(Difference(0.5, 0.4, 0.6)),
        "judged": group(Difference(-0.2, -0.25, -0.15)),
    }
    verdict = judge_challenger(replace(PASSING, groups=groups), SETTINGS)
    assert [check.name for check in verdict.checks if not check.passed] == [
        "difference of ndcg@10, judged"
    ]


def test_clicks_on_the_champions_first_page_say_nothing_of_hit_rates() -> None:
    worse = Difference(-0.2, -0.3, -0.1)
    for name, passed in (("new", True), ("judged", False)):
        hits = replace(group(BETTER), differences={"hr@10": worse, "ndcg@10": BETTER})
        comparison = replace(PASSING, groups={**PASSING.groups, name: hits})
        assert judge_challenger(comparison, SETTINGS).passed is passed


def test_a_slice_counts_when_it_is_large_enough() -> None:
    worse = Difference(-0.2, -0.3, -0.1)
    for searches, passed in ((10, True), (50, False)):
        comparison = replace(PASSING, slices={"tail": group(worse, searches)})
        assert judge_challenger(comparison, SETTINGS).passed is passed


def test_too_few_held_out_searches_decide_nothing() -> None:
    few = PASSING.groups | {"held out": group(BETTER, 5)}
    [reason] = judge_challenger(replace(PASSING, groups=few), SETTINGS).reasons
    assert reason == "held-out searches 5, limit 30"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"legal_rate": 0.999}, "legal SIDs"),
        ({"valid_rates": (0.9, 0.7)}, "loss of legal SIDs unconstrained"),
        ({"valid_rates": (0.45, 0.45)}, "legal SIDs unconstrained"),
        ({"drift": replace(PASSING.drift, weight_distance=float("inf"))}, "distance of the"),
        ({"drift": replace(PASSING.drift, overlap=0.05)}, "overlap of the first ten"),
        ({"drift": replace(PASSING.drift, score_shift=-9.0)}, "shift of the best score"),
        ({"drift": replace(PASSING.drift, concentrations=(0.2, 0.6))}, "concentration"),
    ],
)
def test_legality_and_drift(change: dict[str, Any], told: str) -> None:
    [reason] = judge_challenger(replace(PASSING, **change), SETTINGS).reasons
    assert reason.startswith(told)


def test_the_gain_has_to_reach_its_floor() -> None:
    [reason] = judge_challenger(PASSING, replace(SETTINGS, min_gain=0.1)).reasons
    assert reason.startswith("gain of ndcg@10 0.05, limit 0.1")


def test_concentration_is_the_share_of_the_most_shown() -> None:
    ranked = [np.array([7, 1]), np.array([7, 2]), np.array([7, 3])]
    assert concentration(ranked, 100) == 0.5
    assert concentration(ranked, 200) == pytest.approx(4 / 6)
    assert concentration([], 100) == 0.0

"""Personalised search, measured on searches of users: who finds what they went on to choose?

    generative             the served ranking: history in the prompt, the beam's items and the first
                           of BM25 and dense search, personal weights
    generative_no_history  the same engine and visits as if nobody had a history, weights fitted so
    prompt_only            history in the prompt, impersonal weights
    rescoring_only         no history in the prompt, personal weights
    beam, beam_no_history  SID log-probability alone, history in the prompt or not
    bm25, dense, hybrid    as in `models.training.evaluate`
    retrieval_taste        bm25 and dense together, rescored with taste, no decoder

A visit counts once for what was clicked and, where something was ordered, once for that. HR@10:
whether one of the first ten items was chosen; NDCG@10 binary, against the best order of what was
chosen; MRR@10 the reciprocal rank of the first. Intervals: `cluster_bootstrap`. Weights are fitted
on validation visits, never on those measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.errors import ConfigError
from index.rescoring import FEATURES, RescoringWeights, reciprocal_rank_fusion
from index.taste import PersonalWeights, TasteWeights
from models.ranking import Candidates
from models.training.cluster_bootstrap import ClusterBootstrap
from models.training.personal_weights import RETRIEVED, VisitSearch, fit_weights, gains_of
from models.training.visits import Visit

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
Values = dict[str, NDArray[np.float64]]

METHODS = (
    "generative",
    "generative_no_history",
    "prompt_only",
    "rescoring_only",
    "beam",
    "beam_no_history",
    "bm25",
    "dense",
    "hybrid",
    "retrieval_taste",
)
SERVED = "generative"
SLICE_METHODS = ("generative", "generative_no_history", "hybrid")
METRICS = ("hr@10", "ndcg@10", "mrr@10")
TARGETS = ("click", "order")
TOP = 10
FUSION_DEPTH = 300
BLOCK_VISITS = 64
_GAIN = 1.0 / np.log2(np.arange(2, TOP + 2))

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class VisitWeights:
    """Fitted weights: of the served ranking with a history, without, and of retrieval_taste."""

    personal: PersonalWeights
    impersonal: PersonalWeights
    retrieval: PersonalWeights

    def to_json(self) -> dict[str, Any]:
        return {
            "personal": self.personal.to_json(),
            "impersonal": self.impersonal.to_json(),
            "retrieval": self.retrieval.to_json(),
        }


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """One visit's candidates with their feature tables (n, F + T), and the plain rankings."""

    personal: bool
    heard: tuple[Candidates, FloatArray]
    alone: tuple[Candidates, FloatArray]
    retrieved: tuple[Candidates, FloatArray]
    bm25: IntArray
    dense: IntArray


def evaluate_visits(
    searcher: VisitSearch,
    validation: Sequence[Visit],
    test: Sequence[Visit],
    slices: Mapping[str, NDArray[np.bool_]],
    *,
    seed: int = 7,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The report: metrics of each method by target, paired differences, slices, fitted weights.

    Raises ConfigError when there is no visit to measure.
    """
    if not test:
        raise ConfigError("no search of this split ended in a click or an order")
    tell = progress or _silent
    fitted = _fit(validation, _find(searcher, validation, "fitting", tell))
    ranked: dict[str, list[IntArray]] = {name: [] for name in METHODS}
    for found in _find(searcher, test, "searching", tell):
        for name in METHODS:
            ranked[name].append(_ranking(name, found, fitted)[:TOP])
    report: dict[str, Any] = {
        "visits": len(test),
        "visits_with_history": sum(bool(visit.history) for visit in test),
        "queries": len({visit.query for visit in test}),
        "users": len({visit.user for visit in test if visit.user}),
        "beam_width": searcher.beam_width,
        "weights": fitted.to_json(),
        "targets": {},
    }
    for target in TARGETS:
        chosen = [visit.ordered if target == "order" else visit.clicked for visit in test]
        kept = np.array([bool(rows) for rows in chosen])
        if kept.any():
            report["targets"][target] = _measure(test, ranked, chosen, kept, slices, seed)
    return report


def metrics_of(ranked: IntArray, chosen: Sequence[int]) -> tuple[float, float, float]:
    """HR@10, NDCG@10, MRR@10 of one ranking."""
    hits = np.isin(ranked[:TOP], chosen)
    if not hits.any():
        return 0.0, 0.0, 0.0
    best = _GAIN[: min(len(chosen), TOP)].sum()
    return 1.0, float(_GAIN[: len(hits)][hits].sum() / best), 1.0 / (1 + int(np.argmax(hits)))


def _find(
    searcher: VisitSearch, visits: Sequence[Visit], what: str, tell: Progress
) -> Iterator[_Found]:
    """What each visit's search finds, in order."""
    embedded = searcher.embed(visits)
    retrieved: dict[str, tuple[IntArray, IntArray]] = {}
    for start in range(0, len(visits), BLOCK_VISITS):
        tell(what, start, len(visits))
        part = visits[start : start + BLOCK_VISITS]
        heard = searcher.answer(part, embedded, history=True)
        alone = searcher.answer(part, embedded, history=False)
        for i, visit in enumerate(part):
            vector = embedded[visit.query]
            if visit.query not in retrieved:
                retrieved[visit.query] = searcher.retrieved(visit.query, vector, FUSION_DEPTH)
            bm25, dense = retrieved[visit.query]
            rows = np.union1d(bm25[:RETRIEVED], dense[:RETRIEVED]).astype(np.int64)
            nobody = np.full(len(rows), -1, np.int64)
            both = Candidates(rows, np.zeros(len(rows), np.float32), nobody)
            beams = (searcher.candidates(beam, bm25, dense) for beam in (heard[i], alone[i]))
            tables = [
                (found, searcher.table(visit, vector, found, history=True))
                for found in (*beams, both)
            ]
            yield _Found(bool(visit.history), tables[0], tables[1], tables[2], bm25, dense)


def _fit(visits: Sequence[Visit], found: Iterable[_Found]) -> VisitWeights:
    """Weights fitted on the visits that have a history; defaults where too few teach."""
    lists: dict[str, list[tuple[FloatArray, FloatArray]]] = {"heard": [], "alone": [], "both": []}
    for visit, one in zip(visits, found, strict=True):
        if not visit.history:
            continue
        for name, (candidates, table) in (
            ("heard", one.heard),
            ("alone", (one.alone[0], _without_taste(one.alone[1]))),
            ("both", one.retrieved),
        ):
            lists[name].append((table, gains_of(visit, candidates.rows)))
    default = PersonalWeights(RescoringWeights(), TasteWeights())
    return VisitWeights(*(fit_weights(tables) or default for tables in lists.values()))


def _without_taste(table: FloatArray) -> FloatArray:
    return np.concatenate([table[:, : len(FEATURES)], np.zeros_like(table[:, len(FEATURES) :])], 1)


def _ranking(name: str, found: _Found, fitted: VisitWeights) -> IntArray:
    """Item rows of one visit, best first, by one of METHODS."""
    if not found.personal and name in ("generative", "rescoring_only"):
        name = "generative_no_history"  # nobody is known, so nothing personal is served
    match name:
        case "generative":
            return _rescored(found.heard, fitted.personal)
        case "generative_no_history":
            return _rescored(found.alone, fitted.impersonal, taste=False)
        case "prompt_only":
            return _rescored(found.heard, fitted.impersonal, taste=False)
        case "rescoring_only":
            return _rescored(found.alone, fitted.personal)
        case "retrieval_taste":
            return _rescored(found.retrieved, fitted.retrieval)
        case "beam":
            return _beam(found.heard[0])
        case "beam_no_history":
            return _beam(found.alone[0])
        case "bm25":
            return found.bm25
        case "dense":
            return found.dense
        case _:
            return reciprocal_rank_fusion([found.bm25, found.dense])[0]


def _beam(candidates: Candidates) -> IntArray:
    return candidates.rows[candidates.hypothesis >= 0]


def _rescored(
    found: tuple[Candidates, FloatArray], weights: PersonalWeights, *, taste: bool = True
) -> IntArray:
    candidates, table = found
    score = table[:, : len(FEATURES)] @ weights.rescoring.vector()
    if taste:
        score = score + table[:, len(FEATURES) :] @ weights.taste.vector()
    return candidates.rows[np.lexsort((candidates.rows, -score))]


def _measure(
    visits: Sequence[Visit],
    ranked: Mapping[str, Sequence[IntArray]],
    chosen: Sequence[Sequence[int]],
    kept: NDArray[np.bool_],
    slices: Mapping[str, NDArray[np.bool_]],
    seed: int,
) -> dict[str, Any]:
    """Methods, differences and slices over the visits `kept`."""
    places = np.flatnonzero(kept)
    owners = [visits[i].user or f"visit {i}" for i in places]
    bootstrap = ClusterBootstrap(owners, np.random.default_rng(seed))
    values: dict[str, Values] = {}
    for name, rankings in ranked.items():
        columns = np.array([metrics_of(rankings[i], chosen[i]) for i in places]).T
        values[name] = dict(zip(METRICS, columns, strict=True))
    everyone = np.ones(len(places), np.bool_)
    return {
        "visits": len(places),
        "methods": {
            name: _summary(bootstrap, columns, everyone) for name, columns in values.items()
        },
        "differences": {
            f"{SERVED} - {name}": _summary(bootstrap, _less(values[SERVED], columns), everyone)
            for name, columns in values.items()
            if name != SERVED
        },
        "slices": {
            name: _slice(bootstrap, values, mask[places])
            for name, mask in slices.items()
            if mask[places].any()
        },
    }


def _slice(
    bootstrap: ClusterBootstrap, values: Mapping[str, Values], mask: NDArray[np.bool_]
) -> dict[str, Any]:
    served = values[SERVED]
    return {
        "visits": int(mask.sum()),
        "methods": {name: _summary(bootstrap, values[name], mask) for name in SLICE_METHODS},
        "differences": {
            f"{SERVED} - {name}": _summary(bootstrap, _less(served, values[name]), mask)
            for name in SLICE_METHODS
            if name != SERVED
        },
    }


def _less(left: Values, right: Values) -> Values:
    return {metric: left[metric] - right[metric] for metric in METRICS}


def _summary(
    bootstrap: ClusterBootstrap, columns: Values, mask: NDArray[np.bool_]
) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    edges: dict[str, list[float]] = {}
    for metric, column in columns.items():
        summary[metric], edges[metric] = bootstrap.interval(column, mask)
    return summary | {"ci95": edges}


def _silent(what: str, done: int, total: int) -> None:
    """Report to nobody."""

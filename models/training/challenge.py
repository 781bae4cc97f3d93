"""Champion and challenger on the same held-out searches, both as they would be served.

Each search is asked of both, with the user's history in the prompt, and ranked with each one's own
weights. HR@10: whether one of the first ten items was wanted; MRR@10 the reciprocal rank of the
first; NDCG@10 binary. Differences are challenger less champion, search by search; intervals are
95 % percentiles of a bootstrap over queries (`cluster_bootstrap`), because searches of one query
share most of their ranking.

Groups: `judged`, validation queries with their judged items; `held out`, searches of users on
queries that are never trained on; of these `new`, from the behaviour that the challenger was
trained with, and `earlier`, from before. Who poisons the new ones does not reach the others.

Drift, over all searches asked: ‖w − w₀‖ / ‖w₀‖ over the weights; Jaccard overlap of the first ten
items; shift of the best SID's log-probability in standard deviations of the champion's;
concentration, the share of the first ten places that the 1 % most shown items take.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from decoding.engine import Hypotheses
from index.dataset import Dataset
from index.snapshot import Snapshot
from models.checkpoint import Checkpoint
from models.training.cluster_bootstrap import ClusterBootstrap
from models.training.evaluate import legal_rate, unconstrained_valid_rate
from models.training.personal_evaluation import METRICS, metrics_of
from models.training.rankers import SEARCH_BATCH, SERVED, Answers, Searchers, ranker
from models.training.relevance import relevant_rows
from models.training.run_evaluate import searchers_of
from models.training.visit_slices import searches_by_query, slices_of
from models.training.visits import read_visits

IntArray = NDArray[np.int64]
TOP = 10
HELD_OUT = ("validation", "test")
MAX_SEARCHES = 2_000
VALID_RATE_QUERIES = 100
_CROWD = 100


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean of paired differences and its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One search that is never trained on: `history` and `wanted` are item rows; `group` is judged,
    new or earlier; `slices` it belongs to."""

    query: str
    history: tuple[int, ...]
    wanted: tuple[int, ...]
    group: str
    slices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """Metrics of both models over some searches, and their paired differences."""

    searches: int
    queries: int
    champion: dict[str, float]
    challenger: dict[str, float]
    differences: dict[str, Difference]


@dataclass(frozen=True, slots=True)
class Drift:
    """How far the challenger went from the champion; `concentrations` of both."""

    weight_distance: float
    overlap: float
    score_shift: float
    concentrations: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the gate reads. `valid_rates`: unconstrained, of champion and challenger."""

    groups: dict[str, Group]
    slices: dict[str, Group]
    legal_rate: float
    valid_rates: tuple[float, float]
    drift: Drift

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Comparison:
        drift = raw["drift"]
        return cls(
            {name: _group(group) for name, group in raw["groups"].items()},
            {name: _group(group) for name, group in raw["slices"].items()},
            raw["legal_rate"],
            (raw["valid_rates"][0], raw["valid_rates"][1]),
            Drift(**drift | {"concentrations": tuple(drift["concentrations"])}),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Served:
    """What one model makes of the searches: first ten rows, best score and beam of each."""

    ranked: list[IntArray]
    best: NDArray[np.float64]
    beams: list[Hypotheses]


def held_out_searches(
    dataset: Dataset,
    new_sessions: frozenset[str],
    known_in_training: frozenset[str] = frozenset(),
    *,
    max_searches: int = MAX_SEARCHES,
    seed: int = 7,
) -> list[HeldOut]:
    """The held-out searches of a dataset, at most `max_searches` of each group.

    `new_sessions`: those of the batch. `known_in_training`: queries that are held out by now and
    once were not; they are not measured.
    """
    visits = [
        visit
        for split in HELD_OUT
        for visit in read_visits(dataset, split)
        if visit.query not in known_in_training
    ]
    slices = slices_of(visits, read_visits(dataset, "train"), searches_by_query(dataset))
    found = [
        HeldOut(
            visit.query,
            visit.history,
            tuple(visit.clicked),
            "new" if visit.session in new_sessions else "earlier",
            tuple(name for name, mask in slices.items() if mask[i]),
        )
        for i, visit in enumerate(visits)
    ]
    if dataset.judgments.num_rows:
        found += (
            HeldOut(query, (), tuple(rows.tolist()), "judged")
            for query, rows in relevant_rows(dataset, "validation").items()
            if query not in known_in_training
        )
    random = np.random.default_rng(seed)
    kept: list[HeldOut] = []
    for group in ("judged", "earlier", "new"):
        own = [one for one in found if one.group == group]
        chosen = range(len(own))
        if len(own) > max_searches:
            chosen = np.sort(random.choice(len(own), max_searches, replace=False)).tolist()
        kept += (own[i] for i in chosen)
    return kept


def compare(
    snapshot: Snapshot,
    champion: Checkpoint,
    challenger: Checkpoint,
    searches: Sequence[HeldOut],
    beam_width: int,
    *,
    seed: int = 7,
    alive: Callable[[], None] = lambda: None,
) -> Comparison:
    """Ask both; `alive` is called now and then and may raise to stop. Raises ArtifactError when one
    is of another codec than the snapshot."""
    served: list[_Served] = []
    valid: list[float] = []
    texts = sorted({one.query for one in searches})[:VALID_RATE_QUERIES]
    for checkpoint in (champion, challenger):
        searchers = searchers_of(snapshot, checkpoint, beam_width)
        served.append(_serve(searchers, searches, alive))
        prompts = searchers.prompts.prompts(texts, snapshot.embed_queries(texts), [()] * len(texts))
        model, tokenizer = checkpoint.load_model(), checkpoint.tokenizer
        valid.append(unconstrained_valid_rate(model, tokenizer, snapshot, prompts))
    groups: dict[str, NDArray[np.bool_]] = {
        name: np.array([one.group == name for one in searches], np.bool_)
        for name in ("judged", "earlier", "new")
    }
    groups["held out"] = groups["earlier"] | groups["new"]
    named = sorted({name for one in searches for name in one.slices})
    slices = {name: np.array([name in one.slices for one in searches]) for name in named}
    values = [_values(one.ranked, searches) for one in served]
    legal = legal_rate(snapshot, served[1].beams) if searches else 1.0
    return Comparison(
        {name: _measure(searches, values, mask, seed) for name, mask in groups.items()},
        {name: _measure(searches, values, mask, seed) for name, mask in slices.items()},
        legal,
        (valid[0], valid[1]),
        Drift(
            weight_distance(champion, challenger),
            _overlap(served[0].ranked, served[1].ranked),
            _shift(served[0].best, served[1].best),
            (
                concentration(served[0].ranked, len(snapshot.items)),
                concentration(served[1].ranked, len(snapshot.items)),
            ),
        ),
    )


def weight_distance(champion: Checkpoint, challenger: Checkpoint) -> float:
    """‖w − w₀‖ / ‖w₀‖ over all tensors; infinite where their shapes differ."""
    before, after = champion.load_model().state_dict(), challenger.load_model().state_dict()
    if {name: one.shape for name, one in before.items()} != {
        name: one.shape for name, one in after.items()
    }:
        return float("inf")
    moved = total = torch.zeros((), dtype=torch.float64)
    for name, tensor in before.items():
        moved = moved + (after[name].double() - tensor.double()).square().sum()
        total = total + tensor.double().square().sum()
    return float((moved / total.clamp(min=1e-12)).sqrt())


def concentration(ranked: Sequence[IntArray], items: int) -> float:
    """Share of the places of `ranked` that the 1 % of `items` most shown there take."""
    shown = Counter(row for rows in ranked for row in rows.tolist())
    total = sum(shown.values())
    crowd = max(1, items // _CROWD)
    return sum(count for _, count in shown.most_common(crowd)) / total if total else 0.0


def _serve(searchers: Searchers, searches: Sequence[HeldOut], alive: Callable[[], None]) -> _Served:
    """In batches, so that beams of all searches are the only thing kept."""
    snapshot = searchers.snapshot
    leaf_of_row, trie = snapshot.postings.leaf_of_row, snapshot.trie
    ranked: list[IntArray] = []
    beams: list[Hypotheses] = []
    for start in range(0, len(searches), SEARCH_BATCH):
        part = searches[start : start + SEARCH_BATCH]
        alive()
        texts = [one.query for one in part]
        vectors = snapshot.embed_queries(texts)
        rows = [np.array(one.history, np.int64) for one in part]
        sids = [list(trie.codes_of_leaves(leaf_of_row[past].astype(np.int64))) for past in rows]
        prompts = searchers.prompts.prompts(texts, vectors, sids)
        found = searchers.search(prompts, searchers.beam_width)
        rank = ranker(SERVED, searchers, Answers(texts, vectors, found))
        ranked += (rank(i)[0][:TOP] for i in range(len(part)))
        beams += found
    best = [float(beam.scores[0]) if len(beam.scores) else -np.inf for beam in beams]
    return _Served(ranked, np.array(best, np.float64), beams)


def _values(
    ranked: Sequence[IntArray], searches: Sequence[HeldOut]
) -> dict[str, NDArray[np.float64]]:
    table = [metrics_of(rows, one.wanted) for rows, one in zip(ranked, searches, strict=True)]
    columns = np.array(table, np.float64).reshape(len(table), len(METRICS)).T
    return dict(zip(METRICS, columns, strict=True))


def _measure(
    searches: Sequence[HeldOut],
    values: Sequence[Mapping[str, NDArray[np.float64]]],
    mask: NDArray[np.bool_],
    seed: int,
) -> Group:
    places = np.flatnonzero(mask)
    owners = [searches[i].query for i in places]
    bootstrap = ClusterBootstrap(owners, np.random.default_rng(seed))
    means: list[dict[str, float]] = [{}, {}]
    differences: dict[str, Difference] = {}
    for metric in METRICS:
        before, after = (one[metric][places] for one in values)
        for own, column in zip(means, (before, after), strict=True):
            own[metric] = float(column.mean()) if len(column) else 0.0
        mean, (low, high) = bootstrap.interval(after - before)
        differences[metric] = Difference(mean, low, high)
    return Group(len(places), bootstrap.clusters, means[0], means[1], differences)


def _overlap(before: Sequence[IntArray], after: Sequence[IntArray]) -> float:
    """Mean Jaccard overlap; 1 where both are empty."""
    shares = [
        len(np.intersect1d(one, other)) / max(len(np.union1d(one, other)), 1)
        if len(one) or len(other)
        else 1.0
        for one, other in zip(before, after, strict=True)
    ]
    return float(np.mean(shares)) if shares else 1.0


def _shift(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Of searches that both answer."""
    both = np.isfinite(before) & np.isfinite(after)
    if not both.any():
        return 0.0
    spread = max(float(before[both].std()), 1e-6)
    return float((after[both] - before[both]).mean() / spread)


def _group(raw: Mapping[str, Any]) -> Group:
    group = Group(**raw)
    found = {name: Difference(**values) for name, values in raw["differences"].items()}
    return replace(group, differences=found)

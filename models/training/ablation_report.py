"""The figures of an ablation: each row's means with intervals, and what it gained over others.

Only what was measured is in here. A row without any seed says so; one that lacks seeds names those
it has, and differences are taken over the seeds that both rows have.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.training.ablation import Ablation
from models.training.ablation_bootstrap import SeedBootstrap
from models.training.ablation_measurement import METRICS, RANKINGS, MeasuredVisits
from models.training.ablation_recipe import Row
from models.training.personal_evaluation import TARGETS

Values = NDArray[np.float64]
_RANDOM_SEED = 7


@dataclass(frozen=True, slots=True, eq=False)
class _Results:
    """What there is of every row: row → seed → measured."""

    visits: MeasuredVisits
    of_row: dict[str, dict[int, dict[str, Any]]]
    _bootstraps: dict[int, SeedBootstrap] = field(default_factory=dict[int, SeedBootstrap])

    def values(self, row: str, seeds: Sequence[int], *place: str) -> Values:
        """(S, N) of one ranking, target and metric."""
        found: list[Any] = []
        for seed in seeds:
            value: Any = self.of_row[row][seed]["values"]
            for name in place:
                value = value[name]
            found.append(value)
        return np.array(found, np.float64)

    def interval(self, values: Values, mask: NDArray[np.bool_]) -> tuple[float, list[float]]:
        seeds = len(values)
        if seeds not in self._bootstraps:
            owners = [visit.query for visit in self.visits.test]
            # The same resamples for every row, so that rows can be compared.
            self._bootstraps[seeds] = SeedBootstrap(
                owners, seeds, np.random.default_rng(_RANDOM_SEED)
            )
        return self._bootstraps[seeds].interval(values, mask)

    def shared(self, left: str, right: str) -> list[int]:
        return sorted(self.of_row[left].keys() & self.of_row[right].keys())


def build_report(ablation: Ablation, visits: MeasuredVisits) -> dict[str, Any]:
    """The report as JSON. Raises ArtifactError when the directory holds another ablation's."""
    rows = ablation.recipe.rows
    results = _Results(visits, {row.name: _seeds_of(ablation, row, visits) for row in rows})
    dataset, sizes = ablation.dataset, ablation.recipe.sizes
    return {
        "recipe": ablation.recipe.name,
        "seeds": ablation.seeds,
        "complete": all(len(found) >= ablation.seeds for found in results.of_row.values()),
        "dataset_version": dataset.version,
        "index_version": ablation.snapshot.version,
        "simulated": dataset.simulated,
        "queries_derived": dataset.queries_derived,
        "items": len(ablation.snapshot.items),
        "level_sizes": list(ablation.snapshot.layout.level_sizes),
        "visits": {target: int(visits.kept(target).sum()) for target in TARGETS}
        | {"queries": len({visit.query for visit in visits.test})},
        "sizes": asdict(sizes),
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": version("torch"),
        },
        "rows": [_row(results, row) for row in rows],
    }


def _seeds_of(ablation: Ablation, row: Row, visits: MeasuredVisits) -> dict[int, dict[str, Any]]:
    found = {seed: ablation.measured(row, seed, visits) for seed in range(1, ablation.seeds + 1)}
    return {seed: measured for seed, measured in found.items() if measured is not None}


def _row(results: _Results, row: Row) -> dict[str, Any]:
    measured = results.of_row[row.name]
    seeds = sorted(measured)
    facts: dict[str, Any] = {
        "name": row.name,
        "title": row.title,
        "node": row.node,
        "with_keywords": row.with_keywords,
        "seeds": seeds,
        "against": list(row.against),
        "published": list(row.published) if row.published else None,
    }
    if not seeds:
        return facts | {"missing": True}
    return facts | {
        "missing": False,
        "model_versions": [measured[seed]["model_version"] for seed in seeds],
        "train_s": [measured[seed]["training"].get("train_s") for seed in seeds],
        "valid_rate": [measured[seed]["valid_rate"] for seed in seeds],
        "figures": _figures(results, row.name, None, seeds),
        "differences": {
            other: {"seeds": shared, **_figures(results, row.name, other, shared)}
            for other in row.against
            if (shared := results.shared(row.name, other))
        },
        "slices": _slices(results, row, seeds),
    }


def _figures(
    results: _Results, row: str, other: str | None, seeds: Sequence[int]
) -> dict[str, Any]:
    """ranking → target → metric and interval, of a row or of what it gained over another."""
    return {
        ranking: {
            target: _cell(results, row, other, seeds, ranking, target, mask)
            for target in TARGETS
            if (mask := results.visits.kept(target)).any()
        }
        for ranking in RANKINGS
    }


def _cell(
    results: _Results,
    row: str,
    other: str | None,
    seeds: Sequence[int],
    ranking: str,
    target: str,
    mask: NDArray[np.bool_],
) -> dict[str, Any]:
    cell: dict[str, Any] = {}
    edges: dict[str, list[float]] = {}
    for metric in METRICS:
        values = results.values(row, seeds, ranking, target, metric)
        if other is not None:
            values = values - results.values(other, seeds, ranking, target, metric)
        cell[metric], edges[metric] = results.interval(values, mask)
    return cell | {"ci95": edges}


def _slices(results: _Results, row: Row, seeds: Sequence[int]) -> dict[str, Any]:
    """slice → target → searches, the decoder's figures, and what it gained over the first other."""
    other = row.against[0] if row.against else None
    shared = results.shared(row.name, other) if other is not None else []
    found: dict[str, Any] = {}
    for name, mask in results.visits.slices.items():
        found[name] = {}
        for target in TARGETS:
            kept = mask & results.visits.kept(target)
            if not kept.any():
                continue
            cell = _cell(results, row.name, None, seeds, "decoder", target, kept)
            if shared:
                gained = _cell(results, row.name, other, shared, "decoder", target, kept)
                cell["difference"] = gained
            found[name][target] = {"visits": int(kept.sum()), **cell}
    return found

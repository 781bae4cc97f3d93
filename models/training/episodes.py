"""What alignment learns from: searches of the training split, and what came of them.

An episode is one search: its serving prompt, the SIDs that were clicked or ordered (the targets
T), and what any SID would have been worth there:

    R_item = order 4, click 3, else 0  +  calibrated CTR of (query, SID)  +  relevance 3, 2, 1, 0

CTR from the impressions, clicks and orders of the query's training events, all items of a SID
together; relevance from the query's training judgments, the grade scale stretched to 0 … 3 and
rounded, the best item of a SID. Targets come orders first: the first is the CE anchor's.
"""

# pyarrow has no types of its own.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from decoding.engine import Prompt
from index.dataset import Dataset
from index.errors import ConfigError
from index.snapshot import Snapshot
from models.query import QueryPrompts
from models.training.rewards import calibrated_ctr, item_rewards
from models.training.visits import Visit, read_visits, rows_by_id

IntArray = NDArray[np.int64]
MAX_TARGETS = 16
_TOP_RELEVANCE = 3


class Counts(NamedTuple):
    """How often a SID was shown, clicked, ordered for a query."""

    shown: int = 0
    clicked: int = 0
    ordered: int = 0


@dataclass(frozen=True, slots=True)
class Episode:
    """One search. `targets`: leaves, orders first; the first `orders` of them were ordered."""

    query: str
    history: tuple[int, ...]
    targets: tuple[int, ...]
    orders: int


class Targets(NamedTuple):
    """codes int64 (P, T, L) and which of them are there, bool (P, T)."""

    codes: torch.Tensor
    known: torch.Tensor


class Episodes:
    """The episodes of a dataset under a snapshot's SIDs."""

    def __init__(
        self,
        snapshot: Snapshot,
        prompts: QueryPrompts,
        episodes: Sequence[Episode],
        counts: Mapping[tuple[str, int], Counts],
        relevance: Mapping[tuple[str, int], int],
    ) -> None:
        """`counts` and `relevance`: by query and leaf. Raises ConfigError without episodes."""
        if not episodes:
            raise ConfigError(
                "the training split has no clicks or orders to align with; import events, or make "
                "them with `onesearch data simulate`"
            )
        self._snapshot = snapshot
        self._prompts = prompts
        self._episodes = episodes
        self._counts = counts
        self._relevance = relevance
        leaves = snapshot.postings.leaf_of_row.astype(np.int64)
        self._codes_of_row = snapshot.trie.codes_of_leaves(leaves)

    def __len__(self) -> int:
        return len(self._episodes)

    @classmethod
    def read(cls, dataset: Dataset, snapshot: Snapshot, prompts: QueryPrompts) -> Episodes:
        """Of the training split."""
        leaf_of_row = snapshot.postings.leaf_of_row.astype(np.int64)
        made = [episode_of(visit, leaf_of_row) for visit in read_visits(dataset, "train")]
        row_of = rows_by_id(dataset)
        return cls(
            snapshot,
            prompts,
            made,
            _counts(dataset, row_of, leaf_of_row),
            _relevance(dataset, row_of, leaf_of_row),
        )

    def prompts(self, chosen: IntArray) -> tuple[list[Prompt], NDArray[np.float32]]:
        """Serving prompts of the episodes `chosen` (P,), and the query vectors (P, d)."""
        episodes = [self._episodes[i] for i in chosen.tolist()]
        texts = [episode.query for episode in episodes]
        embeddings = self._snapshot.embed_queries(texts)
        histories = [[self._codes_of_row[row] for row in episode.history] for episode in episodes]
        return self._prompts.prompts(texts, embeddings, histories), embeddings

    def targets(self, chosen: IntArray) -> Targets:
        """T of each episode, padded to MAX_TARGETS or fewer."""
        targets = [self._episodes[i].targets for i in chosen.tolist()]
        width = max(map(len, targets))
        leaves = np.zeros((len(targets), width), np.int64)
        known = np.zeros((len(targets), width), np.bool_)
        for i, own in enumerate(targets):
            leaves[i, : len(own)] = own
            known[i, : len(own)] = True
        codes = self._snapshot.trie.codes_of_leaves(leaves.ravel()).astype(np.int64)
        return Targets(torch.from_numpy(codes.reshape(*leaves.shape, -1)), torch.from_numpy(known))

    def rewards(self, chosen: IntArray, leaves: IntArray) -> torch.Tensor:
        """R_item of rolled-out leaves (P, G), float32 (P, G)."""
        ordered, clicked = np.zeros(leaves.shape, np.bool_), np.zeros(leaves.shape, np.bool_)
        relevance = np.zeros(leaves.shape, np.float32)
        counts = np.zeros((*leaves.shape, 3), np.float32)
        for i, place in enumerate(chosen.tolist()):
            episode = self._episodes[place]
            ordered[i] = np.isin(leaves[i], episode.targets[: episode.orders])
            clicked[i] = np.isin(leaves[i], episode.targets)
            for j, leaf in enumerate(leaves[i].tolist()):
                counts[i, j] = self._counts.get((episode.query, leaf), _NEVER)
                relevance[i, j] = self._relevance.get((episode.query, leaf), 0)
        ctr = calibrated_ctr(*torch.from_numpy(counts).unbind(dim=-1))
        return item_rewards(
            torch.from_numpy(ordered), torch.from_numpy(clicked), ctr, torch.from_numpy(relevance)
        )


_NEVER = Counts()


def episode_of(visit: Visit, leaf_of_row: IntArray) -> Episode:
    """A search with choices as an episode; at most MAX_TARGETS targets."""
    ordered = list(dict.fromkeys(int(leaf_of_row[row]) for row in visit.ordered))
    clicked = [int(leaf_of_row[row]) for row in visit.clicked]
    targets = list(dict.fromkeys([*ordered, *clicked]))[:MAX_TARGETS]
    return Episode(visit.query, visit.history, tuple(targets), min(len(ordered), MAX_TARGETS))


def _counts(
    dataset: Dataset, row_of: Mapping[str, int], leaf_of_row: IntArray
) -> dict[tuple[str, int], Counts]:
    table = dataset.events_of("train")
    found: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0, 0])
    place = {"impression": 0, "click": 1, "order": 2}
    columns = (table.column(name).to_pylist() for name in ("query", "item_id", "kind"))
    for query, item, kind in zip(*columns, strict=True):
        if query:
            found[query, int(leaf_of_row[row_of[item]])][place[kind]] += 1
    return {key: Counts(*numbers) for key, numbers in found.items()}


def _relevance(
    dataset: Dataset, row_of: Mapping[str, int], leaf_of_row: IntArray
) -> dict[tuple[str, int], int]:
    table = dataset.judgments_of("train")
    if not table.num_rows:
        return {}
    everything = dataset.judgments.column("grade").to_numpy()
    low, high = float(everything.min()), float(everything.max())
    grades = table.column("grade").to_numpy()
    share = (grades - low) / (high - low) if high > low else np.ones(len(grades))
    levels = np.rint(_TOP_RELEVANCE * share).astype(np.int64).tolist()
    found: dict[tuple[str, int], int] = {}
    pairs = zip(table.column("query").to_pylist(), table.column("item_id").to_pylist(), strict=True)
    for (query, item), level in zip(pairs, levels, strict=True):
        key = (query, int(leaf_of_row[row_of[item]]))
        found[key] = max(level, found.get(key, 0))
    return found

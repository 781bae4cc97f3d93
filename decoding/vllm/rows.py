"""What the logits processor keeps of its requests, and what it writes over their logits.

Each request has a slot, a row of every table here, and keeps it while it lives. Tables lie on the
model's device and are written only for slots whose request changed. `write` is a fixed number of
tensor operations per level of the SIDs, however many rows there are, and none waits for the device:
which level a row has reached is known on the host.

A row at level l gets, over that level's slice of the vocabulary, log softmax(logits + prior) where
the code is allowed, and -inf everywhere else. A row past the last level, and one of which nothing
is allowed, gets the end token alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decoding.vllm.arguments import SidArguments
from decoding.vllm.legal import DeviceTrie
from index.sid import SidLayout

Slots = NDArray[np.int64]
ANY = -1
"""In the table of filters: any code goes on from here."""
NOTHING = -2
"""In the table of filters: no entry here."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Where SIDs are in the vocabulary: the first token of each level, and the end token."""

    layout: SidLayout
    sid_offset: tuple[int, ...]
    end_token: int


class RowTables:
    """State of up to `capacity` requests."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        capacity: int,
        device: torch.device,
        trie: DeviceTrie | None,
    ) -> None:
        layout = vocabulary.layout
        self.vocabulary, self._device, self._trie = vocabulary, device, trie
        self._starts = np.cumsum([0, *layout.level_sizes]).tolist()
        self.constrained = np.zeros(capacity, dtype=np.bool_)
        self.depth = np.zeros(capacity, dtype=np.int64)
        """Codes of each slot's prefix."""
        self.prefix = np.zeros((capacity, layout.levels), dtype=np.int64)
        self._listed = np.zeros(capacity, dtype=np.bool_)
        self._with_prior = np.zeros(capacity, dtype=np.bool_)
        self._entries = np.zeros(capacity, dtype=np.int64)
        self._allowed = torch.zeros(
            (capacity, max(layout.level_sizes)), dtype=torch.bool, device=device
        )
        self._bit = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8, device=device)
        self._priors: Tensor | None = None
        self._filters: Tensor | None = None

    def set(self, slots: Sequence[int], requests: Sequence[SidArguments | None]) -> None:
        """Requests that take over slots; None for those that are not constrained."""
        chosen = np.array(slots, dtype=np.int64)
        for slot, request in zip(slots, requests, strict=True):
            self.constrained[slot] = request is not None
            if request is None:
                continue
            self.depth[slot] = len(request.prefix)
            self.prefix[slot, : len(request.prefix)] = request.prefix
            self._listed[slot] = request.allowed is not None
            self._with_prior[slot] = request.prior is not None
            self._entries[slot] = 0 if request.filter is None else len(request.filter)
        self._set_allowed(chosen, requests)
        self._set_priors(chosen, requests)
        self._set_filters(chosen, requests)

    def write(
        self,
        logits: Tensor,
        slots: Slots,
        produced: Slots,
        codes: Callable[[], Tensor],
    ) -> Tensor:
        """Write over `logits` float (rows, vocabulary), in place.

        `slots` int64 (rows,); `produced` int64 (rows,), tokens generated so far. `codes` gives the
        rows' codes so far, prefix included, int64 (rows, L) on the device, and is asked only where
        the trie or a filter is needed.
        """
        constrained = self.constrained[slots]
        if not constrained.any():
            return logits
        levels = self.depth[slots] + np.maximum(produced, 0)
        levels = np.minimum(levels, self.vocabulary.layout.levels)
        everything = bool(constrained.all())
        known: Tensor | None = None
        written: list[tuple[int, Tensor | None, Tensor, Tensor]] = []
        for level in range(self.vocabulary.layout.levels):
            at = np.flatnonzero(constrained & (levels == level))
            if not len(at):
                continue
            rows = None if len(at) == len(slots) else self._moved(at)
            if known is None and self._needs_codes(slots[at], produced[at]):
                known = codes()
            mask = self._mask(level, slots[at], produced[at], rows, known)
            written.append((level, rows, *self._scores(logits, level, slots[at], rows, mask)))
        ended = np.flatnonzero(constrained & (levels == self.vocabulary.layout.levels))
        if everything:
            logits.fill_(-torch.inf)
        else:
            logits.index_fill_(0, self._moved(np.flatnonzero(constrained)), -torch.inf)
        end = self.vocabulary.end_token
        for level, rows, scores, nothing in written:
            part = self._slice(logits, level)
            if rows is None:
                part.copy_(scores)
                logits[:, end] = nothing
            else:
                part[rows] = scores
                logits[rows, end] = nothing
        if len(ended):
            logits[self._moved(ended), end] = 0.0
        return logits

    def _scores(
        self, logits: Tensor, level: int, slots: Slots, rows: Tensor | None, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What a level's slice becomes, (rows, K); and the end token's value, 0 where nothing is
        allowed, else -inf."""
        part = self._slice(logits, level)
        part = part if rows is None else part[rows]
        if self._priors is not None and self._with_prior[slots].any():
            first, end = self._starts[level], self._starts[level + 1]
            part = part + self._priors[self._moved(slots), first:end]
        scores = torch.log_softmax(part.float(), dim=-1).masked_fill_(~mask, -torch.inf)
        nothing = torch.where(mask.any(dim=1), -torch.inf, 0.0)
        return scores, nothing

    def _slice(self, logits: Tensor, level: int) -> Tensor:
        first = self.vocabulary.sid_offset[level]
        return logits[:, first : first + self.vocabulary.layout.level_sizes[level]]

    def _needs_codes(self, slots: Slots, produced: Slots) -> bool:
        """Whether any row is not told its codes, or has a filter."""
        return bool((~self._listed[slots] | (produced > 0) | (self._entries[slots] > 0)).any())

    def _mask(
        self, level: int, slots: Slots, produced: Slots, rows: Tensor | None, codes: Tensor | None
    ) -> Tensor:
        """Allowed codes, bool (rows, K)."""
        size = self.vocabulary.layout.level_sizes[level]
        listed = self._listed[slots] & (produced <= 0)
        own = self._allowed[self._moved(slots), :size]
        if codes is None:
            return own
        codes = codes if rows is None else codes[rows]
        mask = torch.zeros_like(own)
        if self._trie is not None:
            self._trie.legal(level, codes, mask)
        if (self._entries[slots] > 0).any():
            mask &= self._filtered(level, slots, codes, size)
        return torch.where(self._moved(listed)[:, None], own, mask) if listed.any() else mask

    def _filtered(self, level: int, slots: Slots, codes: Tensor, size: int) -> Tensor:
        """Codes that the rows' filters allow; all where there is none."""
        assert self._filters is not None
        table = self._filters[self._moved(slots)]
        agrees = (table[:, :, :level] == codes[:, None, :level]) | (table[:, :, :level] == ANY)
        fits = agrees.all(dim=2)
        code = table[:, :, level]
        allowed = torch.zeros((len(codes), size + 1), dtype=torch.bool, device=self._device)
        allowed.scatter_(1, torch.where(fits & (code >= 0), code, size), True)
        every = (fits & (code == ANY)).any(dim=1) | self._moved(self._entries[slots] == 0)
        return allowed[:, :size] | every[:, None]

    def _set_allowed(self, slots: Slots, requests: Sequence[SidArguments | None]) -> None:
        width = -(-self._allowed.shape[1] // 8)
        packed = np.zeros((len(slots), width), dtype=np.uint8)
        some = False
        for row, request in enumerate(requests):
            if request is not None and request.allowed is not None:
                packed[row, : len(request.allowed)] = request.allowed
                some = True
        if some:
            bits = (self._moved(packed)[:, :, None] & self._bit) != 0
            self._allowed[self._moved(slots)] = bits.view(len(slots), -1)[
                :, : self._allowed.shape[1]
            ]

    def _set_priors(self, slots: Slots, requests: Sequence[SidArguments | None]) -> None:
        if self._priors is None:
            if all(request is None or request.prior is None for request in requests):
                return
            shape = (len(self.constrained), self._starts[-1])
            self._priors = torch.zeros(shape, dtype=torch.float32, device=self._device)
        table = np.zeros((len(slots), self._starts[-1]), dtype=np.float32)
        for row, request in enumerate(requests):
            if request is not None and request.prior is not None:
                first = self._starts[min(len(request.prefix), len(self._starts) - 1)]
                prior = request.prior[: self._starts[-1] - first]
                table[row, first : first + len(prior)] = prior
        self._priors[self._moved(slots)] = self._moved(table)

    def _set_filters(self, slots: Slots, requests: Sequence[SidArguments | None]) -> None:
        wanted = max(
            (len(request.filter) for request in requests if request and request.filter), default=0
        )
        if not wanted:
            return
        levels = self.vocabulary.layout.levels
        if self._filters is None or self._filters.shape[1] < wanted:
            grown = torch.full(
                (len(self.constrained), wanted, levels),
                NOTHING,
                dtype=torch.int64,
                device=self._device,
            )
            if self._filters is not None:
                grown[:, : self._filters.shape[1]] = self._filters
            self._filters = grown
        table = np.full((len(slots), self._filters.shape[1], levels), NOTHING, dtype=np.int64)
        for row, request in enumerate(requests):
            for place, entry in enumerate((request and request.filter) or ()):
                table[row, place] = ANY
                table[row, place, : len(entry)] = entry[:levels]
        self._filters[self._moved(slots)] = self._moved(table)

    def _moved(self, array: NDArray[np.generic]) -> Tensor:
        """A host array on the device; on a GPU the copy does not wait."""
        return torch.from_numpy(array).to(self._device, non_blocking=True)

"""What the beams of a wave have become, on the device: one int32 table that moves with the beams.

Columns are rows of the wave (Q·W). Its lines are, for L levels: codes, level scores (float bits)
and branching of each level, then the node and the score (float bits) reached. After the last level
it is all that the host needs, in one copy.
"""

# Triton's language is untyped; kernels are exempt from the type checker.
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
# pyright: reportUnknownArgumentType=false, reportIndexIssue=false
# pyright: reportArgumentType=false
from __future__ import annotations

from typing import Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 256


class Selection(Protocol):
    """What an expansion chose: each (Q, W); int32, scores float32; node -1 where there is none.
    `parents` are rows of the query's old beam."""

    @property
    def nodes(self) -> Tensor: ...
    @property
    def parents(self) -> Tensor: ...
    @property
    def codes(self) -> Tensor: ...
    @property
    def scores(self) -> Tensor: ...
    @property
    def level_scores(self) -> Tensor: ...
    @property
    def branching(self) -> Tensor: ...


class Trace:
    """Tables for waves of one shape. `ancestry` int32 (L - 1, rows): for each generated position,
    the row of its step that a row descends from. `token_ids` int32 (rows,): the chosen codes as
    tokens; rows that are gone have some token of the level."""

    def __init__(self, queries: int, width: int, levels: int, device: torch.device) -> None:
        rows = queries * width
        self.queries, self.width, self.levels = queries, width, levels
        self._tables = [_zeros(3 * levels + 2, rows, device) for _ in range(2)]
        self._ancestries = [_zeros(max(1, levels - 1), rows, device) for _ in range(2)]
        self.token_ids = torch.zeros(rows, dtype=torch.int32, device=device)
        self._root_nodes = torch.zeros((queries, 1), dtype=torch.int32, device=device)
        self._root_scores = torch.zeros((queries, 1), dtype=torch.float32, device=device)
        self._level = 0

    @property
    def table(self) -> Tensor:
        return self._tables[self._level % 2]

    @property
    def ancestry(self) -> Tensor:
        return self._ancestries[self._level % 2]

    @property
    def nodes(self) -> Tensor:
        """int32 (Q, 1) before the first level, (Q, W) after it."""
        if not self._level:
            return self._root_nodes
        return self.table[3 * self.levels].view(self.queries, self.width)

    @property
    def scores(self) -> Tensor:
        """float32, shaped like the nodes; -inf where there is none."""
        if not self._level:
            return self._root_scores
        return self.table[3 * self.levels + 1].view(torch.float32).view(self.queries, self.width)

    def begin(self) -> None:
        """Back to the root."""
        self._level = 0

    def record(self, chosen: Selection, sid_offset: int) -> None:
        """Go down one level; `sid_offset`: token id of the level's code 0."""
        rows = self.queries * self.width
        table, ancestry = self.table, self.ancestry
        level = self._level
        self._level += 1
        _record_kernel[(triton.cdiv(rows, _BLOCK),)](
            chosen.nodes,
            chosen.parents,
            chosen.codes,
            chosen.scores.view(torch.int32),
            chosen.level_scores.view(torch.int32),
            chosen.branching,
            table,
            self.table,
            ancestry,
            self.ancestry,
            self.token_ids,
            rows,
            self.width,
            level,
            self.levels,
            sid_offset,
            BLOCK=_BLOCK,
        )


def _zeros(lines: int, rows: int, device: torch.device) -> Tensor:
    return torch.zeros((lines, rows), dtype=torch.int32, device=device)


@triton.jit(do_not_specialize=["rows", "width", "level", "levels", "sid_offset"])
def _record_kernel(
    nodes,
    parents,
    codes,
    scores,
    level_scores,
    branching,
    old_table,
    new_table,
    old_ancestry,
    new_ancestry,
    token_ids,
    rows,
    width,
    level,
    levels,
    sid_offset,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = row < rows
    node = tl.load(nodes + row, mask=there, other=-1)
    lives = there & (node >= 0)
    code = tl.load(codes + row, mask=lives, other=0)
    # A row that is gone follows its query's first row, wherever that is.
    parent = tl.load(parents + row, mask=lives, other=0) + (row // width) * width
    for earlier in range(level):
        for kind in range(3):
            line = (kind * levels + earlier) * rows
            value = tl.load(old_table + line + parent, mask=there, other=0)
            tl.store(new_table + line + row, value, mask=there)
    tl.store(new_table + level * rows + row, code, mask=there)
    value = tl.load(level_scores + row, mask=lives, other=0)
    tl.store(new_table + (levels + level) * rows + row, value, mask=there)
    value = tl.load(branching + row, mask=lives, other=0)
    tl.store(new_table + (2 * levels + level) * rows + row, value, mask=there)
    tl.store(new_table + 3 * levels * rows + row, node, mask=there)
    # -8388608 are the bits of -inf.
    value = tl.where(lives, tl.load(scores + row, mask=lives, other=0), -8388608)
    tl.store(new_table + (3 * levels + 1) * rows + row, value, mask=there)
    for step in range(level - 1):
        value = tl.load(old_ancestry + step * rows + parent, mask=there, other=0)
        tl.store(new_ancestry + step * rows + row, value, mask=there)
    if level > 0:
        tl.store(new_ancestry + (level - 1) * rows + row, parent, mask=there)
    tl.store(token_ids + row, code + sid_offset, mask=there)

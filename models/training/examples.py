"""Packed batches of training examples.

An example is a prompt (token ids) with either a set of weighted target SIDs or a text to write.
SID examples are *soft*: at level l the target is the distribution of the target SIDs' l-th codes
among those that share the sampled prefix, so one forward pass learns from all targets of a query.

Packing: examples are laid one after another into rows of fixed length. Within an example each of
its P sampled SID paths sees the prompt and itself, not the other paths:

    row:      [ prompt | path 1 | path 2 ][ prompt | path 1 | path 2 ] … padding
    visible:  same example, not later, and (key in the prompt or on the same path)

Level 1 is predicted once an example (all paths share that point), level l > 1 once a path. Places
where anything is predicted are the rows' *points*: only their final states are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from index.errors import ConfigError
from models.rows import Points
from models.training.example_set import ExampleSet

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class LevelTargets:
    """Prediction points of one level: `position` (n,) in the flattened rows, `target` (n, K_l)
    a distribution, `example` (n,) for the prior's embedding."""

    position: torch.Tensor
    target: torch.Tensor
    example: torch.Tensor

    def to(self, device: torch.device) -> LevelTargets:
        return LevelTargets(
            self.position.to(device), self.target.to(device), self.example.to(device)
        )


@dataclass(frozen=True, slots=True, eq=False)
class PackedBatch:
    """Rows (R, T): token and position ids, attention mask bool (R, 1, T, T), and targets.

    segment (R, T): which example a token belongs to, -1 for padding. points: where something is
    predicted. slot (R·T,): which of the points a flattened position is.
    """

    token_ids: torch.Tensor
    position_ids: torch.Tensor
    mask: torch.Tensor
    segment: torch.Tensor
    points: Points
    slot: torch.Tensor
    levels: tuple[LevelTargets, ...]
    text_position: torch.Tensor
    text_target: torch.Tensor
    embeddings: torch.Tensor
    examples: int

    def states(self, hidden: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """(n, d): states at flattened positions (n,), of the points' states `hidden` (N, d)."""
        return hidden.index_select(0, self.slot[position])

    def to(self, device: torch.device) -> PackedBatch:
        """The batch on another device; itself where it is there already."""
        if device.type == "cpu":
            return self
        return PackedBatch(
            self.token_ids.to(device),
            self.position_ids.to(device),
            self.mask.to(device),
            self.segment.to(device),
            self.points.to(device),
            self.slot.to(device),
            tuple(level.to(device) for level in self.levels),
            self.text_position.to(device),
            self.text_target.to(device),
            self.embeddings.to(device),
            self.examples,
        )


def pack(
    examples: ExampleSet,
    chosen: IntArray,
    *,
    level_sizes: Sequence[int],
    sid_offset: Sequence[int],
    row_length: int,
    paths: int,
    random: np.random.Generator,
) -> PackedBatch:
    """One batch of the examples `chosen` (n,), paths drawn with `random`.

    An example longer than a row loses the oldest part of its prompt. Raises ConfigError when a row
    has no room for what follows the prompt.
    """
    drawn = draw_paths(examples.target_weights[chosen], paths, random)
    return pack_paths(
        examples,
        chosen,
        drawn,
        level_sizes=level_sizes,
        sid_offset=sid_offset,
        row_length=row_length,
    )


def pack_paths(
    examples: ExampleSet,
    chosen: IntArray,
    drawn: IntArray,
    *,
    level_sizes: Sequence[int],
    sid_offset: Sequence[int],
    row_length: int,
    with_targets: bool = True,
) -> PackedBatch:
    """`pack` with given paths: `drawn` int64 (n, P), which target each path of an example follows.

    Without targets the levels' `target` has no columns.
    """
    weights = examples.target_weights[chosen]
    codes = examples.target_codes[chosen]
    is_sid = weights.sum(axis=1) > 0
    path_codes = codes[np.arange(len(chosen))[:, None], drawn]
    layout = _lay_out(examples, chosen, is_sid, path_codes, sid_offset, row_length)
    level_targets = tuple(
        _level_targets(
            level, codes, weights, path_codes, is_sid, layout, size if with_targets else 0
        )
        for level, size in enumerate(level_sizes)
    )
    used = [level.position.numpy() for level in level_targets]
    points, slot = _points(np.concatenate([*used, layout.text_position]), layout.tokens.shape)
    segment = torch.from_numpy(layout.segment)
    path = torch.from_numpy(layout.path)
    same = (segment[:, :, None] == segment[:, None, :]) & (segment[:, :, None] >= 0)
    own = (path[:, None, :] == 0) | (path[:, :, None] == path[:, None, :])
    row = segment.shape[1]
    causal = torch.ones(row, row, dtype=torch.bool).tril()
    diagonal = torch.eye(row, dtype=torch.bool)
    return PackedBatch(
        token_ids=torch.from_numpy(layout.tokens),
        position_ids=torch.from_numpy(layout.positions),
        mask=((same & own & causal) | diagonal)[:, None],
        segment=segment,
        points=points,
        slot=slot,
        levels=level_targets,
        text_position=torch.from_numpy(layout.text_position),
        text_target=torch.from_numpy(layout.text_target),
        embeddings=torch.from_numpy(examples.embeddings[chosen]),
        examples=len(chosen),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Layout:
    """Where each example lies. `prompt_end` (n,): flat position of the last prompt token;
    `path_start` (n, P): flat position of a path's first token."""

    tokens: IntArray
    positions: IntArray
    segment: IntArray
    path: IntArray
    prompt_end: IntArray
    path_start: IntArray
    text_position: IntArray
    text_target: IntArray


def draw_paths(weights: FloatArray, paths: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Target indices (n, P), drawn with replacement by weight (any where an example has none)."""
    cumulative = np.cumsum(weights, axis=1, dtype=np.float64)
    total = cumulative[:, -1:]
    draws = random.random((len(weights), paths)) * total
    drawn = (cumulative[:, None, :] <= draws[:, :, None]).sum(axis=2)
    return np.minimum(drawn, weights.shape[1] - 1)


def _lay_out(
    examples: ExampleSet,
    chosen: IntArray,
    is_sid: NDArray[np.bool_],
    path_codes: NDArray[np.int32],
    sid_offset: Sequence[int],
    row_length: int,
) -> _Layout:
    count, paths, levels = path_codes.shape
    path_length = levels - 1
    offsets = np.asarray(sid_offset[:path_length], np.int64)
    path_tokens = (path_codes[:, :, :path_length] + offsets).reshape(count, paths * path_length)
    rows: list[list[int]] = [[]]
    marks: list[tuple[int, int, int, int, int]] = []
    text_position: list[int] = []
    text_target: list[int] = []
    starts: list[tuple[int, int, int]] = []
    for place, index in enumerate(chosen.tolist()):
        text = examples.texts[index] if not is_sid[place] else ()
        tail = path_tokens[place].tolist() if is_sid[place] else list(text[:-1])
        room = row_length - len(tail)
        if room < 1:
            raise ConfigError(
                f"an example writes {len(tail)} tokens after its prompt; "
                f"rows of {row_length} are too short, take longer rows or fewer paths"
            )
        prompt = list(examples.prompts[index])[-room:]
        if len(rows[-1]) + len(prompt) + len(tail) > row_length:
            rows.append([])
        row, start = len(rows) - 1, len(rows[-1])
        rows[-1] += prompt + tail
        end = row * row_length + start + len(prompt) - 1
        starts.append((row, start, len(prompt)))
        marks.append((row, start, len(prompt), len(tail), place))
        text_position += range(end, end + len(text))
        text_target += text
    shape = (len(rows), row_length)
    tokens = np.zeros(shape, np.int64)
    positions = np.zeros(shape, np.int64)
    segment = np.full(shape, -1, np.int64)
    path = np.zeros(shape, np.int64)
    prompt_end = np.zeros(count, np.int64)
    for row, contents in enumerate(rows):
        tokens[row, : len(contents)] = contents
    within_path = np.tile(np.arange(path_length), paths)
    path_number = np.repeat(np.arange(1, paths + 1), path_length)
    for row, start, length, tail_length, place in marks:
        middle, stop = start + length, start + length + tail_length
        segment[row, start:stop] = place
        positions[row, start:middle] = np.arange(length)
        prompt_end[place] = row * row_length + middle - 1
        if is_sid[place]:
            positions[row, middle:stop] = length + within_path
            path[row, middle:stop] = path_number
        else:
            positions[row, middle:stop] = length + np.arange(tail_length)
    path_start = prompt_end[:, None] + 1 + np.arange(paths) * path_length
    return _Layout(
        tokens,
        positions,
        segment,
        path,
        prompt_end,
        path_start,
        np.array(text_position, np.int64),
        np.array(text_target, np.int64),
    )


def _points(position: IntArray, shape: tuple[int, ...]) -> tuple[Points, torch.Tensor]:
    """`points` and `slot` of a batch whose flattened `position`s are wanted."""
    rows, length = shape
    used = np.unique(position)
    row, place = np.divmod(used, length)
    counts = np.bincount(row, minlength=rows)
    number = np.arange(len(used)) - np.repeat(np.cumsum(counts) - counts, counts)
    places = np.zeros((rows, max(1, int(counts.max(initial=0)))), np.int64)
    places[row, number] = place
    slot = np.zeros(rows * length, np.int64)
    slot[used] = np.arange(len(used))
    kept = row * places.shape[1] + number
    return Points(*map(torch.from_numpy, (places, kept, used))), torch.from_numpy(slot)


def _level_targets(
    level: int,
    codes: NDArray[np.int32],
    weights: FloatArray,
    path_codes: NDArray[np.int32],
    is_sid: NDArray[np.bool_],
    layout: _Layout,
    size: int,
) -> LevelTargets:
    """Soft targets of one level of `size` codes; 0 for positions only. Source: chain rule on the
    example's SID distribution."""
    sid_examples = np.flatnonzero(is_sid)
    paths = path_codes.shape[1] if level else 1
    example = np.repeat(sid_examples, paths)
    path = np.tile(np.arange(paths), len(sid_examples))
    if level == 0:
        position = layout.prompt_end[example]
    else:
        position = layout.path_start[example, path] + level - 1
    target = torch.zeros(len(example), size)
    if not size:
        return LevelTargets(torch.from_numpy(position), target, torch.from_numpy(example))
    prefix = path_codes[example, path, :level]
    matches = (codes[example, :, :level] == prefix[:, None, :]).all(axis=2)
    share = weights[example] * matches
    share = share / np.maximum(share.sum(axis=1, keepdims=True), 1e-12)
    target.scatter_add_(
        1,
        torch.from_numpy(codes[example, :, level].astype(np.int64)),
        torch.from_numpy(share.astype(np.float32)),
    )
    return LevelTargets(torch.from_numpy(position), target, torch.from_numpy(example))

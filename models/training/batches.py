"""Packed batches of a curriculum: batch n of a stage is a function of (seed, n, stage).

A chunk of examples is used for EPOCHS_PER_CHUNK permutations before the next one is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from models.tokenizer import Tokenizer
from models.training.curriculum import Pairs
from models.training.example_set import ExampleSet
from models.training.examples import PackedBatch, draw_paths, pack_paths
from models.training.parallel import this_process

IntArray = NDArray[np.int64]
EPOCHS_PER_CHUNK = 2


T = TypeVar("T")


class BatchSettings(Protocol):
    """What batches need of a stage's settings."""

    @property
    def batch_examples(self) -> int: ...
    @property
    def chunk_examples(self) -> int: ...
    @property
    def row_length(self) -> int: ...
    @property
    def paths(self) -> int: ...
    @property
    def seed(self) -> int: ...


class Chunks(Generic[T]):
    """Hands out chunks, of which it holds the present one, and which examples of it are next."""

    def __init__(self, make: Callable[[int, int], T], settings: BatchSettings) -> None:
        """`make(chunk number, stage)` has `chunk_examples` examples or a few fewer."""
        self._make = make
        self._settings = settings
        self._held: tuple[int, int, T] | None = None

    def at(self, number: int, stage: int, size: Callable[[T], int]) -> tuple[T, IntArray]:
        """Batch `number`: a chunk and which of its `size` examples, int64 (batch_examples,)."""
        settings = self._settings
        per_epoch = settings.chunk_examples // settings.batch_examples
        chunk, place = divmod(number, per_epoch * EPOCHS_PER_CHUNK)
        if self._held is None or self._held[:2] != (chunk, stage):
            self._held = (chunk, stage, self._make(chunk, stage))
        made = self._held[2]
        epoch, within = divmod(place, per_epoch)
        order = np.random.default_rng([settings.seed, 1, chunk, epoch]).permutation(size(made))
        first = within * settings.batch_examples
        return made, order[first : first + settings.batch_examples]


class Batches:
    """Batches of examples, on the CPU."""

    def __init__(
        self,
        make: Callable[[int, int], ExampleSet],
        tokenizer: Tokenizer,
        settings: BatchSettings,
    ) -> None:
        self._chunks = Chunks(make, settings)
        self._settings = settings
        self._tokenizer = tokenizer

    def batch(self, number: int, stage: int) -> PackedBatch:
        """Batch `number`."""
        examples, chosen = self._chunks.at(number, stage, len)
        random = np.random.default_rng([self._settings.seed, 2, number])
        drawn = draw_paths(examples.target_weights[chosen], self._settings.paths, random)
        own = _own_share()
        chosen, drawn = chosen[own], drawn[own]
        length = row_length(examples, self._tokenizer, self._settings)
        order = tight_order(_lengths(examples, chosen, self._tokenizer, self._settings), length)
        return pack_paths(
            examples,
            chosen[order],
            drawn[order],
            level_sizes=self._tokenizer.layout.level_sizes,
            sid_offset=self._tokenizer.sid_offset,
            row_length=length,
        )


class PairBatch(NamedTuple):
    """Students, the teachers of some of them, and per level which of the students' prediction
    points the teachers' are, int64, in the same order."""

    student: PackedBatch
    teacher: PackedBatch
    taught: tuple[torch.Tensor, ...]

    def to(self, device: torch.device) -> PairBatch:
        """The batch on another device; itself where it is there already."""
        if device.type == "cpu":
            return self
        taught = tuple(points.to(device) for points in self.taught)
        return PairBatch(self.student.to(device), self.teacher.to(device), taught)


class PairBatches:
    """Batches of students and teachers over the same sampled paths."""

    def __init__(
        self, make: Callable[[int], Pairs], tokenizer: Tokenizer, settings: BatchSettings
    ) -> None:
        self._chunks = Chunks(lambda number, _: make(number), settings)
        self._settings = settings
        self._tokenizer = tokenizer

    def batch(self, number: int) -> PairBatch:
        """Batch `number`: a function of (seed, number)."""
        tokenizer, settings = self._tokenizer, self._settings
        pairs, chosen = self._chunks.at(number, 3, lambda made: len(made.examples))
        students = pairs.examples
        random = np.random.default_rng([settings.seed, 2, number])
        drawn = draw_paths(students.target_weights[chosen], settings.paths, random)
        chosen, drawn = chosen[_own_share()], drawn[_own_share()]
        teachers = replace(students, prompts=pairs.teacher_prompts)

        def order_of(examples: ExampleSet, rows: IntArray) -> IntArray:
            lengths = _lengths(examples, rows, tokenizer, settings)
            return tight_order(lengths, row_length(examples, tokenizer, settings))

        def packed(examples: ExampleSet, rows: IntArray, own: bool) -> PackedBatch:
            return pack_paths(
                examples,
                chosen[rows],
                drawn[rows],
                level_sizes=tokenizer.layout.level_sizes,
                sid_offset=tokenizer.sid_offset,
                row_length=row_length(examples, tokenizer, settings),
                with_targets=own,
            )

        order = order_of(students, chosen)
        chosen, drawn = chosen[order], drawn[order]
        student = packed(students, np.arange(len(chosen)), True)
        has = np.flatnonzero(pairs.has_keywords[chosen])
        has = has[order_of(teachers, chosen[has])]
        # Points of a level lie example by example, one each at level 1, else one a path.
        taught = tuple(
            torch.from_numpy((has[:, None] * each + np.arange(each)).ravel())
            for each in (
                1 if level == 0 else settings.paths for level in range(len(student.levels))
            )
        )
        return PairBatch(student, packed(teachers, has, False), taught)


def tight_order(lengths: IntArray, row: int) -> IntArray:
    """An order in which next-fit packing into rows of `row` tokens leaves little room: best fit,
    longest first, read row by row. A row's first example did not fit into any row before."""
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(row + 1)]
    for example in np.argsort(-lengths, kind="stable").tolist():
        length = min(int(lengths[example]), row)
        room = next((room for room in range(length, row + 1) if by_room[room]), None)
        if room is None:
            room = row
            by_room[room].append(len(rows))
            rows.append([])
        place = by_room[room].pop()
        rows[place].append(example)
        by_room[room - length].append(place)
    return np.array([example for members in rows for example in members], np.int64)


def _lengths(
    examples: ExampleSet, chosen: IntArray, tokenizer: Tokenizer, settings: BatchSettings
) -> IntArray:
    """Tokens of each chosen example with what follows its prompt, int64 (n,)."""
    path_tokens = settings.paths * (tokenizer.layout.levels - 1)
    return np.array(
        [
            len(examples.prompts[i])
            + (len(text) - 1 if (text := examples.texts[i]) else path_tokens)
            for i in chosen.tolist()
        ],
        np.int64,
    )


def _own_share() -> slice:
    """Which examples of a batch are this process's."""
    process = this_process()
    return slice(process.rank, None, process.size)


def row_length(examples: ExampleSet, tokenizer: Tokenizer, settings: BatchSettings) -> int:
    """The settings' length, or that of the longest example where that is more."""
    path_tokens = settings.paths * (tokenizer.layout.levels - 1)
    return max(settings.row_length, examples.longest(path_tokens))

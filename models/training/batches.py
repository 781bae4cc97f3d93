"""Packed batches of a curriculum: batch n of a stage is a function of (seed, n, stage).

A chunk of examples is used for EPOCHS_PER_CHUNK permutations before the next one is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from index.errors import ConfigError
from models.tokenizer import Tokenizer
from models.training.curriculum import Pairs
from models.training.example_set import ExampleSet
from models.training.examples import PackedBatch, draw_paths, pack_paths
from models.training.parallel import this_process

IntArray = NDArray[np.int64]
EPOCHS_PER_CHUNK = 2
ROW_SAMPLE = 1024
ROW_STEP = 8
LONGEST_ROW = 128
ATTENTION_COST = 0.0012
"""What a token's attention costs for each token of its row, where all else costs 1; measured for
the default decoder."""


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
        self._rows = _Rows(tokenizer, settings)

    def batch(self, number: int, stage: int) -> PackedBatch:
        """Batch `number`."""
        examples, chosen = self._chunks.at(number, stage, len)
        random = np.random.default_rng([self._settings.seed, 2, number])
        drawn = draw_paths(examples.target_weights[chosen], self._settings.paths, random)
        own = _own_share()
        chosen, drawn = chosen[own], drawn[own]
        length = self._rows.length(examples)
        order = tight_order(self._rows.tokens(examples, chosen), length)
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
        self,
        make: Callable[[int], Pairs],
        tokenizer: Tokenizer,
        settings: BatchSettings,
        *,
        with_teachers: bool = True,
    ) -> None:
        """`with_teachers` False: students only, none of them taught."""
        self._chunks = Chunks(lambda number, _: _paired(make(number), with_teachers), settings)
        self._settings = settings
        self._tokenizer = tokenizer
        self._students, self._teachers = (_Rows(tokenizer, settings) for _ in range(2))

    def batch(self, number: int) -> PairBatch:
        """Batch `number`: a function of (seed, number)."""
        tokenizer, settings = self._tokenizer, self._settings
        made, chosen = self._chunks.at(number, 3, lambda made: len(made.students))
        students, teachers = made.students, made.teachers
        random = np.random.default_rng([settings.seed, 2, number])
        drawn = draw_paths(students.target_weights[chosen], settings.paths, random)
        chosen, drawn = chosen[_own_share()], drawn[_own_share()]
        length = self._students.length(students)
        order = tight_order(self._students.tokens(students, chosen), length)
        chosen, drawn = chosen[order], drawn[order]
        packed = partial(
            pack_paths,
            level_sizes=tokenizer.layout.level_sizes,
            sid_offset=tokenizer.sid_offset,
        )
        student = packed(students, chosen, drawn, row_length=length)
        has = np.flatnonzero(made.has_keywords[chosen])
        length = self._teachers.length(teachers)
        has = has[tight_order(self._teachers.tokens(teachers, chosen[has]), length)]
        teacher = packed(teachers, chosen[has], drawn[has], row_length=length, with_targets=False)
        # Points of a level lie example by example, one each at level 1, else one a path.
        taught = tuple(
            torch.from_numpy((has[:, None] * each + np.arange(each)).ravel())
            for each in (
                1 if level == 0 else settings.paths for level in range(len(student.levels))
            )
        )
        return PairBatch(student, teacher, taught)


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


def _own_share() -> slice:
    """Which examples of a batch are this process's."""
    process = this_process()
    return slice(process.rank, None, process.size)


@dataclass(frozen=True, slots=True, eq=False)
class _PairedChunk:
    """A chunk of pairs as two sets of examples with the same targets."""

    students: ExampleSet
    teachers: ExampleSet
    has_keywords: NDArray[np.bool_]


def _paired(pairs: Pairs, with_teachers: bool) -> _PairedChunk:
    if with_teachers and not pairs.has_keywords.any():
        raise ConfigError(
            "no query of the training split has keywords, so there is nothing to distil; make some "
            "with `onesearch train keywords`, or train without the teacher's term (--kl-weight 0)"
        )
    teachers = replace(pairs.examples, prompts=pairs.teacher_prompts)
    return _PairedChunk(pairs.examples, teachers, pairs.has_keywords & with_teachers)


class _Rows:
    """How long rows are for a chunk of examples; remembers the chunk it was asked for last."""

    def __init__(self, tokenizer: Tokenizer, settings: BatchSettings) -> None:
        self._path_tokens = settings.paths * (tokenizer.layout.levels - 1)
        self._wanted = settings.row_length
        self._known: tuple[ExampleSet, int] | None = None

    def length(self, examples: ExampleSet) -> int:
        """The settings' length or, where that is 0, the one that costs least; never less than the
        longest example's."""
        if self._known is None or self._known[0] is not examples:
            self._known = (examples, self._chosen(examples))
        return self._known[1]

    def tokens(self, examples: ExampleSet, chosen: IntArray) -> IntArray:
        """Of each chosen example with what follows its prompt, int64 (n,)."""
        prompts, texts, tail = examples.prompts, examples.texts, self._path_tokens
        found = [
            len(prompts[i]) + (len(texts[i]) - 1 if texts[i] else tail) for i in chosen.tolist()
        ]
        return np.array(found, np.int64)

    def _chosen(self, examples: ExampleSet) -> int:
        longest = examples.longest(self._path_tokens)
        if self._wanted:
            return max(self._wanted, longest)
        # Kinds of examples follow each other in a chunk: take some of each.
        places = np.linspace(0, len(examples) - 1, min(len(examples), ROW_SAMPLE)).astype(np.int64)
        sample = self.tokens(examples, places)
        least = -(-longest // ROW_STEP) * ROW_STEP
        candidates = range(least, max(least, LONGEST_ROW) + 1, ROW_STEP)
        return min(candidates, key=lambda row: _cost(sample, row))


def _cost(lengths: IntArray, row: int) -> float:
    """Of a pass over the examples in rows of `row` tokens, in no unit."""
    ordered = lengths[tight_order(lengths, row)].tolist()
    rows, used = 1, 0
    for length in ordered:
        if used + length > row:
            rows, used = rows + 1, 0
        used += length
    return rows * row * (1 + ATTENTION_COST * row)

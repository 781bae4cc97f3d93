"""Packing against plain Python: one example after another, one path after another."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from index.errors import ConfigError
from models.training.example_set import ExampleSet
from models.training.examples import PackedBatch, draw_paths, pack, pack_paths
from models.training.losses import level_loss, text_loss
from models.transformer import Qwen3, Qwen3Config

TEXT_TOKENS = 30
DIMENSION = 4


class Shape(NamedTuple):
    level_sizes: tuple[int, ...]
    paths: int
    row_length: int

    @property
    def sid_offset(self) -> list[int]:
        return (TEXT_TOKENS + np.cumsum([0, *self.level_sizes[:-1]])).tolist()

    @property
    def vocabulary(self) -> int:
        return TEXT_TOKENS + sum(self.level_sizes)


SHAPES = [Shape((7,), 2, 16), Shape((5, 3), 2, 16), Shape((4, 3, 2, 3, 2), 3, 32)]


class Place(NamedTuple):
    """Where one example lies, worked out by walking the rows."""

    index: int
    row: int
    start: int
    prompt: list[int]
    tail: list[int]
    is_sid: bool

    def path_of(self, column: int, levels: int) -> int:
        """0 for the prompt and for text, else the number of the path from 1."""
        inside = column - self.start - len(self.prompt)
        return 0 if inside < 0 or not self.is_sid else inside // (levels - 1) + 1


def random_examples(shape: Shape, count: int, seed: int, longest_prompt: int = 6) -> ExampleSet:
    """SID examples with 1 to 4 targets that often share prefixes, and some text examples."""
    random = np.random.default_rng(seed)
    prompts, texts = [], []
    codes = np.zeros((count, 4, len(shape.level_sizes)), np.int32)
    weights = np.zeros((count, 4), np.float32)
    for i in range(count):
        prompts.append(random.integers(TEXT_TOKENS, size=random.integers(1, longest_prompt + 1)))
        if random.random() < 0.3:
            texts.append(random.integers(TEXT_TOKENS, size=random.integers(1, 5)).tolist())
            continue
        texts.append([])
        for level, size in enumerate(shape.level_sizes):
            codes[i, :, level] = random.integers(min(size, 2), size=4)
        targets = random.integers(1, 5)
        weights[i, :targets] = random.dirichlet(np.ones(targets))
    embeddings = random.standard_normal((count, DIMENSION)).astype(np.float32)
    return ExampleSet([p.tolist() for p in prompts], codes, weights, texts, embeddings)


def packed(examples: ExampleSet, shape: Shape, seed: int = 0) -> tuple[PackedBatch, list[int]]:
    chosen = np.random.default_rng(seed).permutation(len(examples))
    batch = pack(
        examples,
        chosen,
        level_sizes=shape.level_sizes,
        sid_offset=shape.sid_offset,
        row_length=shape.row_length,
        paths=shape.paths,
        random=np.random.default_rng(seed),
    )
    return batch, chosen.tolist()


def places(
    batch: PackedBatch, examples: ExampleSet, chosen: list[int], shape: Shape
) -> list[Place]:
    """Next-fit, in order; the tail is read from the batch itself."""
    found: list[Place] = []
    row = column = 0
    for index in chosen:
        is_sid = bool(examples.target_weights[index].sum() > 0)
        tail = shape.paths * (len(shape.level_sizes) - 1)
        length = tail if is_sid else len(examples.texts[index]) - 1
        prompt = list(examples.prompts[index])
        prompt = prompt[max(0, len(prompt) + length - shape.row_length) :]
        if column + len(prompt) + length > shape.row_length:
            row, column = row + 1, 0
        first = column + len(prompt)
        tokens = batch.token_ids[row, first : first + length].tolist()
        found.append(Place(index, row, column, prompt, tokens, is_sid))
        column = first + length
    return found


def paths_of(place: Place, shape: Shape) -> list[tuple[int, ...]]:
    """Codes of each path's first L − 1 levels."""
    levels = len(shape.level_sizes) - 1
    offsets = shape.sid_offset[:levels]
    return [
        tuple(t - o for t, o in zip(place.tail[p * levels :], offsets, strict=False))
        for p in range(shape.paths)
    ]


def soft_target(examples: ExampleSet, index: int, prefix: tuple[int, ...], size: int) -> np.ndarray:
    """P(next code | prefix) of an example's weighted SIDs."""
    target = np.zeros(size)
    codes, weights = examples.target_codes[index], examples.target_weights[index]
    for sid, weight in zip(codes.tolist(), weights.tolist(), strict=True):
        if tuple(sid[: len(prefix)]) == prefix:
            target[sid[len(prefix)]] += weight
    return target / target.sum()


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(SHAPES), st.integers(1, 12), st.integers(0, 10_000))
def test_tokens_positions_and_mask(shape: Shape, count: int, seed: int):
    examples = random_examples(shape, count, seed)
    batch, chosen = packed(examples, shape, seed)
    found = places(batch, examples, chosen, shape)
    rows, levels = batch.token_ids.shape[0], len(shape.level_sizes)
    assert rows == found[-1].row + 1
    owner = np.full((rows, shape.row_length), -1)
    path = np.zeros((rows, shape.row_length), int)
    position = np.zeros((rows, shape.row_length), int)
    for number, place in enumerate(found):
        for column in range(place.start, place.start + len(place.prompt) + len(place.tail)):
            owner[place.row, column] = number
            path[place.row, column] = place.path_of(column, levels)
            inside = column - place.start
            if path[place.row, column]:
                inside = len(place.prompt) + (inside - len(place.prompt)) % (levels - 1)
            position[place.row, column] = inside
        end = place.start + len(place.prompt)
        assert batch.token_ids[place.row, place.start : end].tolist() == place.prompt
        if not place.is_sid:
            assert place.tail == list(examples.texts[place.index][:-1])
    np.testing.assert_array_equal(batch.position_ids.numpy(), position)
    expected = np.zeros((rows, shape.row_length, shape.row_length), bool)
    for row, query, key in np.ndindex(expected.shape):
        same = owner[row, query] == owner[row, key] >= 0
        own = path[row, key] in (0, path[row, query])
        expected[row, query, key] = (same and key <= query and own) or key == query
    np.testing.assert_array_equal(batch.mask[:, 0].numpy(), expected)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(SHAPES), st.integers(1, 12), st.integers(0, 10_000))
def test_targets(shape: Shape, count: int, seed: int):
    examples = random_examples(shape, count, seed)
    batch, chosen = packed(examples, shape, seed)
    found = places(batch, examples, chosen, shape)
    for level, targets in enumerate(batch.levels):
        expected: list[tuple[int, int, np.ndarray]] = []
        for number, place in enumerate(found):
            if not place.is_sid:
                continue
            end = place.row * shape.row_length + place.start + len(place.prompt) - 1
            for p, codes in enumerate(paths_of(place, shape)):
                step = end if level == 0 else end + p * (len(shape.level_sizes) - 1) + level
                size = shape.level_sizes[level]
                target = soft_target(examples, place.index, codes[:level], size)
                expected.append((step, number, target))
                if level == 0:
                    break
        assert targets.position.tolist() == [step for step, _, _ in expected]
        assert targets.example.tolist() == [number for _, number, _ in expected]
        if expected:
            distribution = np.stack([target for _, _, target in expected])
            np.testing.assert_allclose(targets.target.numpy(), distribution, atol=1e-5)
            np.testing.assert_allclose(targets.target.sum(dim=1), 1, atol=1e-5)
    np.testing.assert_array_equal(batch.embeddings.numpy(), examples.embeddings[chosen])
    assert batch.examples == count


def test_soft_targets_by_hand():
    """Two thirds of the weight start with code 1; of these one half goes on with 0."""
    codes = np.array([[[1, 0], [1, 2], [3, 1]]], np.int32)
    weights = np.array([[1 / 3, 1 / 3, 1 / 3]], np.float32)
    shape = Shape((4, 3), 40, 64)
    examples = ExampleSet([[5, 6]], codes, weights, [[]], np.zeros((1, DIMENSION), np.float32))
    batch, _ = packed(examples, shape)
    np.testing.assert_allclose(batch.levels[0].target, [[0, 2 / 3, 0, 1 / 3]], atol=1e-6)
    first = batch.token_ids[0, 2:42] - shape.sid_offset[0]
    assert set(first.tolist()) == {1, 3}
    for code, target in zip(first.tolist(), batch.levels[1].target, strict=True):
        expected = [0.5, 0, 0.5] if code == 1 else [0, 1, 0]
        np.testing.assert_allclose(target, expected, atol=1e-6)


def test_paths_are_drawn_by_weight():
    weights = np.array([[0.0, 0.7, 0.0, 0.3, 0.0], [1, 0, 0, 0, 0]], np.float32)
    drawn = draw_paths(weights, 4000, np.random.default_rng(0))
    share = np.bincount(drawn[0], minlength=5) / 4000
    np.testing.assert_allclose(share, weights[0], atol=0.03)
    assert share[[0, 2, 4]].tolist() == [0, 0, 0]
    assert not drawn[1].any()


def test_text_examples_predict_every_token():
    texts = [[7, 8, 9], [3]]
    examples = ExampleSet(
        [[1, 2], [4]],
        np.zeros((2, 1, 2), np.int32),
        np.zeros((2, 1), np.float32),
        texts,
        np.zeros((2, DIMENSION), np.float32),
    )
    batch = pack(
        examples,
        np.array([0, 1]),
        level_sizes=(5, 3),
        sid_offset=[30, 35],
        row_length=8,
        paths=2,
        random=np.random.default_rng(0),
    )
    assert batch.token_ids.tolist() == [[1, 2, 7, 8, 4, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 0, 0, 0]]
    assert batch.text_position.tolist() == [1, 2, 3, 4]
    assert batch.text_target.tolist() == [7, 8, 9, 3]
    assert [len(level.position) for level in batch.levels] == [0, 0]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_long_prompt_loses_its_oldest_part(shape: Shape):
    examples = random_examples(shape, 8, 3, longest_prompt=3 * shape.row_length)
    batch, chosen = packed(examples, shape)
    tail = shape.paths * (len(shape.level_sizes) - 1)
    cut = 0
    for place in places(batch, examples, chosen, shape):
        whole = list(examples.prompts[place.index])
        room = shape.row_length - (tail if place.is_sid else len(examples.texts[place.index]) - 1)
        assert place.prompt == whole[-room:]
        end = place.start + len(place.prompt)
        assert batch.token_ids[place.row, place.start : end].tolist() == place.prompt
        cut += len(whole) > room
    assert cut > 2


def test_a_row_without_room_is_refused():
    shape = Shape((5, 3, 3), 2, 4)
    examples = ExampleSet(
        [[1]],
        np.zeros((1, 1, 3), np.int32),
        np.ones((1, 1), np.float32),
        [[]],
        np.zeros((1, DIMENSION), np.float32),
    )
    with pytest.raises(ConfigError, match="rows of 4 are too short"):
        packed(examples, shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_points_are_where_something_is_predicted(shape: Shape):
    examples = random_examples(shape, 20, 4)
    batch, _ = packed(examples, shape, 2)
    wanted = torch.cat([*(level.position for level in batch.levels), batch.text_position])
    states = torch.randn(*batch.token_ids.shape, 3)
    rows, points = torch.arange(len(states))[:, None], batch.points
    at_places = states[rows, points.places].flatten(0, 1)
    assert torch.equal(points.position, wanted.unique())
    assert torch.equal(at_places[points.kept], states.flatten(0, 1)[points.position])
    assert torch.equal(batch.states(at_places[points.kept], wanted), states.flatten(0, 1)[wanted])
    per_row = torch.bincount(wanted.unique() // shape.row_length)
    assert points.places.shape[1] == int(per_row.max())


def test_given_paths_are_laid_out_in_their_order():
    codes = np.array([[[1, 0], [2, 2], [3, 1]]], np.int32)
    examples = ExampleSet(
        [[5, 6]], codes, np.full((1, 3), 1 / 3, np.float32), [[]], np.zeros((1, 4), np.float32)
    )
    batch = pack_paths(
        examples,
        np.array([0]),
        np.array([[2, 0, 1]]),
        level_sizes=(4, 3),
        sid_offset=[30, 34],
        row_length=8,
        with_targets=False,
    )
    assert batch.token_ids.tolist() == [[5, 6, 33, 31, 32, 0, 0, 0]]
    assert batch.segment.tolist() == [[0, 0, 0, 0, 0, -1, -1, -1]]
    assert [level.position.tolist() for level in batch.levels] == [[1], [2, 3, 4]]
    assert [level.target.shape[1] for level in batch.levels] == [0, 0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("beta", [0.0, 1.5])
def test_the_packed_loss_is_the_loss_of_single_examples(shape: Shape, beta: float):
    examples = random_examples(shape, 20, 11)
    batch, chosen = packed(examples, shape, 5)
    random = torch.Generator().manual_seed(1)
    books = [torch.randn(size, DIMENSION, generator=random) for size in shape.level_sizes]
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    model = Qwen3(config).initialise(random)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=random))
    levels = len(shape.level_sizes)
    slices = [slice(o, o + s) for o, s in zip(shape.sid_offset, shape.level_sizes, strict=True)]
    with torch.no_grad():
        flat = model.hidden(batch.token_ids, batch.position_ids, batch.mask).flatten(0, 1)
        together = [
            level_loss(
                flat[targets.position],
                model.lm_head.weight[slices[level]],
                targets.target,
                beta * (batch.embeddings @ books[level].T)[targets.example],
            )
            for level, targets in enumerate(batch.levels)
        ]
        text = text_loss(flat[batch.text_position], model.lm_head.weight, batch.text_target)
        single: list[list[float]] = [[] for _ in range(levels)]
        single_text: list[float] = []
        for place in places(batch, examples, chosen, shape):
            if not place.is_sid:
                words = list(examples.texts[place.index])
                logits = model(torch.tensor([place.prompt + words[:-1]]))[
                    0, len(place.prompt) - 1 :
                ]
                losses = functional.cross_entropy(logits, torch.tensor(words), reduction="none")
                single_text += losses.tolist()
                continue
            embedding = torch.from_numpy(examples.embeddings[place.index])
            for p, codes in enumerate(paths_of(place, shape)):
                offsets = shape.sid_offset
                tokens = [code + offset for code, offset in zip(codes, offsets, strict=False)]
                logits = model(torch.tensor([place.prompt + tokens]))[0, len(place.prompt) - 1 :]
                for level in range(levels) if p == 0 else range(1, levels):
                    scores = logits[level, slices[level]] + beta * (books[level] @ embedding)
                    size = shape.level_sizes[level]
                    target = soft_target(examples, place.index, codes[:level], size)
                    log_probabilities = torch.log_softmax(scores, 0).numpy()
                    single[level].append(-float(target @ log_probabilities))
    for packed_loss, losses in zip(together, single, strict=True):
        assert packed_loss.item() == pytest.approx(np.mean(losses), abs=1e-5)
    assert text.item() == pytest.approx(np.mean(single_text), abs=1e-5)

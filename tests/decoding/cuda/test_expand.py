"""The GPU expansion against the reference, level by level."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from decoding.cuda import expand as module
from decoding.cuda.expand import DeviceTrie, Expander, bitmap
from index.errors import ConfigError
from loadtest.gpu_expand import Case, build_trie, disagreements, hard_tries, random_trie

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRIES = dict(hard_tries(64))


def as_planned(plan):
    return replace(plan, rows_per_program=8)


def through_groups(plan):
    """As a level that is too large to list all its children."""
    return cut(plan, direct=False, tile=16, group=4, splits=1, collect_programs=3)


def cut_small(plan):
    """Many blocks and leftovers everywhere: codes, children, rows."""
    return cut(plan, direct=True, tile=4, wide=16, splits=1, rows_per_program=4, rank_programs=3)


def cut_small_through_groups(plan):
    splits = 3 if plan.rows == 1 else 1
    return cut(plan, direct=False, tile=8, group=8, splits=splits, collect_programs=2)


def cut(plan, **changes):
    return replace(plan, code_block=16, groups=plan.candidates, **changes)


@pytest.mark.parametrize("name", TRIES)
@pytest.mark.parametrize(
    "reshape", [as_planned, through_groups, cut_small, cut_small_through_groups]
)
def test_hard_tries(name, reshape):
    case = Case(TRIES[name], (12, 5), (None, 0.3), prior=reshape is as_planned, grid=1)
    if reshape is not as_planned:
        case = case._replace(widths=(6, 4), grid=None)
    assert disagreements(case, DEVICE, reshape, passes=1) == []


@pytest.mark.parametrize(
    ("grid", "reshape"),
    [(None, as_planned), (1, as_planned), (1, through_groups), (1e-6, through_groups)],
)
def test_widths_filters_and_ties(grid, reshape):
    trie = random_trie((40, 16, 5), 900, 4)
    case = Case(trie, (50, 1, 10, 50), (None, 0.05, 0.0, 0.001), grid)
    assert disagreements(case, DEVICE, reshape) == []


def test_width_512_with_half_precision_logits():
    trie = random_trie((100, 30), 2500, 5)
    case = Case(trie, (512,), (None,), dtype=torch.bfloat16)
    assert disagreements(case, DEVICE, lambda p: replace(p, rows_per_program=64), passes=1) == []


@pytest.mark.parametrize("grid", [None, 1, 1e-6])
def test_more_ties_than_are_ranked_at_once(monkeypatch, grid):
    monkeypatch.setattr(module, "_RANK_LIMIT", 0)
    case = Case(random_trie((30, 30), 700, 6), (20, 3), (None, 0.5), grid)
    assert disagreements(case, DEVICE, as_planned) == []


def run(trie, nodes, scores, logits, level=0, widths=(3,)):
    sizes = trie.layout.level_sizes
    expander = Expander(DeviceTrie.from_trie(trie, DEVICE), 1, max(widths), sizes, DEVICE)
    table = torch.zeros((1, len(sizes)), dtype=torch.int64, device=DEVICE)
    return expander.expand(
        level,
        torch.tensor([nodes], dtype=torch.int32, device=DEVICE),
        torch.tensor([scores], dtype=torch.float32, device=DEVICE),
        torch.tensor([logits], dtype=torch.float32, device=DEVICE),
        None,
        table,
        torch.tensor(widths, dtype=torch.int32, device=DEVICE),
    )


def test_rows_in_any_order_and_dead_ones():
    trie = build_trie((4, 2), np.array([[0, 0], [1, 0], [1, 1], [2, 1], [3, 0]]))
    even = [[0.0, 0.0]] * 4
    step = run(trie, [3, -1, 1, 0], [-2.0, -np.inf, -1.0, np.nan], even, 1, (4,))
    assert step.nodes.tolist() == [[1, 2, 4, -1]]
    assert step.parents.tolist() == [[2, 2, 0, -1]]
    assert step.codes.tolist() == [[0, 1, 0, -1]]
    assert step.branching.tolist() == [[2, 2, 1, 0]]
    assert step.counts.tolist() == [3]


def test_zeros_tie_and_children_without_probability_are_not_kept():
    trie = build_trie((3,), np.arange(3)[:, None])
    for start in (0.0, -0.0):
        step = run(trie, [0], [start], [[-np.inf, 0.0, -np.inf]])
        assert step.nodes.tolist() == [[1, -1, -1]]
        assert step.branching.tolist() == [[3, 0, 0]]
        assert step.scores[0, 0].item() == 0.0


def test_dead_query():
    trie = build_trie((3,), np.arange(3)[:, None])
    step = run(trie, [0], [-np.inf], [[1.0, 2.0, 3.0]])
    assert step.counts.tolist() == [0]
    assert step.nodes.tolist() == [[-1, -1, -1]]


def test_bitmap():
    bits = np.zeros(70, dtype=np.bool_)
    bits[[0, 31, 33, 69]] = True
    words = bitmap(bits, "cpu").numpy().view(np.uint32)
    assert [int(words[i // 32] >> (i % 32)) & 1 for i in range(70)] == bits.astype(int).tolist()


def test_refusals():
    trie = build_trie((3,), np.arange(3)[:, None])
    device_trie = DeviceTrie.from_trie(trie, DEVICE)
    with pytest.raises(ConfigError, match="levels"):
        Expander(device_trie, 1, 1, (4,), DEVICE)
    with pytest.raises(ConfigError, match="≥ 1"):
        Expander(device_trie, 0, 1, (3,), DEVICE)
    with pytest.raises(ConfigError, match="SIDs"):
        DeviceTrie.from_trie(build_trie((3,), np.zeros((0, 1), dtype=np.int64)), DEVICE)

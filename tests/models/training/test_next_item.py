"""Windows that slide over sequences: targets, histories, prompts."""

from __future__ import annotations

import numpy as np
import pytest

from index.sid import SidLayout
from models.prompt import PromptBuilder, PromptSettings
from models.tokenizer import HISTORY, ITEM, Tokenizer
from models.training.next_item import NextItems

CODES = np.array([[row % 8, row % 4] for row in range(40)], np.int32)


@pytest.fixture(scope="module")
def prompts() -> PromptBuilder:
    tokenizer = Tokenizer.train(["oak desk"], 280, layout=SidLayout((8, 4)))
    return PromptBuilder(tokenizer, PromptSettings(max_history=3))


def test_every_choice_but_the_first_is_a_target(prompts: PromptBuilder) -> None:
    made = NextItems([(0, 1, 2), (7,), (), (3, 4)], CODES, prompts, 5)
    assert len(made) == 3
    found = made.draw(200, np.random.default_rng(0))
    targets = {tuple(codes) for codes in found.target_codes[:, 0].tolist()}
    assert targets == {tuple(CODES[row].tolist()) for row in (1, 2, 4)}
    assert found.target_weights.tolist() == [[1.0]] * 200
    assert found.embeddings.shape == (200, 5)
    assert not any(found.texts)


def test_prompts_end_right_before_the_target(prompts: PromptBuilder) -> None:
    rows = tuple(range(12))
    made = NextItems([rows], CODES, prompts, 5)
    found = made.draw(300, np.random.default_rng(1))
    marker, sid = prompts.tokenizer.special, prompts.tokenizer.sid_tokens
    lengths: set[int] = set()
    for prompt, codes in zip(found.prompts, found.target_codes[:, 0].tolist(), strict=True):
        start = list(prompt).index(marker[HISTORY]) + 1
        assert prompt[-1] == marker[ITEM]
        written = list(prompt[start:-1])
        lengths.add(len(written) // 2)
        fitting = [row for row in rows[1:] if CODES[row].tolist() == codes]
        windows = [
            [token for past in rows[begin:row] for token in sid(CODES[past].tolist())]
            for row in fitting
            for begin in range(max(row - 3, 0), row)
        ]
        assert written in windows
    assert lengths == {1, 2, 3}


def test_the_same_seed_draws_the_same(prompts: PromptBuilder) -> None:
    made = NextItems([(0, 1, 2, 3)], CODES, prompts, 5)
    first, again = (made.draw(9, np.random.default_rng(4)) for _ in range(2))
    assert first.prompts == again.prompts

import numpy as np
import pytest
import torch

from decoding.engine import Prompt
from index.snapshot import Snapshot
from models.checkpoint import Checkpoint
from models.training.publishing import weights_of
from models.training.rollout import Rollouts, _draw, sample_rollouts
from models.transformer import Qwen3

PROMPTS = [np.array(tokens, np.int32) for tokens in ([5, 9, 40], [7, 8], [30, 31, 32, 33, 34])]


def tiny(tiny_pair) -> tuple[Qwen3, Checkpoint, Snapshot]:
    checkpoint = Checkpoint.open(tiny_pair.checkpoint)
    model = checkpoint.load_model()
    with torch.no_grad():
        # Untrained logits are nearly equal: a wrong distribution would go unnoticed.
        model.lm_head.weight.mul_(40)
    return model, checkpoint, Snapshot.open(tiny_pair.snapshot)


def roll(tiny_pair, group: int, prompts: list[Prompt], temperature: float = 1.0) -> Rollouts:
    model, checkpoint, snapshot = tiny(tiny_pair)
    weights = weights_of(model, checkpoint.tokenizer, snapshot)
    random = np.random.default_rng(4)
    return sample_rollouts(weights, snapshot.trie, prompts, group, random, temperature=temperature)


def priors(snapshot: Snapshot) -> list[Prompt]:
    random = np.random.default_rng(2)
    return [
        Prompt(
            tokens,
            tuple(
                random.standard_normal(size).astype(np.float32)
                for size in snapshot.layout.level_sizes
            ),
        )
        for tokens in PROMPTS
    ]


def chances_by_hand(
    model: Qwen3, checkpoint: Checkpoint, snapshot: Snapshot, prompt: Prompt, temperature: float
) -> np.ndarray:
    """Probability of every legal SID, from the training module, one sequence at a time."""
    trie, tokenizer = snapshot.trie, checkpoint.tokenizer
    codes = trie.codes_of_leaves(np.arange(trie.n_leaves))
    chances = np.zeros(len(codes))
    for leaf, sid in enumerate(codes):
        chance = 1.0
        for level in range(codes.shape[1]):
            before = [*prompt.token_ids.tolist(), *tokenizer.sid_tokens(sid[:level])]
            with torch.no_grad():
                hidden = model.hidden(torch.tensor([before]))[0, -1]
                scores = model.level_logits(hidden, tokenizer.level_slice(level)).double().numpy()
            if prompt.level_prior is not None:
                scores = scores + prompt.level_prior[level]
            mass = np.exp(scores / temperature)
            fits = (codes[:, :level] == sid[:level]).all(axis=1)
            legal = np.unique(codes[fits, level])
            chance *= mass[sid[level]] / mass[legal].sum()
        chances[leaf] = chance
    return chances


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_rollouts_follow_the_policy_over_legal_sids(tiny_pair, temperature: float):
    model, checkpoint, snapshot = tiny(tiny_pair)
    prompts = priors(snapshot)
    group = 4000
    found = roll(tiny_pair, group, prompts, temperature)
    for i, prompt in enumerate(prompts):
        expected = chances_by_hand(model, checkpoint, snapshot, prompt, temperature)
        assert expected.sum() == pytest.approx(1.0)
        share = np.bincount(found.leaves[i], minlength=len(expected)) / group
        # Four standard errors of a share.
        margin = 4 * np.sqrt(expected * (1 - expected) / group) + 1e-3
        assert (np.abs(share - expected) < margin).all()
        np.testing.assert_allclose(
            np.exp(found.chances[i]), expected[found.leaves[i]], rtol=1e-3, atol=1e-6
        )


def test_leaves_and_codes_are_of_the_same_legal_sids(tiny_pair):
    _, _, snapshot = tiny(tiny_pair)
    found = roll(tiny_pair, 20, [Prompt(tokens) for tokens in PROMPTS])
    assert found.codes.shape == (3, 20, 3)
    flat = found.codes.reshape(-1, 3).astype(np.int32)
    leaves = snapshot.trie.find(snapshot.layout.pack(flat))
    np.testing.assert_array_equal(leaves, found.leaves.ravel())


def test_same_weights_and_numbers_give_the_same_rollouts(tiny_pair):
    prompts = [Prompt(tokens) for tokens in PROMPTS]
    first, again = roll(tiny_pair, 30, prompts), roll(tiny_pair, 30, prompts)
    np.testing.assert_array_equal(first.codes, again.codes)


def test_draws_by_hand():
    """Two rows with children 0–2 and 3–4, of probabilities .25, .5, .25 and .1, .9."""

    class Numbers:
        def random(self, size: tuple[int, int]) -> np.ndarray:
            return np.array([[0.2, 0.3, 0.76], [0.05, 0.11, 0.999]]).reshape(size)

    logits = np.log(np.array([[1, 2, 1, 9, 9], [5, 5, 5, 1, 9]], np.float32))
    codes = np.arange(5, dtype=np.uint8)
    first, end = np.array([0, 3]), np.array([3, 5])
    nodes, chances = _draw(logits, codes, first, end, 3, Numbers())  # pyright: ignore
    assert nodes.tolist() == [0, 1, 2, 3, 4, 4]
    np.testing.assert_allclose(np.exp(chances), [0.25, 0.5, 0.25, 0.1, 0.9, 0.9], rtol=1e-6)

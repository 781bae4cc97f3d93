"""The composed alignment loss on a tiny model, and the whole stage on a tiny shop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from index.dataset import Dataset
from index.errors import ConfigError
from index.snapshot import Snapshot
from models.checkpoint import Checkpoint
from models.query import QueryPrompts
from models.training.align import AlignSettings, AlignStage
from models.training.episodes import Counts, Episode, Episodes
from models.training.run_align import AlignRun, run_align

TINY = AlignSettings(
    examples=160, batch_examples=16, group=8, warmup_steps=2, evaluate_every=4, learning_rate=1e-3
)


def tiny_stage(tiny_pair, **changes: object) -> AlignStage:
    """Three episodes, in double precision."""
    snapshot, checkpoint = Snapshot.open(tiny_pair.snapshot), Checkpoint.open(tiny_pair.checkpoint)
    settings = AlignSettings(
        **({"prior_beta": 2.0, "batch_examples": 3, "group": 4} | changes)  # pyright: ignore
    )
    return AlignStage(
        checkpoint.load_model().double(),
        tiny_episodes(snapshot, checkpoint),
        checkpoint.tokenizer,
        snapshot,
        settings,
        autocast=False,
    )


def tiny_episodes(snapshot: Snapshot, checkpoint: Checkpoint) -> Episodes:
    made = [
        Episode("red desk", (), (3, 4), 1),
        Episode("white lamp", (1, 2), (7,), 0),
        Episode("steel chair", (), (0, 9, 5), 3),
    ]
    counts = {("red desk", 4): Counts(10, 3, 0)}
    relevance = {("white lamp", 8): 2}
    prompts = QueryPrompts.of(snapshot.codec, checkpoint)
    return Episodes(snapshot, prompts, made, counts, relevance)


def test_rewards_of_an_episode_by_hand(tiny_pair):
    snapshot, checkpoint = Snapshot.open(tiny_pair.snapshot), Checkpoint.open(tiny_pair.checkpoint)
    episodes = tiny_episodes(snapshot, checkpoint)
    unseen = math.log(10) / (3 * math.log(10))
    seen = math.log(13) / (math.log(20) + math.log(13) + math.log(10))
    found = episodes.rewards(np.array([0, 1]), np.array([[3, 4, 5], [7, 8, 9]]))
    expected = [[4 + unseen, 3 + seen, unseen], [3 + unseen, 2 + unseen, unseen]]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    targets = episodes.targets(np.array([0, 1]))
    assert targets.known.tolist() == [[True, True], [True, False]]
    codes = snapshot.trie.codes_of_leaves(np.array([3, 4]))
    assert targets.codes[0].tolist() == codes.tolist()


def test_log_probabilities_are_those_of_the_scoring_rule(tiny_pair):
    """Packed paths on one prompt against one sequence at a time."""
    stage = tiny_stage(tiny_pair)
    group = stage.roll_out(0)
    log_p = stage.log_probability(group, stage.model)
    chosen = stage._chosen(0)
    prompts, _ = stage._episodes.prompts(chosen)
    assert log_p.shape == (3, 5, 3)
    for i, prompt in enumerate(prompts):
        for path, codes in enumerate(group.paths[i].tolist()):
            for level, code in enumerate(codes):
                tokens = [*prompt.token_ids.tolist(), *stage._tokenizer.sid_tokens(codes[:level])]
                hidden = stage.model.hidden(torch.tensor([tokens]))[0, -1]
                scores = stage.model.level_logits(hidden, stage._tokenizer.level_slice(level))
                assert prompt.level_prior is not None
                scores = scores + torch.from_numpy(prompt.level_prior[level])
                expected = float(torch.log_softmax(scores, -1)[code].detach())
                assert float(log_p[i, path, level].detach()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("method", ["tpma", "grpo"])
def test_the_first_loss_by_hand(tiny_pair, method: str):
    """At the first update every ratio is 1: the loss is −mean(advantage) + 0.1 · CE."""
    stage = tiny_stage(tiny_pair, method=method)
    group = stage.roll_out(0)
    log_p = stage.log_probability(group, stage.model)
    total, ce = stage.loss(log_p, log_p[:, :-1].detach(), group.advantages)
    episodes = [stage._episodes._episodes[i] for i in stage._chosen(0).tolist()]
    trie = stage._snapshot.trie
    values = []
    for i, episode in enumerate(episodes):
        targets = trie.codes_of_leaves(np.array(episode.targets)).tolist()
        rollouts = group.paths[i, :-1].tolist()
        items = group.items[i].tolist()
        gain, gate = [], []
        for codes in rollouts:
            same = [[o == t for o, t in zip(codes, target, strict=True)] for target in targets]
            best = [
                max(sum(w * s for w, s in zip((2, 2, 0)[:n], m, strict=False)) for m in same)
                for n in range(4)
            ]
            count = [max(sum(m[:n]) for m in same) for n in range(4)]
            gain.append([best[n] - best[n - 1] for n in (1, 2, 3)])
            gate.append([1.0, min(1, count[1]), min(1, count[2] / 2)])
        item = normalised(items)
        for level in range(3):
            step = normalised([row[level] for row in gain])
            for rollout in range(4):
                value = item[rollout]
                if method == "tpma":
                    value = gate[rollout][level] * (step[rollout] + item[rollout])
                values.append(value)
        first = trie.codes_of_leaves(np.array([episode.targets[0]]))[0].tolist()
        assert group.paths[i, -1].tolist() == first
    expected_ce = -float(log_p[:, -1].mean().detach())
    assert float(ce.detach()) == pytest.approx(expected_ce)
    expected = -float(np.mean(values)) + 0.1 * expected_ce
    assert float(total.detach()) == pytest.approx(expected, abs=1e-5)


def normalised(values: list[float]) -> list[float]:
    mean, deviation = np.mean(values), np.std(values, ddof=1)
    return [(value - mean) / (deviation + 1e-8) for value in values]


def test_gradient_against_finite_differences(tiny_pair):
    """Off-policy ratios, anchor and KL together."""
    stage = tiny_stage(tiny_pair, reference_weight=0.3)
    group = stage.roll_out(0)
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        start = stage.log_probability(group, stage.model)[:, :-1]
        old = start + 0.1 * torch.randn(start.shape, generator=random, dtype=torch.float64)
        reference = start + 0.1 * torch.randn(start.shape, generator=random, dtype=torch.float64)

    def total() -> torch.Tensor:
        log_p = stage.log_probability(group, stage.model)
        return stage.loss(log_p, old, group.advantages, reference)[0]

    torch.autograd.backward(total())
    step = 1e-5
    for name, parameter in stage.model.named_parameters():
        direction = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
        with torch.no_grad():
            parameter.add_(direction, alpha=step)
            above = float(total())
            parameter.sub_(direction, alpha=2 * step)
            below = float(total())
            parameter.add_(direction, alpha=step)
        assert parameter.grad is not None, name
        expected = (above - below) / (2 * step)
        assert float((parameter.grad * direction).sum()) == pytest.approx(
            expected, rel=1e-4, abs=1e-6
        ), name


def test_alignment_moves_the_policy_towards_what_was_chosen(tiny_pair):
    stage = tiny_stage(tiny_pair, group=16, batch_examples=6, learning_rate=3e-3)
    results = [stage.step(number, number / 40, 3e-3) for number in range(40)]
    first = np.mean([result.measures["reward"] for result in results[:5]])
    last = np.mean([result.measures["reward"] for result in results[-5:]])
    assert last > first + 0.5


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="group"):
        AlignSettings(group=1)
    with pytest.raises(ConfigError, match="method"):
        AlignSettings(method="ppo")  # pyright: ignore


def test_episodes_need_clicks_or_orders(tiny_pair):
    snapshot, checkpoint = Snapshot.open(tiny_pair.snapshot), Checkpoint.open(tiny_pair.checkpoint)
    with pytest.raises(ConfigError, match="no clicks or orders"):
        Episodes(snapshot, QueryPrompts.of(snapshot.codec, checkpoint), [], {}, {})


def align_run(shop: Path, pretrained: Path, target: Path, **changes: object) -> AlignRun:
    return AlignRun(
        Dataset.open(shop / "dataset"),
        Snapshot.open(shop / "snapshot"),
        target,
        pretrained / "checkpoint",
        replace(TINY, **changes),  # pyright: ignore[reportArgumentType]
    )


@pytest.mark.parametrize("changes", [{}, {"method": "grpo"}, {"strict_prefix": True, "updates": 2}])
def test_a_checkpoint_records_what_made_it(
    shop: Path, pretrained: Path, tmp_path: Path, changes: dict[str, object]
):
    measures: list[dict[str, float]] = []
    saved = run_align(
        align_run(shop, pretrained, tmp_path / "aligned", **changes),
        lambda step: measures.append(dict(step.measures)),
    )
    assert len(measures) == 10
    assert ["unconstrained_valid_rate" in step for step in measures].count(True) == 3
    assert all(math.isfinite(step["reward"]) for step in measures)
    assert saved.manifest.extra["stage"] == "align"
    own = saved.manifest.extra["components"]["align"]
    assert own["method"] == changes.get("method", "tpma")
    assert Checkpoint.open(pretrained / "checkpoint").version in saved.settings.parents
    assert "unconstrained_valid_rate" in saved.metrics


def test_a_killed_run_ends_in_the_same_checkpoint(
    shop: Path,
    pretrained: Path,
    kill_and_continue: Callable[[str, list[str], int], tuple[str, str]],
):
    program = (
        "import sys, time; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
        "from test_align import align_run\n"
        "from models.training.run_align import run_align\n"
        "target, pause, shop, pretrained = sys.argv[1:]\n"
        "def report(step):\n"
        "    print(step.step, flush=True)\n"
        "    time.sleep(float(pause))\n"
        "run_align(align_run(Path(shop), Path(pretrained), Path(target), save_every_s=0.0,\n"
        "          reference_weight=0.1), report)\n"
    )
    whole, resumed = kill_and_continue(program, [str(shop), str(pretrained)], 5)
    assert whole == resumed

"""The composed loss on a tiny model, and the whole stage on a tiny shop."""

from __future__ import annotations

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
from models.dropout import Dropout
from models.prompt import PromptBuilder
from models.training.adversarial import perturbation
from models.training.batches import PairBatches
from models.training.curriculum import Pairs
from models.training.distill import DistillSettings, DistillStage
from models.training.example_set import ExampleSet
from models.training.keyword_table import KeywordTable, read_keywords
from models.training.losses import focal_loss, forward_kl, soft_cross_entropy, symmetric_kl
from models.training.run_distill import DistillRun, run_distill

COUNT = 6
HAS = np.array([True, False, True, True, False, True])
SETTINGS = DistillSettings(
    prior_beta=2.0,
    examples=COUNT,
    batch_examples=COUNT,
    chunk_examples=COUNT,
    adversarial_epsilon=0.3,
    temperature=1.5,
)
TINY = DistillSettings(examples=1280, batch_examples=64, chunk_examples=256, warmup_steps=2)


def tiny_stage(tiny_pair, **changes: object) -> tuple[DistillStage, PairBatches]:
    """Six hand-made examples, four of them with keywords, in double precision."""
    snapshot, checkpoint = Snapshot.open(tiny_pair.snapshot), Checkpoint.open(tiny_pair.checkpoint)
    builder = PromptBuilder(checkpoint.tokenizer, checkpoint.settings.prompt)
    random = np.random.default_rng(1)
    leaves = random.integers(snapshot.trie.n_leaves, size=(COUNT, 3))
    codes = snapshot.trie.codes_of_leaves(leaves.ravel()).reshape(COUNT, 3, -1)
    weights = random.dirichlet(np.ones(3), size=COUNT).astype(np.float32)
    texts = ["red oak desk", "lamp", "white glass", "steel shelf", "black chair", "desk"]
    embeddings = snapshot.embed_queries(texts)
    tokens = [builder.tokenizer.encode_text(text) for text in texts]
    students = [builder.student(ids).tolist() for ids in tokens]
    spans = [builder.keyword_tokens(["chair", "oak"]) if own else () for own in HAS]
    teachers = [
        builder.teacher(ids, span).tolist() for ids, span in zip(tokens, spans, strict=True)
    ]
    examples = ExampleSet(students, codes, weights, [()] * COUNT, embeddings)
    settings = replace(SETTINGS, **changes)  # pyright: ignore[reportArgumentType]
    batches = PairBatches(lambda _: Pairs(examples, teachers, HAS), checkpoint.tokenizer, settings)
    stage = DistillStage(
        checkpoint.load_model().double(),
        batches,
        checkpoint.tokenizer,
        snapshot.codec,
        settings,
        autocast=False,
    )
    return stage, batches


def by_hand(stage: DistillStage, batches: PairBatches) -> Callable[[bool], torch.Tensor]:
    """The loss as METHOD writes it, δ and the teacher held; a function of the weights."""
    pair, settings = batches.batch(0), stage._settings
    student, teacher = pair.student, pair.teacher
    readout, model = stage._readout, stage.model

    def logits(embeddings: torch.Tensor, passed: int) -> list[torch.Tensor]:
        drop = Dropout(settings.dropout, (settings.seed, 5, 0, passed, 0))
        hidden = model.hidden(
            None,
            student.position_ids,
            student.mask,
            embeddings,
            points=student.points,
            dropout=drop,
        )
        return readout.level_logits(model, hidden, student)

    with torch.no_grad():
        hidden = model.hidden(
            teacher.token_ids, teacher.position_ids, teacher.mask, points=teacher.points
        )
        taught = readout.level_logits(model, hidden, teacher)

    def clean(embeddings: torch.Tensor, passed: int) -> torch.Tensor:
        total = torch.zeros(())
        for level, found in enumerate(logits(embeddings, passed)):
            targets = student.levels[level]
            total = total + (focal_loss if settings.focal else soft_cross_entropy)(
                found, targets.target
            )
            total = total + settings.kl_weight * forward_kl(
                taught[level], found[pair.taught[level]], temperature=settings.temperature
            )
        return total

    inputs = model.embed(student.token_ids).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(clean(inputs, 0), inputs)
    delta = perturbation(gradient, student.segment, student.examples, settings.adversarial_epsilon)

    with torch.no_grad():
        held = logits(inputs, 1)

    def total(second_held: bool) -> torch.Tensor:
        """R-Drop twice with the second pass held, or once with both passes in motion."""
        embeddings = model.embed(student.token_ids)
        second = held if second_held else logits(embeddings, 1)
        pairs = zip(logits(embeddings, 0), second, strict=True)
        r_drop = torch.stack([symmetric_kl(*both) for both in pairs]).sum()
        weight = settings.r_drop_weight * (2 if second_held else 1)
        return clean(embeddings, 0) + weight * r_drop + clean(embeddings + delta, 2)

    return total


@pytest.mark.parametrize(("focal", "temperature"), [(False, 1.5), (True, 1.0)])
def test_the_composed_loss_and_its_gradient(tiny_pair, focal: bool, temperature: float):
    """Against the formula written out, and that against finite differences."""
    stage, batches = tiny_stage(tiny_pair, focal=focal, temperature=temperature)
    terms = stage.backward(batches.batch(0), 0)
    settings, total = stage._settings, by_hand(stage, batches)
    loss = (
        terms.ce
        + settings.kl_weight * terms.kl
        + settings.r_drop_weight * terms.r_drop
        + terms.adversarial
    )
    assert float(loss) == pytest.approx(float(total(False).detach()), abs=1e-9)
    random = torch.Generator().manual_seed(3)
    step = 1e-5
    for name, parameter in stage.model.named_parameters():
        direction = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
        with torch.no_grad():
            parameter.add_(direction, alpha=step)
            above = float(total(True))
            parameter.sub_(direction, alpha=2 * step)
            below = float(total(True))
            parameter.add_(direction, alpha=step)
        assert parameter.grad is not None, name
        expected = (above - below) / (2 * step)
        assert float((parameter.grad * direction).sum()) == pytest.approx(
            expected, rel=1e-4, abs=1e-6
        ), name


def test_teachers_stand_at_their_students_points(tiny_pair):
    """The same example and the same codes before the point, whatever the rows."""
    _, batches = tiny_stage(tiny_pair)
    pair = batches.batch(3)
    for level, points in enumerate(pair.taught):
        own, taught = pair.student.levels[level], pair.teacher.levels[level]
        assert len(points) == len(taught.position) == HAS.sum() * (2 if level else 1)
        for student, teacher in zip(own.position[points], taught.position, strict=True):
            for back in range(level):
                codes = [
                    int(side.token_ids.flatten()[int(place) - back])
                    for side, place in ((pair.student, student), (pair.teacher, teacher))
                ]
                assert codes[0] == codes[1]
        ours = pair.student.embeddings[own.example[points]]
        torch.testing.assert_close(ours, pair.teacher.embeddings[taught.example])


@pytest.mark.parametrize(
    ("changes", "zero"),
    [
        ({"kl_weight": 0.0}, "kl"),
        ({"r_drop_weight": 0.0}, "r_drop"),
        ({"adversarial_epsilon": 0.0}, "adversarial"),
    ],
)
def test_each_component_has_a_switch(tiny_pair, changes: dict[str, float], zero: str):
    stage, batches = tiny_stage(tiny_pair, **changes)
    terms = stage.backward(batches.batch(0), 0)
    for name in ("ce", "kl", "r_drop", "adversarial"):
        value = float(getattr(terms, name))
        assert value == 0 if name == zero else value > 0, name


def test_with_everything_off_it_is_plain_fine_tuning(tiny_pair):
    stage, batches = tiny_stage(
        tiny_pair,
        kl_weight=0.0,
        r_drop_weight=0.0,
        adversarial_epsilon=0.0,
        dropout=0.0,
        focal=False,
    )
    batch = batches.batch(0)
    terms = stage.backward(batch, 0)
    hidden = stage.model.hidden(
        batch.student.token_ids,
        batch.student.position_ids,
        batch.student.mask,
        points=batch.student.points,
    )
    logits = stage._readout.level_logits(stage.model, hidden, batch.student)
    plain = sum(
        float(soft_cross_entropy(found, level.target).detach())
        for found, level in zip(logits, batch.student.levels, strict=True)
    )
    assert float(terms.ce) == pytest.approx(plain)
    assert float(terms.kl) == float(terms.r_drop) == float(terms.adversarial) == 0


def test_half_of_r_drop_twice_has_the_gradient_of_both_passes_on_average(tiny_pair):
    """Over many dropout seeds, against both passes differentiated."""
    stage, batches = tiny_stage(tiny_pair, kl_weight=0.0, adversarial_epsilon=0.0, dropout=0.3)
    batch, weight = batches.batch(0), stage.model.lm_head.weight
    student, draws = batch.student, 150
    found, plain, whole = (torch.zeros_like(weight) for _ in range(3))
    for number in range(draws):
        stage.backward(batch, number)
        assert weight.grad is not None
        found += weight.grad / draws
        stage.model.zero_grad()
        passes = [
            stage._logits(student, stage.model.embed(student.token_ids), stage._dropout(number, n))
            for n in (0, 1)
        ]
        of_levels = zip(passes[0], student.levels, strict=True)
        ce = torch.stack([focal_loss(found, level.target) for found, level in of_levels]).sum()
        (of_ce,) = torch.autograd.grad(ce, weight, retain_graph=True)
        r_drop = sum(symmetric_kl(*both) for both in zip(*passes, strict=True))
        assert isinstance(r_drop, torch.Tensor)
        (of_both,) = torch.autograd.grad(r_drop, weight)
        plain += of_ce / draws
        whole += stage._settings.r_drop_weight * of_both / draws
    difference = (found - plain - whole).norm() / whole.norm()
    assert float(difference) < 0.3


def test_the_moving_average_follows_the_weights(tiny_pair):
    stage, _ = tiny_stage(tiny_pair, ema_decay=0.9)
    before = stage.model.lm_head.weight.detach().clone()
    stage.step(0, 0.0, 1e-2)
    after = stage.model.lm_head.weight.detach()
    average = stage.others["teacher"].get_parameter("lm_head.weight")
    assert not torch.equal(before, after)
    torch.testing.assert_close(average, 0.9 * before + 0.1 * after)


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="dropout"):
        DistillSettings(dropout=0.0)
    with pytest.raises(ConfigError, match="temperature"):
        DistillSettings(temperature=0.0)


def distill_run(shop: Path, pretrained: Path, target: Path, **changes: object) -> DistillRun:
    return DistillRun(
        Dataset.open(shop / "dataset"),
        Snapshot.open(shop / "snapshot"),
        target,
        pretrained / "checkpoint",
        read_keywords(pretrained / "keywords.jsonl"),
        replace(TINY, **changes),  # pyright: ignore[reportArgumentType]
    )


def test_a_checkpoint_records_what_made_it(shop: Path, pretrained: Path, tmp_path: Path):
    initial = Checkpoint.open(pretrained / "checkpoint")
    steps: list[dict[str, float]] = []
    saved = run_distill(
        distill_run(shop, pretrained, tmp_path / "distilled", focal=False),
        lambda step: steps.append(dict(step.measures)),
    )
    assert len(steps) == 20
    assert all(step["kl"] > 0 and step["r_drop"] > 0 for step in steps)
    assert saved.settings.stage == saved.manifest.extra["stage"] == "distill"
    assert initial.version in saved.settings.parents
    components = saved.manifest.extra["components"]
    assert components["sft"]["thoughts"]
    assert components["distill"]["focal"] is None
    assert components["distill"]["self_distillation"] == 0.1


def test_queries_without_keywords_cannot_be_distilled(shop: Path, pretrained: Path, tmp_path: Path):
    run = distill_run(shop, pretrained, tmp_path / "none")
    for keywords in (None, KeywordTable({"x": ("y",)}, {}, (), "v")):
        with pytest.raises(ConfigError, match="nothing to distil"):
            run_distill(replace(run, keywords=keywords))


def test_the_other_components_need_no_keywords(shop: Path, pretrained: Path, tmp_path: Path):
    run = distill_run(shop, pretrained, tmp_path / "without", kl_weight=0.0, examples=128)
    saved = run_distill(replace(run, keywords=None))
    assert saved.metrics["kl"] == 0
    assert saved.metrics["r_drop"] > 0
    assert saved.manifest.extra["components"]["distill"]["keywords"] is None


def test_a_killed_run_ends_in_the_same_checkpoint(
    shop: Path,
    pretrained: Path,
    kill_and_continue: Callable[[str, list[str], int], tuple[str, str]],
):
    """With a moving average, whose weights belong to the state."""
    program = (
        "import sys, time; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
        "from test_distill import distill_run\n"
        "from models.training.run_distill import run_distill\n"
        "target, pause, shop, pretrained = sys.argv[1:]\n"
        "def report(step):\n"
        "    print(step.step, flush=True)\n"
        "    time.sleep(float(pause))\n"
        "run_distill(distill_run(Path(shop), Path(pretrained), Path(target), save_every_s=0.0,\n"
        "            ema_decay=0.9), report)\n"
    )
    whole, resumed = kill_and_continue(program, [str(shop), str(pretrained)], 9)
    assert whole == resumed

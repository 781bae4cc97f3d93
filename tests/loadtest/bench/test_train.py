"""Every kind of step runs, and the counted arithmetic is that of a pass by hand."""

from __future__ import annotations

from loadtest.bench.train import LOSSES, _Bench
from models.training.sft import SftSettings


def test_a_step_of_every_loss_and_the_rollouts():
    bench = _Bench(16)
    steps = [bench.plain(), *(bench.distilled(settings) for settings in LOSSES.values())]
    for step in steps:
        assert step() is not None
    assert bench.rollouts()() is not None


def test_arithmetic_in_full_is_six_operations_a_weight_and_token():
    bench, settings = _Bench(8), SftSettings()
    work = bench.work()
    width, head = settings.hidden_size, settings.head_dim
    attention = 2 * width * (settings.heads + settings.key_heads) * head
    weights = settings.layers * (attention + 3 * width * settings.inner_size)
    # Attention's scores and the level outputs come on top.
    assert 6 * weights * work.tokens < work.full < 6 * 1.15 * weights * work.tokens
    assert work.needed < work.full

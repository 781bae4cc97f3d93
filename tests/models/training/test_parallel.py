"""Two processes with sharded weights against one with whole ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from models.checkpoint import Checkpoint
from models.training import parallel

PROGRAM = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from test_distill import distill_run
from test_run_sft import tiny_run
from models.training.parallel import joined
from models.training.run_distill import run_distill
from models.training.run_sft import run_sft
shop, initial, fine, distilled, whole = map(Path, sys.argv[1:])
with joined("cpu") as device:
    same = dict(device=device, examples=320, save_every_s=0.0, learning_rate=1e-3)
    run_sft(tiny_run(shop, fine, **same))
    # Masks of dropout differ from process to process.
    run_distill(distill_run(shop, initial, distilled, dropout=0.0, r_drop_weight=0.0, **same))
    same |= dict(examples=128, recompute=True)
    run_distill(distill_run(shop, initial, whole, **same))
"""


def train(processes: int, folder: Path, shop: Path, initial: Path) -> list[Checkpoint]:
    """Tiny runs by torchrun: SFT, distillation, and all of its losses with their passes computed
    again; every step saves its state."""
    script = folder / "program.py"
    targets = [folder / f"{kind}{processes}" for kind in ("fine", "distilled", "whole")]
    script.write_text(PROGRAM)
    here = str(Path(__file__).parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([here, str(Path.cwd())])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), str(script), str(shop), str(initial)]
    subprocess.run([*command, *map(str, targets)], env=environment, check=True, timeout=240)
    return [Checkpoint.open(target) for target in targets]


def test_two_processes_train_like_one(shop: Path, pretrained: Path, tmp_path: Path):
    alone, together = (train(count, tmp_path, shop, pretrained) for count in (1, 2))
    # Masks of dropout are others, so weights are only near.
    near, also_near = alone.pop(), together.pop()
    assert near.metrics["steps"] == also_near.metrics["steps"] == 2
    state, initial = also_near.state_dict(), Checkpoint.open(pretrained / "checkpoint").state_dict()
    assert any(not torch.equal(tensor, initial[name]) for name, tensor in state.items())
    for name, tensor in near.state_dict().items():
        assert (state[name] - tensor).abs().max() < 2e-2, name
    for one, two in zip(alone, together, strict=True):
        assert one.metrics["steps"] == two.metrics["steps"] == 5
        state = two.state_dict()
        for name, tensor in one.state_dict().items():
            # bf16 products of other shapes round differently; Adam's first steps amplify that.
            assert (state[name] - tensor).abs().max() < 6e-3, name
            assert (state[name] - tensor).abs().mean() < 5e-4, name


def test_one_process_shards_nothing(tiny_pair):
    model = Checkpoint.open(tiny_pair.checkpoint).load_model()
    before = model.lm_head.weight
    parallel.shard(model)
    assert model.lm_head.weight is before
    assert parallel.gathered(model) is model
    assert parallel.agreed(0.25) == 0.25
    assert parallel.this_process() == (0, 1)
    parallel.wait()

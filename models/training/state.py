"""Training state on disk: kill the trainer at any step and it continues from the last save.

A directory of kind "training_state" beside the checkpoint to be: model and optimiser tensors
(safetensors) and a small JSON of counters. It names what it belongs to (`fingerprint`), so state
of other data or settings is refused rather than continued. Everything random in training is a
function of (seed, step), so a continued run sees the same batches in the same order.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file

from index import artifact
from index.errors import ArtifactError
from models.training.parallel import like, this_process, whole

KIND = "training_state"


@dataclass(frozen=True, slots=True)
class Counters:
    """Where training stands: steps done, seconds spent, what it belongs to."""

    step: int
    elapsed_s: float
    fingerprint: str


def state_path(checkpoint: Path) -> Path:
    """Where the state of a checkpoint to be lies."""
    return checkpoint.parent / f"{checkpoint.name}.state"


def save(
    path: Path,
    model: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    counters: Counters,
    others: Mapping[str, torch.nn.Module] | None = None,
) -> None:
    """Write the state atomically, replacing the previous one. `others`: further modules, by a name
    without dots, whose parameters belong to it."""
    tensors: dict[str, torch.Tensor] = {
        f"{prefix}.{name}": value
        for prefix, module in {"model": model, **(others or {})}.items()
        for name, value in _parameters(module).items()
    }
    for name, parameter in _parameters(model).items():
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser.{key}.{name}"] = cast(torch.Tensor, value)
    plain = {key: whole(value.detach()).clone().contiguous() for key, value in tensors.items()}
    if not this_process().first:
        return
    with artifact.create(path, KIND, overwrite=True) as draft:
        save_file(plain, draft.path / "state.safetensors")
        facts = {
            "step": counters.step,
            "elapsed_s": counters.elapsed_s,
            "fingerprint": counters.fingerprint,
        }
        (draft.path / "counters.json").write_text(json.dumps(facts))


def load(
    path: Path,
    model: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    fingerprint: str,
    others: Mapping[str, torch.nn.Module] | None = None,
) -> Counters | None:
    """Restore model, optimiser and `others` in place; None when there is no state.

    Raises ArtifactError when the state is damaged or belongs to other data or settings.
    """
    artifact.recover(path)
    if not path.exists():
        return None
    artifact.read(path, KIND)
    facts = cast(dict[str, Any], json.loads((path / "counters.json").read_text()))
    if facts["fingerprint"] != fingerprint:
        raise ArtifactError(
            f"{path} is the state of a training run with other data or settings; "
            "finish that run, remove the directory, or choose another checkpoint name"
        )
    tensors = load_file(path / "state.safetensors")
    for prefix, module in {"model": model, **(others or {})}.items():
        _restore(path, tensors, prefix, _parameters(module))
    for name, parameter in _parameters(model).items():
        parameter_state = {
            key.split(".", 2)[1]: like(value, parameter) if value.dim() else value
            for key, value in tensors.items()
            if key.startswith("optimiser.") and key.split(".", 2)[2] == name
        }
        if parameter_state:
            optimiser.state[parameter] = parameter_state
    return Counters(int(facts["step"]), float(facts["elapsed_s"]), fingerprint)


@torch.no_grad()
def _restore(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    prefix: str,
    parameters: Mapping[str, torch.nn.Parameter],
) -> None:
    for name, parameter in parameters.items():
        saved = tensors.get(f"{prefix}.{name}")
        if saved is None or saved.shape != parameter.shape:
            raise ArtifactError(f"{path} has no {name} of shape {tuple(parameter.shape)}")
    for name, parameter in parameters.items():
        parameter.copy_(like(tensors[f"{prefix}.{name}"], parameter))


def remove(path: Path) -> None:
    """Forget the state: training is complete."""
    if path.exists():
        shutil.rmtree(path)


def _parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return dict(model.named_parameters())

"""Checkpoints: one immutable directory of weights, tokenizer and settings.

    config.json  model.safetensors  tokenizer.json  tokenizer_config.json     Hugging Face Qwen3
    onesearch.json                                                            CheckpointSettings
    manifest.json                                                             index/artifact.py

vLLM and transformers load the directory unchanged. Tensors are safetensors and nothing else; no
reader here unpickles. A checkpoint that opens is consistent: tokenizer, layout and tensor shapes
agree with each other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from index import artifact
from index.artifact import Manifest
from index.errors import ArtifactError, ConfigError
from index.sid import SidLayout
from models.prompt import PromptSettings
from models.tokenizer import Tokenizer, open_backend
from models.transformer import Qwen3, Qwen3Config

KIND = "checkpoint"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX_FILE = "model.safetensors.index.json"
SETTINGS_FILE = "onesearch.json"
EMBEDDING = "model.embed_tokens.weight"
OUTPUT = "lm_head.weight"
NEW_ROW_NOISE = 0.02


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """What a checkpoint says beyond weights and tokenizer.

    `level_prior_beta`: β of the codebook prior β·⟨query embedding, centroid⟩, 0 for none.
    `snapshot_version`, `codec_id`: what its SIDs mean; a generation pairs it with a snapshot of
    the same codec. `rescoring`: the fitted weights of index/rescoring.py as JSON. `stage`: how it
    was trained last; `components`: the switches of each stage so far. `simulated`: trained on
    simulated behaviour. `parents`: versions of datasets and checkpoints it came from.
    """

    level_sizes: tuple[int, ...]
    sid_offset: tuple[int, ...]
    level_prior_beta: float = 0.0
    prompt: PromptSettings = field(default_factory=PromptSettings)
    snapshot_version: str = ""
    codec_id: str = ""
    rescoring: dict[str, Any] = field(default_factory=dict[str, Any])
    stage: str = "initial"
    simulated: bool = False
    parents: tuple[str, ...] = ()
    components: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        if len(self.level_sizes) != len(self.sid_offset):
            raise ConfigError(
                f"{len(self.sid_offset)} sid_offset values for {len(self.level_sizes)} levels"
            )
        if not self.level_prior_beta >= 0:
            raise ConfigError(f"level_prior_beta is {self.level_prior_beta}, it must be ≥ 0")

    @property
    def layout(self) -> SidLayout:
        return SidLayout(self.level_sizes)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "prompt": self.prompt.to_json()}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> CheckpointSettings:
        """Raises ConfigError for unknown or missing keys."""
        values = dict(raw)
        try:
            for key in ("level_sizes", "sid_offset"):
                values[key] = tuple(int(value) for value in values[key])
            values["parents"] = tuple(values.get("parents", ()))
            values["prompt"] = PromptSettings.from_json(values.get("prompt", {}))
            return cls(**values)
        except KeyError as error:
            raise ConfigError(f"{SETTINGS_FILE} has no {error.args[0]!r}") from None
        except TypeError as error:
            raise ConfigError(f"{SETTINGS_FILE}: {error}") from None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint. The weights are read (memory-mapped) when asked for."""

    path: Path
    config: Qwen3Config
    settings: CheckpointSettings
    tokenizer: Tokenizer
    manifest: Manifest

    @classmethod
    def open(cls, path: Path, *, verify: bool = True) -> Checkpoint:
        """Open and check. With `verify` every file's hash is compared with the manifest.

        Raises ArtifactError naming the file, tensor or setting that is missing or does not fit.
        """
        path = Path(path)
        manifest = artifact.read(path, KIND, verify=verify)
        try:
            config = Qwen3Config.from_json(_read_json(path / CONFIG_FILE))
            settings = CheckpointSettings.from_json(_read_json(path / SETTINGS_FILE))
        except ConfigError as error:
            raise ArtifactError(f"checkpoint {path}: {error}") from None
        tokenizer = Tokenizer.open(path, settings.layout)
        _check_fit(path, config, settings, tokenizer)
        _check_shapes(path, config)
        return cls(path, config, settings, tokenizer, manifest)

    @property
    def version(self) -> str:
        """Digest of the contents."""
        return self.manifest.version

    @property
    def metrics(self) -> dict[str, Any]:
        """What was measured when it was saved."""
        return cast(dict[str, Any], self.manifest.extra.get("metrics", {}))

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors by Hugging Face name, memory-mapped; do not write to them."""
        return _read_tensors(self.path / WEIGHTS_FILE)

    def load_model(self) -> Qwen3:
        """A training module with these weights, fp32."""
        return _model_of(self.config, self.state_dict())


def save_checkpoint(
    path: Path,
    model: Qwen3,
    tokenizer: Tokenizer,
    settings: CheckpointSettings,
    metrics: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> Checkpoint:
    """Write a checkpoint atomically and open it. Raises ArtifactError when parts do not fit."""
    path = Path(path)
    _check_fit(path, model.config, settings, tokenizer)
    config = {
        **model.config.to_json(),
        "pad_token_id": tokenizer.pad,
        "eos_token_id": tokenizer.end,
        "bos_token_id": None,
    }
    with artifact.create(path, KIND, overwrite=overwrite) as draft:
        (draft.path / CONFIG_FILE).write_text(json.dumps(config, indent=2))
        (draft.path / SETTINGS_FILE).write_text(json.dumps(settings.to_json(), indent=2))
        tokenizer.save(draft.path)
        tensors = {
            name: tensor.detach().to("cpu").contiguous()
            for name, tensor in model.state_dict().items()
            if not (name == OUTPUT and model.config.tie_word_embeddings)
        }
        if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
            raise ArtifactError(f"weights are not finite, such as {broken[0]}; nothing was saved")
        save_file(tensors, draft.path / WEIGHTS_FILE, metadata={"format": "pt"})
        draft.manifest.update(
            parents=list(settings.parents),
            metrics=dict(metrics),
            layout=settings.layout.to_json(),
            stage=settings.stage,
            components=settings.components,
            simulated=settings.simulated,
        )
    return Checkpoint.open(path, verify=False)


def start_from(directory: Path, layout: SidLayout, *, seed: int = 0) -> tuple[Qwen3, Tokenizer]:
    """Model and tokenizer from any local Qwen3 directory, vocabulary extended by special and SID
    tokens. New rows: mean of the old ones plus seeded noise of 2 % of their deviation.

    Raises ArtifactError when the directory is no complete Qwen3 checkpoint.
    """
    directory = Path(directory)
    try:
        config = Qwen3Config.from_json(_read_json(directory / CONFIG_FILE))
    except ConfigError as error:
        raise ArtifactError(f"{directory}: {error}") from None
    backend = open_backend(directory)
    known = backend.get_vocab_size(with_added_tokens=True)
    tokenizer = Tokenizer.extend(backend, layout)
    tensors = {name: t.to(torch.float32) for name, t in _read_all_tensors(directory).items()}
    _check_tensors(directory, config, {name: tuple(t.shape) for name, t in tensors.items()})
    generator = torch.Generator().manual_seed(seed)
    rows = max(config.vocab_size, tokenizer.size)
    for name in (EMBEDDING, OUTPUT):
        if name in tensors:
            tensors[name] = _extend_rows(tensors[name], known, rows, generator)
    extended = replace(config, vocab_size=rows)
    return _model_of(extended, tensors), tokenizer


def _extend_rows(matrix: Tensor, known: int, rows: int, generator: torch.Generator) -> Tensor:
    """(V, d) → (rows, d); rows from `known` on are new (unused padding rows of V too)."""
    old = matrix[:known]
    mean, deviation = old.mean(dim=0), old.std()
    fresh = torch.randn((rows - known, matrix.shape[1]), generator=generator)
    return torch.cat((old, mean + fresh * (NEW_ROW_NOISE * deviation)))


def _model_of(config: Qwen3Config, tensors: dict[str, Tensor]) -> Qwen3:
    model = Qwen3(config)
    if config.tie_word_embeddings:
        tensors = {**tensors, OUTPUT: tensors[EMBEDDING]}
    model.load_state_dict(tensors)
    return model


def _check_fit(
    path: Path, config: Qwen3Config, settings: CheckpointSettings, tokenizer: Tokenizer
) -> None:
    if tokenizer.layout.level_sizes != settings.level_sizes:
        raise ArtifactError(
            f"checkpoint {path}: the tokenizer has level sizes {tokenizer.layout.level_sizes}, "
            f"the settings {settings.level_sizes}"
        )
    if tokenizer.sid_offset != settings.sid_offset:
        raise ArtifactError(
            f"checkpoint {path}: the tokenizer's SID blocks start at {tokenizer.sid_offset}, "
            f"the settings say {settings.sid_offset}"
        )
    if tokenizer.size > config.vocab_size:
        raise ArtifactError(
            f"checkpoint {path}: {tokenizer.size} tokens for {config.vocab_size} embedding rows"
        )


def _check_shapes(path: Path, config: Qwen3Config) -> None:
    weights = path / WEIGHTS_FILE
    try:
        with safe_open(weights, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{weights} cannot be read: {error}") from None
    _check_tensors(path, config, shapes)


def _check_tensors(path: Path, config: Qwen3Config, shapes: Mapping[str, tuple[int, ...]]) -> None:
    with torch.device("meta"):
        expected = {name: tuple(t.shape) for name, t in Qwen3(config).state_dict().items()}
    if config.tie_word_embeddings:
        expected.pop(OUTPUT)
    for name, shape in expected.items():
        if name not in shapes:
            raise ArtifactError(f"checkpoint {path}: tensor {name} is missing")
        if shapes[name] != shape:
            raise ArtifactError(
                f"checkpoint {path}: tensor {name} has shape {shapes[name]}, "
                f"{CONFIG_FILE} implies {shape}"
            )
    allowed = expected.keys() | {OUTPUT}
    if unknown := shapes.keys() - allowed:
        raise ArtifactError(f"checkpoint {path}: unexpected tensor {min(unknown)}")


def _read_all_tensors(directory: Path) -> dict[str, Tensor]:
    """One safetensors file, or the shards that an index names."""
    index = directory / WEIGHTS_INDEX_FILE
    if not index.is_file():
        return _read_tensors(directory / WEIGHTS_FILE)
    shards = sorted(set(cast(dict[str, str], _read_json(index)["weight_map"]).values()))
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        tensors |= _read_tensors(directory / Path(shard).name)
    return tensors


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))
    except RecursionError:
        raise ArtifactError(f"{path} cannot be read: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from None

"""Pretrained text encoders: one door for ONNX and local Hugging Face directories.

`open_text_encoder(directory)` takes what is there: an ONNX file (`index.external_encoder`), else a
Hugging Face directory with safetensors, run by torch and transformers. Nothing is downloaded, no
code of the directory is run, no pickled weights are read. Meant to stand beside the static encoder
in an `index.encoder.ConcatenatedEncoder`.

Importing this module lets `index.encoder.open_encoder` open Hugging Face encoders in snapshots:
`index` itself has no torch. Torch and transformers are imported when such an encoder is opened.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from index.encoder import TextEncoder, register_kind, unit_rows, write_config
from index.errors import ArtifactError, ConfigError
from index.external_encoder import OnnxEncoder, onnx_file
from index.pretrained_text import (
    TOKENIZER_FILE,
    PretrainedSettings,
    TextBatches,
    pool,
    read_settings,
    saved_settings,
)

KIND = "huggingface"
WEIGHT_FILES = "model*.safetensors"
COPIED_FILES = ("config.json", "model.safetensors.index.json")


def open_text_encoder(directory: Path) -> TextEncoder:
    """A pretrained encoder from a local directory: ONNX when it has an ONNX file, else Hugging
    Face. Raises ConfigError when it holds neither or a library is missing.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ConfigError(f"{directory} is no directory; give one with an encoder's files")
    if onnx_file(directory) is not None:
        return OnnxEncoder.load(directory)
    return HuggingFaceEncoder.load(directory)


@dataclass(frozen=True, slots=True, eq=False)
class HuggingFaceEncoder:
    """A transformers model with pooling. Thread-safe: inference only, the tokenizer is fixed."""

    directory: Path
    settings: PretrainedSettings
    dimension: int
    _tokenizer: Tokenizer
    _batches: TextBatches
    _model: Any

    @property
    def name(self) -> str:
        return self.settings.name

    @classmethod
    def load(
        cls, directory: Path, settings: PretrainedSettings | None = None
    ) -> HuggingFaceEncoder:
        """Open a source directory, or the copy in a snapshot. Raises ConfigError."""
        directory = Path(directory)
        if not (directory / "config.json").is_file() or not any(directory.glob(WEIGHT_FILES)):
            raise ConfigError(
                f"{directory} is no text encoder: it needs {TOKENIZER_FILE} and model.onnx, "
                "or a Hugging Face model's config.json, tokenizer and model.safetensors"
            )
        settings = settings or read_settings(directory)
        tokenizer = _tokenizer(directory)
        model = _model(directory)
        return cls(
            directory,
            settings,
            int(model.config.hidden_size),
            tokenizer,
            TextBatches(tokenizer, settings.max_tokens),
            model,
        )

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        import torch

        result = np.zeros((len(texts), self.dimension), np.float32)
        for batch in self._batches.of(texts):
            ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)
            with torch.inference_mode():
                states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
            result[batch.places] = pool(states.float().numpy(), batch.mask, self.settings.pooling)
        return unit_rows(result)

    def save(self, directory: Path) -> None:
        """Copy configuration, tokenizer and weights."""
        directory.mkdir(parents=True, exist_ok=True)
        weights = sorted(self.directory.glob(WEIGHT_FILES))
        extra = [self.directory / name for name in COPIED_FILES]
        for source in [*weights, *(path for path in extra if path.is_file())]:
            shutil.copyfile(source, directory / source.name)
        self._tokenizer.save(str(directory / TOKENIZER_FILE))
        config = {"kind": KIND, "settings": asdict(self.settings), "dimension": self.dimension}
        write_config(directory, config)


def _open_saved(directory: Path, config: dict[str, Any]) -> TextEncoder:
    """The encoder that `HuggingFaceEncoder.save` wrote."""
    encoder = HuggingFaceEncoder.load(directory, saved_settings(directory, config))
    if encoder.dimension != config.get("dimension"):
        raise ArtifactError(
            f"the model in {directory} gives {encoder.dimension} dimensions, "
            f"its settings say {config.get('dimension')}; build it again"
        )
    return encoder


def _tokenizer(directory: Path) -> Tokenizer:
    """`tokenizer.json`, or what transformers makes of an older vocabulary."""
    path = directory / TOKENIZER_FILE
    try:
        if path.is_file():
            return Tokenizer.from_str(path.read_text(encoding="utf-8"))
        found = _transformers(directory).AutoTokenizer.from_pretrained(
            directory, local_files_only=True, use_fast=True
        )
        return found.backend_tokenizer
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001  the libraries raise nothing narrower
        raise ConfigError(f"{directory} has no readable tokenizer: {error}") from None


def _model(directory: Path) -> Any:
    library = _transformers(directory)
    try:
        model, report = library.AutoModel.from_pretrained(
            directory,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # noqa: BLE001  transformers raises nothing narrower
        raise ConfigError(f"{directory} holds no model that can be read: {error}") from None
    # Missing weights would be random ones. The pooler is not used here and often left out.
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ConfigError(f"{directory} lacks the weights {', '.join(missing[:3])}")
    if not hasattr(model.config, "hidden_size"):
        raise ConfigError(f"{directory}: a {model.config.model_type} model is no text encoder")
    return model.eval().float()


def _transformers(directory: Path) -> Any:
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError:
        raise ConfigError(
            f"{directory} needs transformers, which is not installed; "
            "run: pip install 'onesearch[encoders]'"
        ) from None


register_kind(KIND, _open_saved)

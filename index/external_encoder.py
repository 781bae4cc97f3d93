"""Pretrained text encoders in ONNX form, for use beside the static one.

A source is a local directory with `tokenizer.json` and `model.onnx` (or `onnx/model.onnx`), as
sentence-transformers exports it. Nothing is downloaded. Text → the directory's own tokenizer → the
model → its sentence output where it has one, else mean or first-token pooling of the token states
→ norm 1. How to pool and how many tokens to read are taken from sentence-transformers' files where
they are there.

`save` copies the files, so a snapshot is complete in itself. Needs the optional `onnxruntime`
(`pip install 'onesearch[encoders]'`).
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.encoder import unit_rows, write_config
from index.errors import ArtifactError, ConfigError
from index.pretrained_text import (
    SENTENCE_OUTPUT,
    TOKENIZER_FILE,
    PretrainedSettings,
    TextBatches,
    TokenBatch,
    pool,
    read_settings,
    saved_settings,
)

KIND = "external"
MODEL_FILE = "model.onnx"
MODEL_PLACES = ("model.onnx", "onnx/model.onnx")
KNOWN_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class OnnxEncoder:
    """A pretrained encoder run by onnxruntime. Thread-safe."""

    directory: Path
    model_file: Path
    settings: PretrainedSettings
    dimension: int
    _batches: TextBatches
    _session: Any
    _inputs: dict[str, str]
    _output: str

    @property
    def name(self) -> str:
        return self.settings.name

    @classmethod
    def load(cls, directory: Path, settings: PretrainedSettings | None = None) -> OnnxEncoder:
        """Open a source directory, or the copy in a snapshot.

        Raises ConfigError when onnxruntime or a file is missing or the model does not fit.
        """
        directory = Path(directory)
        model_file = onnx_file(directory)
        tokenizer_file = directory / TOKENIZER_FILE
        if model_file is None or not tokenizer_file.is_file():
            missing = MODEL_FILE if model_file is None else TOKENIZER_FILE
            raise ConfigError(
                f"{directory} has no {missing}; an ONNX encoder is a directory with "
                f"{TOKENIZER_FILE} and {' or '.join(MODEL_PLACES)}"
            )
        session = _session(model_file)
        output, has_sentence = _choose_output(model_file, session)
        if settings is None:
            settings = read_settings(directory, allow_dense=has_sentence)
            if has_sentence:
                settings = replace(settings, pooling=SENTENCE_OUTPUT)
        batches = TextBatches.open(tokenizer_file, settings.max_tokens)
        inputs = _checked_inputs(model_file, session)
        probe = cls(directory, model_file, settings, 0, batches, session, inputs, output)
        dimension = probe._probe_dimension()
        return cls(directory, model_file, settings, dimension, batches, session, inputs, output)

    def encode(self, texts: Sequence[str]) -> FloatArray:
        result = np.zeros((len(texts), self.dimension), np.float32)
        for batch in self._batches.of(texts):
            result[batch.places] = self._run(batch)
        return unit_rows(result)

    def save(self, directory: Path) -> None:
        """Copy tokenizer, model and the files of weights beside it."""
        directory.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.directory / TOKENIZER_FILE, directory / TOKENIZER_FILE)
        shutil.copyfile(self.model_file, directory / MODEL_FILE)
        for weights in sorted(self.model_file.parent.glob(f"{self.model_file.name}[._]*")):
            shutil.copyfile(weights, directory / weights.name)
        config = {"kind": KIND, "settings": asdict(self.settings), "dimension": self.dimension}
        write_config(directory, config)

    def _run(self, batch: TokenBatch) -> FloatArray:
        """One vector for each text of a batch, float32 (n, d)."""
        values = {
            "input_ids": batch.ids,
            "attention_mask": batch.mask,
            "token_type_ids": np.zeros_like(batch.ids),
        }
        feed = {name: values[name].astype(kind) for name, kind in self._inputs.items()}
        states = np.asarray(self._session.run([self._output], feed)[0], np.float32)
        if self.settings.pooling == SENTENCE_OUTPUT:
            return states
        return pool(states, batch.mask, self.settings.pooling)

    def _probe_dimension(self) -> int:
        """Run one text through: declared shapes are often symbolic, and some are wrong."""
        batch = next(self._batches.of(["white desk lamp"]), None)
        if batch is None:
            raise ConfigError(f"{self.directory / TOKENIZER_FILE} gives no tokens for plain words")
        try:
            vectors = self._run(batch)
        except Exception as error:  # noqa: BLE001  onnxruntime's errors share no public class
            raise ConfigError(f"{self.model_file} cannot run on its own tokens: {error}") from None
        if vectors.ndim != 2 or len(vectors) != 1:
            raise ConfigError(f"{self.model_file} gives an output of shape {vectors.shape}")
        return int(vectors.shape[1])


def onnx_file(directory: Path) -> Path | None:
    """Where the ONNX model of a directory lies; None when it has none."""
    places = (directory / place for place in MODEL_PLACES)
    return next((place for place in places if place.is_file()), None)


def open_external(directory: Path, config: dict[str, Any]) -> OnnxEncoder:
    """The encoder that `OnnxEncoder.save` wrote. Raises ArtifactError for damaged settings."""
    settings = saved_settings(directory, config)
    encoder = OnnxEncoder.load(directory, settings)
    if encoder.dimension != config.get("dimension"):
        raise ArtifactError(
            f"the model in {directory} gives {encoder.dimension} dimensions, "
            f"its settings say {config.get('dimension')}; build it again"
        )
    return encoder


def _session(model_file: Path) -> Any:
    try:
        runtime: Any = importlib.import_module("onnxruntime")
    except ModuleNotFoundError:
        raise ConfigError(
            f"{model_file} needs onnxruntime, which is not installed; "
            "run: pip install 'onesearch[encoders]'"
        ) from None
    options = runtime.SessionOptions()
    # A stated number of threads also keeps the runtime from pinning them to cores.
    options.intra_op_num_threads = _core_count()
    options.log_severity_level = 3
    try:
        return runtime.InferenceSession(str(model_file), options, ["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  onnxruntime's errors share no public class
        raise ConfigError(f"{model_file} is no model that onnxruntime can load: {error}") from None


def _core_count() -> int:
    """Cores that this process may use; macOS knows only how many there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _checked_inputs(model_file: Path, session: Any) -> dict[str, str]:
    """Input name → integer type. Raises ConfigError for inputs that text cannot fill."""
    inputs: dict[str, str] = {}
    for entry in session.get_inputs():
        kind = {"tensor(int64)": "int64", "tensor(int32)": "int32"}.get(entry.type)
        if entry.name not in KNOWN_INPUTS or kind is None:
            raise ConfigError(
                f"{model_file} wants the input {entry.name} of type {entry.type}; a text encoder "
                f"has integer inputs out of {', '.join(sorted(KNOWN_INPUTS))}"
            )
        if any(isinstance(size, int) for size in entry.shape):
            raise ConfigError(
                f"{model_file} fixes the shape of {entry.name} to {entry.shape}; "
                "export it with dynamic axes"
            )
        inputs[entry.name] = kind
    if "input_ids" not in inputs:
        raise ConfigError(f"{model_file} has no input named input_ids")
    return inputs


def _choose_output(model_file: Path, session: Any) -> tuple[str, bool]:
    """The output to read and whether it is one vector a text: `sentence_embedding` before token
    states; another two-dimensional output (a classifier's pooler) is not taken."""
    outputs = {entry.name: entry for entry in session.get_outputs()}
    if "sentence_embedding" in outputs:
        return "sentence_embedding", True
    states = [name for name, entry in outputs.items() if len(entry.shape or ()) == 3]
    if "last_hidden_state" in outputs or len(states) == 1:
        return ("last_hidden_state" if "last_hidden_state" in outputs else states[0]), False
    if len(outputs) == 1 and len(next(iter(outputs.values())).shape or ()) == 2:
        return next(iter(outputs)), True
    raise ConfigError(
        f"{model_file} has the outputs {', '.join(sorted(outputs))}; a text encoder has "
        "sentence_embedding (one vector a text) or last_hidden_state (one a token)"
    )

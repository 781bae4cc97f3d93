"""What pretrained text encoders share: settings, tokenising in batches, pooling.

Used by `index.external_encoder` (ONNX) and `models.text_encoders` (Hugging Face). Settings come
from sentence-transformers' files where a directory has them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from index.errors import ArtifactError, ConfigError
from index.text import normalise

TOKENIZER_FILE = "tokenizer.json"
BATCH_TEXTS = 32
DEFAULT_MAX_TOKENS = 128
LONGEST_MAX_TOKENS = 8192
PLAIN_MODULES = frozenset({"Transformer", "Pooling", "Normalize"})
SENTENCE_OUTPUT = "sentence"
MEAN = "mean"
FIRST_TOKEN = "first_token"

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PretrainedSettings:
    """How a pretrained encoder is used. `pooling`: "mean", "first_token" or, for an ONNX model
    with an output of one vector a text, "sentence"."""

    name: str
    max_tokens: int
    pooling: str

    def __post_init__(self) -> None:
        if not 1 <= self.max_tokens <= LONGEST_MAX_TOKENS:
            raise ConfigError(
                f"max_tokens of an encoder is {self.max_tokens}, "
                f"it must lie between 1 and {LONGEST_MAX_TOKENS}"
            )
        if self.pooling not in (SENTENCE_OUTPUT, MEAN, FIRST_TOKEN):
            raise ConfigError(
                f"pooling {self.pooling!r} is unknown; it is mean, first_token or sentence"
            )


class TokenBatch(NamedTuple):
    """`places` int64 (n,): which texts these are; `ids`, `mask` int64 (n, T), padding masked 0."""

    places: IntArray
    ids: IntArray
    mask: IntArray


class TextBatches:
    """Texts → padded token batches, texts of similar length together. Thread-safe: the tokenizer's
    settings are made once and never changed."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        padding = cast(dict[str, Any], tokenizer.padding or {})
        named = (tokenizer.token_to_id(name) for name in ("[PAD]", "<pad>"))
        self._pad = int(padding.get("pad_id", next((i for i in named if i is not None), 0)))
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens)
        self._tokenizer = tokenizer

    @classmethod
    def open(cls, path: Path, max_tokens: int) -> TextBatches:
        """Read `tokenizer.json`. Raises ConfigError when it cannot be read."""
        try:
            return cls(Tokenizer.from_str(path.read_text(encoding="utf-8")), max_tokens)
        except Exception as error:  # noqa: BLE001  the library raises nothing narrower
            raise ConfigError(f"{path} is no readable tokenizer: {error}") from None

    def of(self, texts: Sequence[str]) -> Iterator[TokenBatch]:
        """Batches of at most BATCH_TEXTS texts. A text of nothing but white space is in none."""
        normal = [normalise(text) for text in texts]
        kept = [place for place, text in enumerate(normal) if text]
        found = self._tokenizer.encode_batch_fast([normal[place] for place in kept])
        tokens = [encoding.ids for encoding in found]
        order = sorted((i for i in range(len(kept)) if tokens[i]), key=lambda i: len(tokens[i]))
        for start in range(0, len(order), BATCH_TEXTS):
            chosen = order[start : start + BATCH_TEXTS]
            shape = (len(chosen), max(len(tokens[i]) for i in chosen))
            ids, mask = np.full(shape, self._pad, np.int64), np.zeros(shape, np.int64)
            for line, i in enumerate(chosen):
                ids[line, : len(tokens[i])] = tokens[i]
                mask[line, : len(tokens[i])] = 1
            yield TokenBatch(np.array([kept[i] for i in chosen], np.int64), ids, mask)


def pool(states: FloatArray, mask: IntArray, pooling: str) -> FloatArray:
    """Token states (n, T, d) → one vector a text, float32 (n, d), not normalised.

    "mean" counts the tokens that `mask` (n, T) marks; "first_token" takes the first.
    """
    if pooling == FIRST_TOKEN:
        return np.ascontiguousarray(states[:, 0], np.float32)
    share = mask / np.maximum(mask.sum(axis=1, keepdims=True), 1)
    return np.einsum("ntd,nt->nd", states, share.astype(np.float32))


def read_settings(directory: Path, *, allow_dense: bool = False) -> PretrainedSettings:
    """Settings from sentence-transformers' files: maximum length and kind of pooling.

    Without them: DEFAULT_MAX_TOKENS and mean. Raises ConfigError when the directory asks for
    something that is not done here.
    """
    modules = cast(list[dict[str, str]], _json(directory / "modules.json", []))
    kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
    if not allow_dense and (other := sorted(set(kinds) - PLAIN_MODULES)):
        raise ConfigError(
            f"{directory} has the module {other[0]}, which is not computed here; "
            "export it to ONNX with a sentence_embedding output"
        )
    sentence = _json(directory / "sentence_bert_config.json", {})
    limit = sentence.get("max_seq_length") or DEFAULT_MAX_TOKENS
    modes = _json(directory / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    wanted = [name for name, on in modes.items() if name.startswith("pooling_mode_") and on is True]
    match wanted:
        case ["pooling_mode_mean_tokens"] | []:
            pooling = MEAN
        case ["pooling_mode_cls_token"]:
            pooling = FIRST_TOKEN
        case _:
            raise ConfigError(
                f"{directory} pools by {', '.join(wanted)}; "
                "only mean_tokens or cls_token alone are known"
            )
    return PretrainedSettings(directory.resolve().name, int(limit), pooling)


def saved_settings(directory: Path, config: dict[str, Any]) -> PretrainedSettings:
    """Settings out of an encoder.json. Raises ArtifactError."""
    try:
        return PretrainedSettings(**config["settings"])
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"the encoder settings in {directory} are damaged: {error}") from None


def _json(path: Path, default: Any) -> Any:
    """A JSON file, or `default` where it is not there. Raises ConfigError when it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
    except ValueError as error:
        raise ConfigError(f"{path} is no valid JSON: {error}") from None

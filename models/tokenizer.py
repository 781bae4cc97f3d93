"""Text and SID tokens in one vocabulary.

Token ids, in order: byte-level BPE of normalised text, then the special tokens, then one contiguous
block of SID tokens per level (`<a_0>` …, `<b_0>` …), so that token = sid_offset[level] + code.

Invariants, tested as properties:
- ordinary text never yields a special or SID token: "<a_1>" in a query becomes plain bytes. Text is
  encoded by the bare BPE model; the added tokens are known only to the saved tokenizer.json, which
  transformers and vLLM load unchanged;
- `decode_text(encode_text(text)) == normalise(text)`;
- training is deterministic.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from index.errors import ArtifactError, ConfigError
from index.sid import SidLayout
from index.text import normalise

PAD = "<|pad|>"
END = "<|end|>"
USER = "<|user|>"
QUERY = "<|query|>"
SID = "<|sid|>"
HISTORY = "<|history|>"
KEYWORDS = "<|keywords|>"
ITEM = "<|item|>"
TITLE = "<|title|>"
CATEGORY = "<|category|>"
SPECIAL_TOKENS = (PAD, END, USER, QUERY, SID, HISTORY, KEYWORDS, ITEM, TITLE, CATEGORY)

MIN_VOCABULARY = 256
DEFAULT_VOCABULARY = 8192
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"

Codes = Sequence[int] | NDArray[np.integer[Any]]


class Tokenizer:
    """Immutable; encoding is safe from several threads. Made by `train`, `extend` or `open`."""

    def __init__(self, backend: Backend, layout: SidLayout) -> None:
        """`backend` holds text, special and SID tokens. Raises ArtifactError where some lack."""
        self.layout = layout
        self._backend = backend
        self._bare = _without_added_tokens(backend)
        self.special = {token: _id_of(backend, token) for token in SPECIAL_TOKENS}
        self.sid_offset = tuple(
            _block_start(backend, level, size) for level, size in enumerate(layout.level_sizes)
        )
        # A text id beyond these would mean that text can say something that is no text.
        self.text_size = self._bare.get_vocab_size()

    @classmethod
    def train(
        cls, texts: Iterable[str], vocabulary_size: int = DEFAULT_VOCABULARY, *, layout: SidLayout
    ) -> Tokenizer:
        """Learn at most `vocabulary_size` text tokens (256 bytes and merges) from texts."""
        if vocabulary_size < MIN_VOCABULARY:
            raise ConfigError(
                f"vocabulary_size {vocabulary_size} is below the {MIN_VOCABULARY} byte tokens"
            )
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)  # pyright: ignore[reportAttributeAccessIssue]
        backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            min_frequency=2,
            show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )
        backend.train_from_iterator(map(normalise, texts), trainer)
        return cls.extend(backend, layout)

    @classmethod
    def extend(cls, backend: Backend, layout: SidLayout) -> Tokenizer:
        """Add the special tokens and SID blocks to a tokenizer that has text tokens only (or to
        that of any Qwen3 checkpoint); new ids follow its last one."""
        known = backend.get_vocab(with_added_tokens=True)
        block = [
            f"<{_LETTERS[level]}_{code}>"
            for level, size in enumerate(layout.level_sizes)
            for code in range(size)
        ]
        if known_codes := known.keys() & set(block):
            raise ConfigError(
                f"the tokenizer already has SID tokens (such as {min(known_codes)}); "
                "start from a checkpoint without them"
            )
        backend = Backend.from_str(backend.to_str())
        for tokens in (SPECIAL_TOKENS, block):
            backend.add_special_tokens(
                [AddedToken(token, special=True, normalized=False) for token in tokens]
            )
        return cls(backend, layout)

    @classmethod
    def open(cls, directory: Path, layout: SidLayout) -> Tokenizer:
        """Read `tokenizer.json`. Raises ArtifactError when it is missing, damaged or does not have
        the layout's SID tokens."""
        return cls(open_backend(Path(directory)), layout)

    def save(self, directory: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, loadable by transformers and vLLM."""
        self._backend.save(str(directory / TOKENIZER_FILE))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": PAD,
            "eos_token": END,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1_000_000,
        }
        (directory / TOKENIZER_CONFIG_FILE).write_text(json.dumps(config, indent=2))

    @property
    def size(self) -> int:
        """Number of token ids; at most the rows of the model's embedding."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def pad(self) -> int:
        return self.special[PAD]

    @property
    def end(self) -> int:
        return self.special[END]

    def level_slice(self, level: int) -> slice:
        """The token ids of one level's codebook."""
        start = self.sid_offset[level]
        return slice(start, start + self.layout.level_sizes[level])

    def sid_tokens(self, codes: Codes) -> list[int]:
        """Token ids of a SID or of its first levels."""
        return [offset + int(code) for offset, code in zip(self.sid_offset, codes, strict=False)]

    def encode_text(self, text: str) -> list[int]:
        """Token ids of the normalised text; never a special or SID token."""
        return self._bare.encode(normalise(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode_text` of many texts, on all cores."""
        encodings = self._bare.encode_batch_fast(
            [normalise(text) for text in texts], add_special_tokens=False
        )
        return [encoding.ids for encoding in encodings]

    def decode_text(self, token_ids: Sequence[int]) -> str:
        """Readable text; special and SID tokens are left out."""
        return self._backend.decode(list(token_ids), skip_special_tokens=True).strip(" ")

    def decode(self, token_ids: Sequence[int]) -> str:
        """Everything, special and SID tokens too: for people who look at prompts."""
        return self._backend.decode(list(token_ids), skip_special_tokens=False)


def open_backend(directory: Path) -> Backend:
    """The `tokenizers` object of a checkpoint directory. Raises ArtifactError."""
    path = directory / TOKENIZER_FILE
    try:
        raw = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from None
    try:
        return Backend.from_str(raw)
    except Exception as error:  # noqa: BLE001  the library raises nothing narrower
        raise ArtifactError(f"{path} is no tokenizer: {error}") from None


def _without_added_tokens(backend: Backend) -> Backend:
    raw = cast(dict[str, Any], json.loads(backend.to_str()))
    raw["added_tokens"] = []
    raw["post_processor"] = None
    return Backend.from_str(json.dumps(raw))


def _id_of(backend: Backend, token: str) -> int:
    found = backend.token_to_id(token)
    if found is None:
        raise ArtifactError(f"the tokenizer has no token {token}; it is not one of this program's")
    return found


def _block_start(backend: Backend, level: int, size: int) -> int:
    letter = _LETTERS[level]
    start = _id_of(backend, f"<{letter}_0>")
    end = _id_of(backend, f"<{letter}_{size - 1}>")
    beyond = backend.token_to_id(f"<{letter}_{size}>")
    if end - start != size - 1 or beyond is not None:
        raise ArtifactError(
            f"the tokenizer's block of level {level} does not have exactly the {size} codes "
            "of the layout"
        )
    return start

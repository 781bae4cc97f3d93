"""The one prompt template. Student and teacher differ in the keyword span only.

    [<|user|> short and long user SID] <|query|> text <|sid|> SID_q [nearest level-1 codes]
    [<|history|> item SIDs, oldest first] [<|keywords|> text] <|item|>

after which the model writes the codes of an item, one per level. A span without content is left
out with its marker. Everything is cut to the settings' limits, so the longest prompt is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.errors import ConfigError
from index.text import words
from models.tokenizer import HISTORY, ITEM, KEYWORDS, QUERY, SID, USER, Codes, Tokenizer
from models.user_sid import CodeRows, user_sids

KEYWORD_SEPARATOR = ", "


def prompt_text(text: str) -> str:
    """The form in which text enters a prompt: its product words (`index.text.words`), joined.

    Pseudo-queries, training queries, titles and served queries all pass through here, so the
    decoder meets one spelling of units, plurals and numbers.
    """
    return " ".join(words(text))


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """Limits of the spans, in tokens, items and codes. Stored with the checkpoint.

    `user_sid`: whether prompts with a history begin with the user's SIDs (`models.user_sid`).
    """

    max_query_tokens: int = 24
    max_history: int = 5
    max_keyword_tokens: int = 32
    query_code_count: int = 0
    user_sid: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = int(getattr(self, field.name))
            least = 1 if field.name == "max_query_tokens" else 0
            if value < least:
                raise ConfigError(f"{field.name} is {value}, it must be at least {least}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> PromptSettings:
        known = {field.name for field in fields(cls)}
        if unknown := raw.keys() - known:
            raise ConfigError(f"unknown prompt setting {min(unknown)!r}; known: {sorted(known)}")
        return cls(**raw)


class PromptBuilder:
    """Builds token ids, int32 (T,), from encoded text and codes. Stateless."""

    def __init__(self, tokenizer: Tokenizer, settings: PromptSettings) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self._marker = tokenizer.special

    @property
    def max_tokens(self) -> int:
        """Length of the longest prompt, keywords included."""
        levels, settings = self.tokenizer.layout.levels, self.settings
        user = 1 + 2 * levels
        query = 1 + settings.max_query_tokens + 1 + levels + settings.query_code_count
        history = 1 + settings.max_history * levels
        return user + query + history + 1 + settings.max_keyword_tokens + 1

    def keyword_tokens(self, keywords: Sequence[str]) -> list[int]:
        """Token ids of keywords, most important first."""
        text = KEYWORD_SEPARATOR.join(map(prompt_text, keywords))
        return self.tokenizer.encode_text(text) if text else []

    def student(
        self,
        query_tokens: Sequence[int],
        query_sid: Codes | None = None,
        history_sids: CodeRows = (),
        user_sid: CodeRows = (),
        query_codes: Codes = (),
    ) -> NDArray[np.int32]:
        """The serving prompt.

        `query_tokens`: from `Tokenizer.encode_text`, cut at the end. `query_sid` (L,).
        `history_sids` (n, L), oldest first; the newest `max_history` are kept. `user_sid` (2, L):
        short and long sequence; where the settings want it and it is not given, it is computed from
        the whole of `history_sids`. `query_codes`: level-1 codes nearest to the query, nearest
        first, of which `query_code_count` are kept.
        """
        return self.teacher(query_tokens, (), query_sid, history_sids, user_sid, query_codes)

    def teacher(
        self,
        query_tokens: Sequence[int],
        keyword_tokens: Sequence[int],
        query_sid: Codes | None = None,
        history_sids: CodeRows = (),
        user_sid: CodeRows = (),
        query_codes: Codes = (),
    ) -> NDArray[np.int32]:
        """The student's prompt with a keyword span (see `keyword_tokens`)."""
        settings, marker, sid = self.settings, self._marker, self.tokenizer.sid_tokens
        tokens: list[int] = []
        if settings.user_sid and not len(user_sid):
            user_sid = user_sids(history_sids)
        if len(user_sid):
            tokens.append(marker[USER])
            for codes in user_sid[:2]:
                tokens += sid(codes)
        tokens.append(marker[QUERY])
        tokens += query_tokens[: settings.max_query_tokens]
        nearest = [int(code) for code in query_codes[: settings.query_code_count]]
        if query_sid is not None or nearest:
            tokens.append(marker[SID])
            tokens += sid(query_sid) if query_sid is not None else ()
            tokens += (self.tokenizer.sid_offset[0] + code for code in nearest)
        history = history_sids[-settings.max_history :] if settings.max_history else ()
        if len(history):
            tokens.append(marker[HISTORY])
            for codes in history:
                tokens += sid(codes)
        if keywords := keyword_tokens[: settings.max_keyword_tokens]:
            tokens.append(marker[KEYWORDS])
            tokens += keywords
        tokens.append(marker[ITEM])
        return np.array(tokens, dtype=np.int32)

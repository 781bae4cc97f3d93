"""Prompts of the language model: files of this package, rendered into chat messages.

`prompts/NAME.md` has the instructions (the system message), `prompts/NAME.jsonl` worked examples,
one {"input": {…}, "output": {…}} a line, shown as earlier turns of the conversation.

What people typed or wrote about products is data. It enters as one JSON object, in the user message
alone, and stays inside its strings:
- it is in normal form (`index.text.normalise`): no control, bidi or zero-width characters;
- the characters that chat templates build control tokens from (`<|im_end|>`, `[INST]`) are written
  as JSON escapes, so a server that looks for such tokens in the content finds none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, TypeAlias

import orjson

from index.errors import ArtifactError
from index.text import normalise

Data: TypeAlias = str | Sequence["Data"] | Mapping[str, "Data"]
Message: TypeAlias = dict[str, str]

# Counts as one token: English has about four characters to a token, Chinese at most one token to
# a character of three bytes. High on purpose, budgets are reserved with it.
BYTES_PER_TOKEN = 3
# What a chat template puts around a message.
TOKENS_PER_MESSAGE = 8

_ESCAPES = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>[]{}|`"})


@dataclass(frozen=True, slots=True)
class Example:
    """One worked example: what would be asked and what is right to answer."""

    input: Mapping[str, Data]
    output: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Instructions and examples. `version` is a digest of both files' content."""

    name: str
    instructions: str
    examples: tuple[Example, ...]
    version: str

    @classmethod
    def load(cls, name: str) -> Prompt:
        """The prompt of that name. Raises ArtifactError if the package lacks or spoils it."""
        folder = resources.files("server.keywords") / "prompts"
        try:
            instructions = (folder / f"{name}.md").read_bytes()
            lines = (folder / f"{name}.jsonl").read_bytes()
            raws = [orjson.loads(line) for line in lines.splitlines() if line.strip()]
            examples = tuple(Example(raw["input"], raw["output"]) for raw in raws)
        except (OSError, KeyError, TypeError, orjson.JSONDecodeError) as error:
            raise ArtifactError(f"prompt {name!r}: {type(error).__name__}: {error}") from None
        version = hashlib.blake2b(instructions + b"\0" + lines, digest_size=6).hexdigest()
        return cls(name, instructions.decode().strip(), examples, version)

    def messages(self, data: Mapping[str, Data]) -> list[Message]:
        """The conversation up to the question. Roles alternate, as some templates demand."""
        conversation = [_message("system", self.instructions)]
        for example in self.examples:
            conversation.append(_message("user", quote(example.input)))
            conversation.append(_message("assistant", json.dumps(example.output, **_AS_IT_IS)))
        conversation.append(_message("user", quote(data)))
        return conversation


def repair_messages(messages: Sequence[Message], reply: str, problem: str) -> list[Message]:
    """The same conversation, in which the model answered `reply` and is told what is wrong.

    The reply may repeat the query: its angle brackets are escaped as well, which inside a JSON
    string means the same. `problem` is ours.
    """
    said = reply.translate({ord("<"): "\\u003c", ord(">"): "\\u003e", 0: None}).strip()
    told = f"That answer cannot be used: {problem}. Answer again with the JSON object alone."
    return [*messages, _message("assistant", said or "{}"), _message("user", told)]


def quote(data: Data) -> str:
    """`data` as JSON in which no text can end its string or look like a control token."""
    if isinstance(data, str):
        return json.dumps(normalise(data), ensure_ascii=False).translate(_ESCAPES)
    if isinstance(data, Mapping):
        pairs = (f"{quote(name)}: {quote(value)}" for name, value in data.items())
        return "{" + ", ".join(pairs) + "}"
    return "[" + ", ".join(map(quote, data)) + "]"


def estimate_tokens(messages: Sequence[Message]) -> int:
    """About how many tokens a conversation has; rather too many than too few."""
    sizes = (len(message["content"].encode()) for message in messages)
    return sum(size // BYTES_PER_TOKEN + TOKENS_PER_MESSAGE for size in sizes)


_AS_IT_IS: dict[str, Any] = {"ensure_ascii": False}


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}

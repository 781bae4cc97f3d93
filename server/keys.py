"""API keys: how they look, what they allow, and whether a text is one that is valid now.

    osk_ID_SECRET    64 characters. ID: 16 hexadecimal digits that name the key in lists and logs;
                     SECRET: 32 random bytes, base64url

Of a key only its SHA-256 is kept. A slow or salted hash protects what people choose, since that can
be guessed; 256 random bits cannot, so a fast one is enough, and a request with a wrong key costs
the server no more than a right one. Digests have one length and are compared by
`hmac.compare_digest`; an id that nobody has is compared as well, with a digest that no key has, so
the time of an answer tells neither a part of a secret nor whether an id exists.

Two keys may have the same name: that is how one replaces the other without a gap. What is counted
and limited is the name.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from index.errors import ConfigError

KeyScope = Literal["search", "events", "ingest", "admin", "metrics"]
SCOPES: tuple[KeyScope, ...] = get_args(KeyScope)
Refusal = Literal["unknown", "expired"]

PREFIX = "osk"
ID_BYTES = 8
SECRET_BYTES = 32
KEY_CHARACTERS = 64
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_ID = slice(len(PREFIX) + 1, len(PREFIX) + 1 + 2 * ID_BYTES)


@dataclass(frozen=True, slots=True)
class Key:
    """What is kept of a key. `digest`: SHA-256 of its text. `created`, `expires`: Unix time; no
    `expires`: it does not end. `rate`: requests per second, where not the server's setting."""

    id: str
    name: str
    digest: bytes
    scopes: frozenset[KeyScope]
    created: float
    expires: float | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError saying which part is wrong."""
        if not re.fullmatch(rf"[0-9a-f]{{{2 * ID_BYTES}}}", self.id):
            raise ConfigError(f"key id {self.id!r} must be {2 * ID_BYTES} hexadecimal digits")
        if not NAME.match(self.name):
            raise ConfigError(
                f"key name {self.name!r} must be 1 to 64 of A-Z a-z 0-9 . _ - and begin with a "
                "letter or a digit"
            )
        if len(self.digest) != hashlib.sha256().digest_size:
            raise ConfigError(f"key {self.id}: its sha256 must be 64 hexadecimal digits")
        if unknown := self.scopes - set(SCOPES):
            raise ConfigError(f"scope {min(unknown)!r} is none of {', '.join(SCOPES)}")
        if not self.scopes:
            raise ConfigError(f"key {self.name} needs a scope: {', '.join(SCOPES)}")
        if self.rate is not None and not self.rate > 0:
            raise ConfigError(f"key {self.name}: rate is {self.rate}, it must be above 0")

    def ended(self, now: float) -> bool:
        """Whether its time is over. `now`: Unix time."""
        return self.expires is not None and now >= self.expires


def make_key(
    name: str,
    scopes: Iterable[KeyScope],
    now: float,
    expires: float | None = None,
    rate: float | None = None,
) -> tuple[str, Key]:
    """A new key: the text that its holder sends, which is nowhere else, and what is kept of it."""
    identity = secrets.token_hex(ID_BYTES)
    text = f"{PREFIX}_{identity}_{secrets.token_urlsafe(SECRET_BYTES)}"
    return text, Key(identity, name, _digest(text), frozenset(scopes), now, expires, rate)


class KeySet:
    """Keys by id. Immutable."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self._keys = {key.id: key for key in keys}
        # Of a text that is nowhere: no key has this digest.
        self._nobody = secrets.token_bytes(hashlib.sha256().digest_size)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, text: str, now: float) -> Key | Refusal:
        """The key that a text is, or why it is none. `now`: Unix time."""
        if len(text) != KEY_CHARACTERS:
            return "unknown"
        key = self._keys.get(text[_ID])
        same = hmac.compare_digest(_digest(text), self._nobody if key is None else key.digest)
        if key is None or not same:
            return "unknown"
        return "expired" if key.ended(now) else key


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

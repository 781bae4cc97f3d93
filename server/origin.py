"""The origin of a web page, as browsers name it."""

from __future__ import annotations

from urllib.parse import urlsplit


def check_origin(text: str) -> str:
    """An origin as browsers write it. Raises ValueError for anything else, `*` included."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("an origin is http://HOST or https://HOST, with its port; * is none")
    if text != f"{parts.scheme}://{parts.netloc}".lower() or "@" in parts.netloc:
        raise ValueError("an origin is in small letters, without user, path and final slash")
    return text

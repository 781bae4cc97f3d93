"""The settings that say who may send what, from where, how fast. docs/security.md"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings

from server.origin import check_origin

ADMIN_HOST = "127.0.0.1"
BURST_S = 2.0
TRUSTED_PROXIES: tuple[str, ...] = ()
HEAD_TIMEOUT_S = 10.0
KEEP_ALIVE_S = 75
CONNECTIONS = 4096


class SecuritySettings(BaseSettings):
    """A part of `server.settings.Settings`."""

    admin: bool | None = Field(
        None,
        description="take /admin requests; if not given, from this machine only, or with a key, "
        "and while listening on a loopback address",
    )
    admin_host: str = Field(ADMIN_HOST, description="address of admin_port")
    admin_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="/admin, with /metrics and the probes, on a listener of its own; 0 takes any "
        "free port",
    )
    keys_file: Path | None = Field(
        None,
        description="of API keys, made by `onesearch keys`; if not given, there are none and "
        "everybody who reaches the server may search",
    )
    metrics_public: bool = Field(False, description="with keys: /metrics does not need one")
    rate_limit: float | None = Field(
        None, ge=0.01, le=1e6, description="requests per second of one key, or address"
    )
    rate_burst_s: float = Field(
        BURST_S, gt=0, le=3600, description="for so long a client may save up its requests"
    )
    trusted_proxies: tuple[str, ...] = Field(
        TRUSTED_PROXIES,
        description="addresses and networks whose X-Forwarded-For is believed; none if not given, "
        "since whoever is believed chooses the address that rate_limit counts",
    )
    cors_origins: tuple[Annotated[str, AfterValidator(check_origin)], ...] = Field(
        (), description="web pages that may use /v1, e.g. https://shop.example"
    )
    head_timeout_s: float = Field(
        HEAD_TIMEOUT_S,
        gt=0,
        le=600,
        description="for a request's line and headers to arrive, and for a client to read on",
    )
    keep_alive_s: int = Field(
        KEEP_ALIVE_S,
        ge=1,
        le=3600,
        description="for a connection to wait for its next request; longer than clients and "
        "proxies keep theirs",
    )
    connections: int = Field(
        CONNECTIONS, ge=8, le=1_000_000, description="open at the same time at most"
    )

"""What the Ray Serve application is told: how many replicas, on what, with which settings.

Replicas read the same settings as `onesearch serve` and `onesearch worker` (`ONESEARCH_…`). What
belongs to the application alone is `ONESEARCH_RAY_…`, below. No Ray is imported here.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from index.errors import ConfigError
from server.access import takes_events
from server.settings import CONFIG_VARIABLE, ENVIRONMENT_PREFIX, Settings, load

RAY_PREFIX = f"{ENVIRONMENT_PREFIX}RAY_"
ANY_ADDRESS = "0.0.0.0"
"""Serve's proxies listen there, whatever the replicas know of it: nobody is local."""


class Scale(BaseSettings):
    """How the application is spread over a cluster. Time is in seconds."""

    model_config = SettingsConfigDict(env_prefix=RAY_PREFIX, frozen=True, validate_default=True)

    min_gateways: int = Field(2, ge=1, description="replicas of the gateway at least")
    max_gateways: int = Field(4, ge=1, description="and at most")
    searches_per_gateway: float = Field(
        4.0, gt=0, description="in work and waiting, for each replica: more add one, fewer end one"
    )
    ongoing_per_gateway: int = Field(16, ge=1, description="requests in work in one replica")
    queued: int = Field(256, ge=0, description="requests that wait for one; the next get 503")
    upscale_delay_s: float = Field(10.0, ge=0, description="of more work, before there are more")
    downscale_delay_s: float = Field(300.0, ge=0, description="of less work, before there are less")
    look_back_s: float = Field(10.0, gt=0, description="of work that is averaged")
    gateway_cpus: float = Field(2.0, ge=0, description="cores that Ray counts for a replica")
    gateway_gpus: float = Field(0.0, ge=0, description="GPUs of a replica")
    workers: int = Field(1, ge=0, description="keyword workers; none where keywords are off")
    worker_cpus: float = Field(1.0, ge=0, description="cores that Ray counts for a worker")
    health_period_s: float = Field(5.0, gt=0, description="between two questions for health")


def scale_of_environment() -> Scale:
    """Raises ConfigError naming what is wrong."""
    try:
        scale = Scale()
    except ValidationError as error:
        first = error.errors()[0]
        name = "".join(str(part) for part in first["loc"]).upper()
        raise ConfigError(f"{RAY_PREFIX}{name}: {first['msg']}") from None
    if scale.max_gateways < scale.min_gateways:
        raise ConfigError(
            f"{RAY_PREFIX}MAX_GATEWAYS {scale.max_gateways} is less than "
            f"{RAY_PREFIX}MIN_GATEWAYS {scale.min_gateways}"
        )
    return scale


def replica_settings() -> Settings:
    """The settings of one of several gateways behind a proxy: doors that are open to this machine
    only are shut.

    Raises ConfigError for what several of them cannot do.
    """
    settings = load(host=ANY_ADDRESS)
    if settings.catalogue_changes:
        raise ConfigError(
            f"{ENVIRONMENT_PREFIX}CATALOGUE_CHANGES: a catalogue has one writer; let one "
            "`onesearch serve` take the changes and compact them into generations"
        )
    shares = settings.keywords != "off" or takes_events(settings) or settings.exposures
    if shares and settings.redis_url is None:
        raise ConfigError(
            f"keywords and events of several gateways need one Redis: set {ENVIRONMENT_PREFIX}"
            "REDIS_URL"
        )
    return settings


def replica_environment(settings: Settings, scale: Scale) -> dict[str, str]:
    """What replicas find in their environment: this process's settings, with absolute paths, and
    threads for the cores of a replica in place of the machine's.

    Secrets are left out, a Redis address with a password among them, since Ray shows to whom it
    serves what it was given: they are set where the nodes are started.
    """
    secrets = {
        f"{ENVIRONMENT_PREFIX}{name.upper()}"
        for name, field in type(settings).model_fields.items()
        if "SecretStr" in str(field.annotation)
    }
    if urlsplit(settings.redis_address or "").password is None:
        secrets.discard(f"{ENVIRONMENT_PREFIX}REDIS_URL")
    found = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(ENVIRONMENT_PREFIX) and name.upper() not in secrets
    }
    if CONFIG_VARIABLE in found:
        found[CONFIG_VARIABLE] = str(Path(found[CONFIG_VARIABLE]).absolute())
    for name in {"registry", *settings.model_fields_set}:
        value = getattr(settings, name)
        if isinstance(value, Path):
            found[f"{ENVIRONMENT_PREFIX}{name.upper()}"] = str(value.absolute())
    if settings.engine_threads is None:
        found[f"{ENVIRONMENT_PREFIX}ENGINE_THREADS"] = str(max(1, int(scale.gateway_cpus) // 2))
    # As `onesearch serve` has it: searches multiply small matrices.
    return {**found, "OPENBLAS_NUM_THREADS": "1"}

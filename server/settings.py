"""Every setting of the server: environment (`ONESEARCH_…`), a TOML file, defaults.

Read once when the process starts and handed down. What is given on the command line wins over the
environment, which wins over the file, which wins over the defaults below. Time is in seconds.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from index.errors import ConfigError
from models.registry.registry import DEFAULT_REGISTRY
from server.security_settings import SecuritySettings

ENVIRONMENT_PREFIX = "ONESEARCH_"
CONFIG_VARIABLE = "ONESEARCH_CONFIG"

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8080
METRICS_HOST = "127.0.0.1"
DEFAULT_CHAMPION = Path("var/champion.json")
GOLDEN_FLOOR = 0.9
ROLLBACK_WINDOW_S = 300.0
ROLLBACK_SEARCHES = 200
ROLLBACK_FAILED = 0.01
ROLLBACK_DEGRADED = 0.05
ROLLBACK_LATENCY = 1.5
DEFAULT_BEAM_WIDTH = 128
VLLM_CACHE_GB = 1.0
VLLM_MEMORY_SHARE = 0.5
DEFAULT_TIMEOUT_S = 2.0
RANKING_RESERVE_S = 0.05
RANKING_RESERVE_SHARE = 0.25
RESPONSE_SLACK_S = 0.05
BODY_TIMEOUT_S = 10.0
BODY_BYTES = 64 * 1024
CATALOGUE_BODY_BYTES = 8 * 1024 * 1024
CATALOGUE_REQUESTS = 8
MERGE_SHARE = 0.05
MERGE_MIN_ITEMS = 10_000
MERGE_LOG_BYTES = 256 * 1024 * 1024
QUERY_CHARACTERS = 512
CONCURRENT_REQUESTS = 256
PATIENCE = 8.0
RETRY_AFTER_S = 1.0
WORKER_THREADS = max(1, min(4, (os.cpu_count() or 1) // 2))
"""As the engine: half the cores. What they do holds the interpreter for the most part, so more of
them than cores would only stand in each other's way."""
QUERY_CACHE_ENTRIES = 20_000
REMEMBERED_USERS = 10_000
REMEMBERED_ITEMS = 50
RETRIEVAL_CANDIDATES = 200
FALLBACK_CANDIDATES = 100
DRAIN_S = 1.0
SHUTDOWN_S = 15.0
REDIS_DIRECTORY = Path("var/redis")
REDIS_PREFIX = "onesearch"
REDIS_TIMEOUT_S = 1.0
EVENT_BODY_BYTES = 1024 * 1024
EVENT_REQUESTS = 32
EXPOSURE_QUEUE = 10_000
BEHAVIOUR_RETENTION_DAYS = 30.0
CONTEXT_BUDGET_MS = 5.0
KEYWORD_BUDGET_MS = 3.0
KEYWORD_CACHE_ENTRIES = 20_000
KEYWORD_QUEUE_LIMIT = 100_000
KEYWORD_CONCURRENCY = 2
KEYWORD_BATCH = 32
KEYWORD_LEASE_S = 15.0
KEYWORD_DRAIN_S = 60.0
KEYWORD_LLM_TEMPERATURE = 0.2
KEYWORD_LLM_TOKENS = 512
KEYWORD_LLM_CONCURRENCY = 8
KEYWORD_LLM_TIMEOUT_S = 90.0
TRACE_SHARE = 1.0


class Settings(SecuritySettings):
    """The gateway's settings; unknown names in the file are refused."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, extra="forbid", frozen=True, validate_default=True
    )

    host: str = Field(DEFAULT_HOST, description="address to listen on")
    port: int = Field(DEFAULT_PORT, ge=0, le=65535, description="port; 0 takes any free one")
    metrics_host: str = Field(
        METRICS_HOST, description="address of a worker's and a sidecar's --metrics-port"
    )
    snapshot: Path | None = Field(None, description="snapshot directory")
    checkpoint: Path | None = Field(None, description="checkpoint directory")
    champion: Path = Field(
        DEFAULT_CHAMPION, description="JSON {snapshot, checkpoint}, used when neither is given"
    )
    registry: Path = Field(
        DEFAULT_REGISTRY,
        description="of generations; its champion is served, and followed, when neither is given",
    )
    golden_queries: Path | None = Field(
        None,
        description="text file, one a line, that a generation has to answer before it is served; "
        "titles of its items if not given",
    )
    golden_floor: float = Field(
        GOLDEN_FLOOR, ge=0, le=1, description="share of them that has to find something"
    )
    when_memory_is_short: Literal["refuse", "replace"] = Field(
        "refuse",
        description="for two generations; replace: drop the weights, then load, while retrieval "
        "answers",
    )
    shadow_share: float = Field(
        0.0, ge=0, le=1, description="of the searches, asked of the challenger too, for comparison"
    )
    rollback_window_s: float = Field(
        ROLLBACK_WINDOW_S,
        ge=0,
        le=24 * 3600,
        description="after a promotion, in which a generation that is clearly worse is rolled "
        "back; 0: never, nor is a canary stopped",
    )
    rollback_searches: int = Field(
        ROLLBACK_SEARCHES, ge=20, description="fewer say nothing, before or after"
    )
    rollback_failed: float = Field(
        ROLLBACK_FAILED, ge=0, le=1, description="more failed searches than before: no worse"
    )
    rollback_degraded: float = Field(
        ROLLBACK_DEGRADED, ge=0, le=1, description="more degraded searches than before: no worse"
    )
    rollback_latency: float = Field(
        ROLLBACK_LATENCY,
        ge=1,
        le=100,
        description="times the 90th percentile of before: no worse",
    )
    engine: Literal["native", "vllm"] = Field(
        "native", description="vllm: in its own environment, docs/vllm.md"
    )
    engine_device: Literal["cpu", "cuda"] = "cpu"
    engine_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="what the decoder computes in; auto: on a GPU bfloat16, on a CPU where it was "
        "measured to be clearly faster",
    )
    engine_threads: int | None = Field(
        None, ge=1, le=1024, description="threads of the engine; half the cores if not given"
    )
    vllm_cache_gb: float = Field(
        VLLM_CACHE_GB, gt=0, le=1024, description="vLLM's keys and values, on a CPU"
    )
    vllm_memory_share: float = Field(
        VLLM_MEMORY_SHARE, gt=0, le=1, description="of a GPU that vLLM takes"
    )

    beam_width: int = Field(DEFAULT_BEAM_WIDTH, ge=1, le=1024, description="when not asked for")
    timeout_s: float = Field(DEFAULT_TIMEOUT_S, ge=0.01, le=60, description="when not asked for")
    ranking_reserve_s: float = Field(
        RANKING_RESERVE_S, ge=0, le=10, description="kept back from the engine for what follows it"
    )
    response_slack_s: float = Field(RESPONSE_SLACK_S, ge=0, le=10)
    query_characters: int = Field(QUERY_CHARACTERS, ge=1, le=10_000)
    body_bytes: int = Field(BODY_BYTES, ge=1024, le=64 * 1024 * 1024)
    body_timeout_s: float = Field(BODY_TIMEOUT_S, gt=0, le=600)
    catalogue_changes: bool | None = Field(
        None,
        description="take catalogue changes over HTTP; if not given, from this machine only and "
        "while listening on a loopback address",
    )
    live_directory: Path | None = Field(
        None, description="where changes are kept; SNAPSHOT.live beside the snapshot if not given"
    )
    merge_share: float = Field(
        MERGE_SHARE,
        gt=0,
        description="changes are merged into a new base when this share of the items was added or "
        "removed since the last merge",
    )
    merge_min_items: int = Field(MERGE_MIN_ITEMS, ge=1, description="and at least this many")
    merge_log_bytes: int = Field(
        MERGE_LOG_BYTES, ge=1, description="or when the log of the changes is larger than this"
    )
    compaction_changes: int | None = Field(
        None,
        ge=1,
        description="of a registry's champion: its catalogue is published as a new generation "
        "after this many changes; if not given, never for that reason",
    )
    compaction_age_s: float | None = Field(
        None, gt=0, description="or when there are changes and the champion is older than this"
    )
    catalogue_body_bytes: int = Field(CATALOGUE_BODY_BYTES, ge=1024, le=256 * 1024 * 1024)
    catalogue_requests: int = Field(
        CATALOGUE_REQUESTS, ge=1, le=1000, description="of catalogue changes at the same time"
    )
    concurrent_requests: int = Field(
        CONCURRENT_REQUESTS, ge=1, le=100_000, description="above this /v1 answers 503"
    )
    patience: float = Field(
        PATIENCE,
        ge=0,
        le=1000,
        description="what a search may take under load, in times of one that is alone; searches "
        "beyond that get 503, 0 lets in up to concurrent_requests",
    )
    retry_after_s: float = Field(RETRY_AFTER_S, ge=0, le=3600)
    retrieval_candidates: int = Field(
        RETRIEVAL_CANDIDATES,
        ge=0,
        le=10_000,
        description="of each of dense and lexical search, ranked beside the beam's items",
    )
    fallback_candidates: int = Field(
        FALLBACK_CANDIDATES, ge=1, le=10_000, description="the same, when the engine is not heard"
    )
    worker_threads: int = Field(WORKER_THREADS, ge=1, le=256)
    query_cache_entries: int = Field(QUERY_CACHE_ENTRIES, ge=1)
    remembered_users: int = Field(REMEMBERED_USERS, ge=1)
    remembered_items: int = Field(REMEMBERED_ITEMS, ge=1, le=200)

    redis_url: SecretStr | None = Field(
        None,
        description="redis://, rediss:// or unix://; if not given, an embedded server is started",
    )
    redis_directory: Path = Field(
        REDIS_DIRECTORY, description="of the embedded server: its socket and its data"
    )
    redis_prefix: str = Field(
        REDIS_PREFIX, pattern=r"^[\w.-]{1,64}$", description="all keys begin with it"
    )
    redis_timeout_s: float = Field(
        REDIS_TIMEOUT_S, ge=0.1, le=60, description="of one command; searches wait less"
    )
    events: bool | None = Field(
        None,
        description="take POST /v1/events; if not given, from this machine only and while "
        "listening on a loopback address",
    )
    event_body_bytes: int = Field(EVENT_BODY_BYTES, ge=1024, le=64 * 1024 * 1024)
    event_requests: int = Field(
        EVENT_REQUESTS, ge=1, le=1000, description="of events at the same time"
    )
    exposures: bool | None = Field(
        None,
        description="write down what each search showed; if not given, where events are taken",
    )
    exposure_queries: bool = Field(True, description="with the query's text")
    exposure_queue: int = Field(
        EXPOSURE_QUEUE, ge=1, le=1_000_000, description="exposures that wait to be written at most"
    )
    behaviour_retention_days: float = Field(
        BEHAVIOUR_RETENTION_DAYS,
        gt=0,
        le=3650,
        description="how long Redis keeps events and exposures",
    )
    context_budget_ms: float = Field(
        CONTEXT_BUDGET_MS,
        ge=0,
        le=1000,
        description="what a search waits at most for what its user did before",
    )
    keywords: Literal["off", "student", "rag"] = Field(
        "off",
        description="student: what searches miss is made, for training; rag: keywords that are "
        "there go into the prompt as well",
    )
    keyword_budget_ms: float = Field(
        KEYWORD_BUDGET_MS, ge=0, le=1000, description="what a search waits for keywords at most"
    )
    keyword_cache_entries: int = Field(
        KEYWORD_CACHE_ENTRIES, ge=1, description="answers that the gateway remembers"
    )
    keyword_queue_limit: int = Field(
        KEYWORD_QUEUE_LIMIT, ge=1, description="jobs at most; warming up may use 90 % of it"
    )
    keyword_generator: Literal["statistical", "llm", "null"] = Field(
        "statistical", description="what `onesearch worker` makes keywords with"
    )
    keyword_dataset: Path | None = Field(
        None, description="dataset whose clicks the statistical generator learns from"
    )
    keyword_llm_url: str | None = Field(
        None, description="of an OpenAI-compatible service, e.g. http://127.0.0.1:8000/v1"
    )
    keyword_llm_model: str | None = Field(None, description="what the service calls the model")
    keyword_llm_key: SecretStr | None = Field(None, description="sent as a bearer token")
    keyword_llm_temperature: float = Field(KEYWORD_LLM_TEMPERATURE, ge=0, le=2)
    keyword_llm_max_tokens: int = Field(
        KEYWORD_LLM_TOKENS, ge=1, le=100_000, description="of one reply"
    )
    keyword_llm_concurrency: int = Field(
        KEYWORD_LLM_CONCURRENCY, ge=1, le=10_000, description="calls at the same time"
    )
    keyword_llm_timeout_s: float = Field(
        KEYWORD_LLM_TIMEOUT_S, gt=0, le=3600, description="of one call"
    )
    keyword_llm_requests_per_minute: int | None = Field(None, ge=1)
    keyword_llm_tokens_per_minute: int | None = Field(None, ge=1)
    keyword_llm_tokens_per_day: int | None = Field(None, ge=1)
    keyword_llm_extra: dict[str, Any] = Field(
        {}, description="further fields of the service's request body"
    )
    keyword_concurrency: int = Field(
        KEYWORD_CONCURRENCY,
        ge=1,
        le=1000,
        description="batches at the same time in one worker; with llm, if not given, "
        "keyword_llm_concurrency",
    )
    keyword_batch: int = Field(
        KEYWORD_BATCH,
        ge=1,
        le=1000,
        description="jobs that a generator gets at once; with llm, if not given, 1",
    )
    keyword_lease_s: float = Field(
        KEYWORD_LEASE_S,
        ge=0.3,
        le=3600,
        description="a worker not heard of for so long is dead, and its jobs go to another",
    )
    keyword_drain_s: float = Field(
        KEYWORD_DRAIN_S,
        ge=0,
        le=3600,
        description="after SIGTERM: for the jobs in a worker's hands",
    )

    drain_s: float = Field(
        DRAIN_S, ge=0, le=600, description="after SIGTERM: still answering while /readyz says 503"
    )
    shutdown_s: float = Field(SHUTDOWN_S, ge=0, le=3600, description="wait for open requests")
    verify: bool = Field(True, description="check the hashes of snapshot and checkpoint at start")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_queries: bool = Field(False, description="write query texts to the log")
    otlp_endpoint: str | None = Field(
        None,
        description="of an OpenTelemetry collector that takes OTLP over HTTP, e.g. "
        "http://127.0.0.1:4318; if not given, there are no traces",
    )
    trace_share: float = Field(
        TRACE_SHARE, ge=0, le=1, description="of the requests that are traced"
    )
    trace_queries: bool = Field(False, description="write query texts into traces")

    @property
    def redis_address(self) -> str | None:
        """`redis_url` with the password that it may hold: for connecting, never for a message."""
        return None if self.redis_url is None else self.redis_url.get_secret_value()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line, environment, TOML file; no `.env`, no secrets folder."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


_SECRETS = frozenset({"redis_url", "keyword_llm_key", "keyword_llm_extra"})
"""Settings that no message repeats."""


def load(config: Path | None = None, **arguments: Any) -> Settings:
    """The settings of this process; arguments that are None count as not given.

    Raises ConfigError naming the setting, or the file that cannot be read.
    """
    if config is None and os.environ.get(CONFIG_VARIABLE):
        config = Path(os.environ[CONFIG_VARIABLE])
    if config is not None and not config.is_file():
        raise ConfigError(f"settings file {config} is not there")
    given = {name: value for name, value in arguments.items() if value is not None}

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=config)

    try:
        return FromFile(**given)
    except ValidationError as error:
        raise ConfigError(_describe(error, config)) from None
    except SettingsError as error:
        raise ConfigError(f"settings: {error}") from None
    except ValueError as error:
        raise ConfigError(f"settings file {config} is not valid TOML: {error}") from None


def _describe(error: ValidationError, config: Path | None) -> str:
    parts: list[str] = []
    for problem in error.errors(include_url=False, include_context=False):
        name = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            parts.append(f"{name}: no such setting in {config}")
        else:
            given = "" if name in _SECRETS else f", not {problem['input']!r}"
            parts.append(f"{name} ({ENVIRONMENT_PREFIX}{name.upper()}): {problem['msg']}{given}")
    return "settings: " + "; ".join(parts)

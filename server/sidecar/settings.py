"""Settings of the sidecar: environment (ONESEARCH_SIDECAR_…), a TOML file of its own, defaults.

The table `[gate]` is `models.training.gate.GateSettings`; `[sft]`, `[distill]` and `[align]` are
`StageSettings`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from index.errors import ConfigError
from models.training.gate import GateSettings

ENVIRONMENT_PREFIX = "ONESEARCH_SIDECAR_"
DEFAULT_STATE = Path("var/sidecar")
EVERY_S = 60.0
MIN_CLICKS = 500
MAX_SEARCHES = 20_000
SETTLE_S = 5.0
LATE_CLICKS_S = 24 * 3600.0
LEASE_S = 30.0
ATTEMPTS = 5
SAVE_EVERY_S = 60.0
BEAM_WIDTH = 128
KEPT_ROUNDS = 30

Stage = Literal["sft", "distill", "align"]
PublishAs = Literal["champion", "canary", "challenger", "nothing"]


@dataclass(frozen=True, slots=True)
class StageSettings:
    """How long one stage trains in a round, and how fast. `examples`: in all, repeats included;
    searches for align."""

    examples: int
    batch_examples: int
    learning_rate: float
    max_minutes: float | None = None


SFT = StageSettings(200_000, 256, 3e-4)
DISTILL = StageSettings(100_000, 256, 3e-4)
ALIGN = StageSettings(10_000, 128, 1e-4)


class SidecarSettings(BaseSettings):
    """What a round needs, how it trains, when it is let through; unknown names are refused."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        validate_default=True,
    )

    dataset: Path | None = Field(None, description="that the champion's snapshot was built from")
    state: Path = Field(DEFAULT_STATE, description="folder of the rounds")
    behaviour: Path | None = Field(
        None, description="folder of `onesearch events export`, read before Redis"
    )
    every_s: float = Field(EVERY_S, gt=0, le=24 * 3600, description="from one look to the next")
    min_clicks: int = Field(MIN_CLICKS, ge=1, description="clicks that make a round worthwhile")
    max_searches: int = Field(
        MAX_SEARCHES, ge=10, le=1_000_000, description="of one round; the rest is the next one's"
    )
    settle_s: float = Field(
        SETTLE_S, ge=0, le=3600, description="events younger than this wait for their exposures"
    )
    late_clicks_s: float = Field(
        LATE_CLICKS_S, ge=0, description="how long after a search its clicks are looked for"
    )
    lease_s: float = Field(LEASE_S, ge=0.3, le=3600, description="not heard of for so long: dead")
    attempts: int = Field(ATTEMPTS, ge=1, le=100, description="of one step, before a round failed")
    stages: tuple[Stage, ...] = Field(("sft",), description="trained one after the other")
    sft: StageSettings = SFT
    distill: StageSettings = DISTILL
    align: StageSettings = ALIGN
    save_every_s: float = Field(SAVE_EVERY_S, ge=0, description="of the training state")
    device: str = "cpu"
    seed: int = 7
    beam_width: int = Field(BEAM_WIDTH, ge=1, le=1024, description="of the comparison")
    gate: GateSettings = GateSettings()
    publish_as: PublishAs = Field("champion", description="what a challenger that passed becomes")
    canary_share: float = Field(0.05, gt=0, lt=1, description="with publish_as = canary")
    kept_rounds: int = Field(
        KEPT_ROUNDS, ge=1, description="of accepted behaviour that later rounds train on again"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line, environment, TOML file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load(file: Path | None = None, **arguments: Any) -> SidecarSettings:
    """The sidecar's settings; arguments that are None count as not given.

    Raises ConfigError naming the setting, or the file that cannot be read.
    """
    if file is not None and not file.is_file():
        raise ConfigError(f"settings file {file} is not there")
    given = {name: value for name, value in arguments.items() if value is not None}

    class FromFile(SidecarSettings):
        model_config = SettingsConfigDict(toml_file=file)

    try:
        return FromFile(**given)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}, not {one['input']!r}"
            for one in error.errors(include_url=False, include_context=False)
        ]
        raise ConfigError(f"sidecar settings: {'; '.join(problems)}") from None
    except ValueError as error:
        raise ConfigError(f"settings file {file} is not valid TOML: {error}") from None

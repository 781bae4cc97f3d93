"""A canary: a share of the units is answered by the challenger, the others by the champion.

It is one more fact of the aliases' state, so every server that follows the registry has the same
units in the same arm, and its beginning and its end stand in the history with who and why. A change
of champion or challenger ends it (`promotion.change_aliases`).
"""

from __future__ import annotations

import math
from dataclasses import replace

from index.errors import ArtifactError, ConfigError
from models.registry.aliases import Aliases, Canary
from models.registry.promotion import UNCHANGED, Unchanged, change_aliases, check_expected
from models.registry.registry import Provenance, Registry

MAX_NAME_CHARACTERS = 128


class NoCanary(ArtifactError):
    """There is none that could be stopped."""


class CanaryRuns(ArtifactError):
    """Another generation's canary, which a new one would end."""


def start_canary(
    registry: Registry,
    version: str,
    share: float,
    *,
    experiment: str = "",
    expected: str | Unchanged | None = UNCHANGED,
    expected_challenger: str | Unchanged | None = UNCHANGED,
    verify: bool = True,
    by: Provenance | None = None,
) -> Aliases:
    """Make a generation challenger, if it is not, and give it a share of the units; or change the
    share of the canary that it has.

    `experiment`: unless given, the running canary's name, else one made of the version. With the
    same name, units stay in the arm when the share grows. `expected`: the champion that the
    decision was made on; `expected_challenger`: the challenger, which has to be named where this
    ends its canary. Raises CanaryRuns where it is not, ConfigError for a share outside of (0, 1), a
    name that cannot be used, and the champion; else errors as of `promotion.promote`.
    """
    if not (math.isfinite(share) and 0 < share < 1):
        raise ConfigError(f"the share is {share:g}; it must be above 0 and below 1")
    readable = experiment.isprintable() and experiment == experiment.strip()
    if len(experiment) > MAX_NAME_CHARACTERS or not readable:
        raise ConfigError(
            "the experiment's name must be printable, without blanks around it, at most "
            f"{MAX_NAME_CHARACTERS} characters"
        )
    registry.verify(version, hashes=verify, fit=False)

    def change(state: Aliases) -> Aliases:
        check_expected(state, expected)
        check_no_other(state, version, expected_challenger)
        if state.champion is None:
            raise ConfigError("there is no champion; a canary is a share beside one")
        if version == state.champion:
            raise ConfigError(f"{version} is the champion; a canary is of another generation")
        running = state.canary if state.challenger == version else None
        name = experiment or (running.experiment if running else f"canary-{version}")
        canary = Canary(name, share)
        if canary == running:
            return state
        return replace(state, challenger=version, canary=canary)

    return change_aliases(registry, "canary", change, version, by)


def check_no_other(
    state: Aliases, version: str, expected_challenger: str | Unchanged | None
) -> None:
    """Raises CanaryRuns where another generation has a canary and is not named, AliasMoved where
    the challenger is another than the one that is."""
    check_expected(state, expected_challenger, "challenger")
    if state.canary is None or state.challenger == version:
        return
    if isinstance(expected_challenger, Unchanged):
        raise CanaryRuns(
            f"the canary of {state.challenger} ({state.canary.experiment}) would end; stop it "
            "first, or name it as the expected challenger"
        )


def stop_canary(
    registry: Registry,
    *,
    expected: str | Unchanged | None = UNCHANGED,
    by: Provenance | None = None,
) -> Aliases:
    """End the canary; the challenger keeps its alias. `expected`: the challenger that the decision
    was made on. Raises NoCanary when there is none, AliasMoved when it is another's."""

    def change(state: Aliases) -> Aliases:
        check_expected(state, expected, "challenger")
        if state.canary is None:
            raise NoCanary("there is no canary to stop")
        return replace(state, canary=None)

    return change_aliases(registry, "canary-stop", change, None, by)

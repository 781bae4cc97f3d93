"""Who is champion: promotion, rollback, challenge.

Each is one new state of the aliases, decided and written under the lock. A caller that decided on
what it saw says so (`expected`) and is refused when somebody was faster. A change of champion or
challenger ends the canary, which is of these two.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from index.errors import ArtifactError, ConfigError
from models.registry.aliases import Alias, Aliases
from models.registry.registry import Provenance, Registry


class AliasMoved(ArtifactError):
    """Somebody else changed an alias first; look again and decide again."""


class Unchanged:
    """Stands for "whatever it is", where None means "there is none"."""


UNCHANGED = Unchanged()


def promote(
    registry: Registry,
    version: str,
    *,
    expected: str | Unchanged | None = UNCHANGED,
    verify: bool = True,
    by: Provenance | None = None,
) -> Aliases:
    """Make a generation champion; the champion becomes `previous`.

    `expected`: the champion that the decision was made on (None: there is none); AliasMoved is
    raised when it is another by now. With `verify` every file is read first. Raises
    ArtifactError, and leaves all as it is, when the generation is damaged.
    """
    registry.verify(version, hashes=verify, fit=False)

    def change(state: Aliases) -> Aliases:
        check_expected(state, expected)
        if state.champion == version:
            return state
        return replace(
            state,
            champion=version,
            previous=state.champion,
            challenger=None if state.challenger == version else state.challenger,
        )

    return change_aliases(registry, "promote", change, version, by)


def rollback(
    registry: Registry,
    *,
    expected: str | Unchanged | None = UNCHANGED,
    verify: bool = True,
    by: Provenance | None = None,
) -> Aliases:
    """Promote `previous`; the two change places. Errors as of `promote`."""
    previous = registry.aliases().previous
    if previous is None:
        raise ConfigError(f"{registry.path} has no previous generation to go back to")
    registry.verify(previous, hashes=verify, fit=False)

    def change(state: Aliases) -> Aliases:
        check_expected(state, expected)
        if state.previous != previous:
            raise AliasMoved(f"previous is {state.previous} by now, it was {previous}; look again")
        return replace(state, champion=previous, previous=state.champion)

    return change_aliases(registry, "rollback", change, previous, by)


def challenge(
    registry: Registry,
    version: str | None,
    *,
    expected: str | Unchanged | None = UNCHANGED,
    verify: bool = True,
    by: Provenance | None = None,
) -> Aliases:
    """Make a generation challenger, or with None have none. `expected`: the challenger that the
    decision was made on. Errors as of `promote`."""
    if version is not None:
        registry.verify(version, hashes=verify, fit=False)

    def change(state: Aliases) -> Aliases:
        check_expected(state, expected, "challenger")
        if version is not None and version == state.champion:
            raise ConfigError(f"{version} is the champion; a challenger is another one")
        return replace(state, challenger=version)

    return change_aliases(registry, "challenge", change, version, by)


def change_aliases(
    registry: Registry,
    what: str,
    change: Callable[[Aliases], Aliases],
    version: str | None,
    by: Provenance | None,
) -> Aliases:
    """Read, decide and write the aliases as one step. `version`: what has to be there still."""
    by = by or Provenance()
    with registry.writing():
        state = registry.aliases()
        changed = change(state)
        if changed is state:
            return state
        moved = (changed.champion, changed.challenger) != (state.champion, state.challenger)
        if moved and changed.canary is state.canary:
            changed = replace(changed, canary=None)
        if version is not None and not (registry.generations / version).is_dir():
            raise ArtifactError(f"generation {version} was removed meanwhile")
        changed = registry.alias_history.append(
            replace(changed, what=what, who=by.named(), why=by.why, when=time.time())
        )
        try:
            registry.log.append_change(changed)
        except OSError:
            # It counts all the same: the next change makes up for the missing line.
            return changed
    return changed


def check_expected(
    state: Aliases, expected: str | Unchanged | None, alias: Alias = "champion"
) -> None:
    """Raises AliasMoved when an alias is not what it was."""
    current = state.named().get(alias)
    if not isinstance(expected, Unchanged) and current != expected:
        raise AliasMoved(
            f"{alias} is {current or 'not set'} by now, expected {expected or 'none'}; "
            "look again and decide again"
        )

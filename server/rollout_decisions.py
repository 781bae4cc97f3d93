"""What was decided last, as a registry's alias files say, for a server that serves already."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from index.errors import ArtifactError
from models.registry.aliases import Aliases
from models.registry.registry import Registry
from server.rollout_guard import Guard


class Decisions:
    """Reads decisions, and says which of them cannot be followed."""

    def __init__(self, registry: Registry, guard: Guard, mended: Callable[[], None]) -> None:
        """`mended` is called when the files can be read again, so that they are seen at once."""
        self._registry, self._guard, self._mended = registry, guard, mended
        self._reads = True

    async def read(self, known: Aliases, live: str) -> Aliases:
        """The newest decision. `known`: the last one that was read; `live`: what is served.

        Raises ArtifactError where it is not known what was decided last: what was known before is
        no decision to go back to it.
        """
        try:
            state = await asyncio.to_thread(self._registry.aliases)
            if state.revision < known.revision and not self._registry.exists:
                raise ArtifactError(f"the registry's folder is gone; put it back. {live} serves on")
            if state.damaged and state.revision <= known.revision:
                self.check_not_taken_back(state)
                raise ArtifactError(f"{state.damaged[0]}; {live} serves on")
        except ArtifactError:
            self._reads = False
            raise
        if not self._reads:
            self._reads = True
            self._mended()
        return state

    def check_not_taken_back(self, state: Aliases) -> None:
        """Raises ArtifactError where this server found the champion clearly worse."""
        target = state.champion
        if target is not None and self._guard.took_back(target, state.revision):
            damaged = "".join(f"; {problem}" for problem in state.damaged)
            reason = f"{target} was taken back; promote it to have it served again{damaged}"
            raise ArtifactError(reason)

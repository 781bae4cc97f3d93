"""What the engine searches a generation with: weights beside a trie, or a name for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decoding.native.runner import Runner, make_runner
from index.live.view import CatalogueView

if TYPE_CHECKING:
    # Needs vLLM, which has an environment of its own.
    from decoding.vllm.engine import VllmGeneration


class Runners:
    """What the engine searches a generation's weights with.

    On a CPU one runner takes any trie. On a GPU the trie lies beside the weights, so each base trie
    that a merge leads to gets a runner; the one before stays for searches that still use it.
    """

    def __init__(self, first: Runner) -> None:
        self._kept: tuple[Runner, ...] = (first,)

    @property
    def newest(self) -> Runner | None:
        """None while the weights are dropped."""
        return self._kept[0] if self._kept else None

    def of(self, view: CatalogueView) -> Runner | None:
        """The runner for a view's base trie."""
        fitting = (runner for runner in self._kept if runner.trie is view.base.trie)
        return next(fitting, self.newest)

    def warm_up(self) -> None:
        """Compile what the first search would compile."""
        if self.newest is not None:
            self.newest.warm_up()

    def drop(self) -> None:
        """Let go of the weights; nobody searches with them any more."""
        self._kept = ()

    def take(self, other: Runners) -> None:
        """Have another's weights: the same, loaded again."""
        self._kept = other._kept

    def rebase(self, view: CatalogueView) -> None:
        """Be ready for the views that follow a merge. In the merging thread, before they come."""
        newest = self.newest
        if newest is None:
            return
        if newest.weights.device.type != "cpu" and newest.trie is not view.base.trie:
            runner = make_runner(newest.weights, view.base.trie)
            runner.warm_up()
            self._kept = (runner, newest)


class HeldByEngine:
    """In the place of `Runners` where the engine holds the weights itself: what it names the
    generation by, whatever becomes of the catalogue."""

    def __init__(self, name: VllmGeneration) -> None:
        self.newest = name

    def of(self, view: CatalogueView) -> VllmGeneration:
        """The same for all views."""
        return self.newest

    def rebase(self, view: CatalogueView) -> None:
        """Tries travel with searches: nothing to do."""

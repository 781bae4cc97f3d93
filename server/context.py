"""What is known of a user when a request says only who they are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol


class UserContexts(Protocol):
    """Recent items of users, oldest first."""

    async def history(self, user_id: str) -> Sequence[str]:
        """Item ids; empty for a user that is not known."""
        ...

    async def remember(self, user_id: str, item_ids: Sequence[str]) -> None:
        """Keep what a request told of its user."""
        ...


class InMemoryUserContexts:
    """The histories that requests brought, of the users seen last. Lost when the process ends."""

    def __init__(self, users: int, items: int) -> None:
        self._users = users
        self._items = items
        self._histories: OrderedDict[str, tuple[str, ...]] = OrderedDict()

    async def history(self, user_id: str) -> Sequence[str]:
        """The last history that came with this user id."""
        return self._histories.get(user_id, ())

    async def remember(self, user_id: str, item_ids: Sequence[str]) -> None:
        """The newest `items` replace what was kept before."""
        self._histories[user_id] = tuple(item_ids[-self._items :])
        self._histories.move_to_end(user_id)
        while len(self._histories) > self._users:
            self._histories.popitem(last=False)

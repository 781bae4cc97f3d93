"""Who sees which arm: a stable hash of the unit, salted with the experiment's name.

The unit is the user where one is known, else the single request. Its hash is a number h of 64 bits;
arm i gets the units with h in [2⁶⁴·S_{i-1}, 2⁶⁴·S_i), S_i the sum of the first i shares. Shares are
fractions and the bounds integers, so an arm gets its share exactly (to one part in 2⁶⁴), on every
machine, with nothing stored. Another name shuffles all units anew. When the last arm grows at the
expense of the first of two, whoever was in it stays in it.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate

from index.errors import ConfigError

HASH_BITS = 64
USER, REQUEST = "user", "request"


@dataclass(frozen=True, slots=True)
class Arm:
    """One variant and its share of the units."""

    name: str
    share: Fraction


@dataclass(frozen=True, slots=True)
class Experiment:
    """Arms of one experiment, control first. Shares that sum to less than 1 leave units outside."""

    name: str
    arms: tuple[Arm, ...]
    _bounds: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """Of each arm, the first hash that is not its own any more."""

    def __post_init__(self) -> None:
        if not self.name or not self.arms:
            raise ConfigError("an experiment needs a name and at least one arm")
        if len({arm.name for arm in self.arms}) < len(self.arms):
            raise ConfigError(f"experiment {self.name!r} names an arm twice")
        if any(arm.share < 0 for arm in self.arms) or sum(arm.share for arm in self.arms) > 1:
            raise ConfigError(
                f"experiment {self.name!r}: shares must not be negative and sum to at most 1"
            )
        sums = accumulate(arm.share for arm in self.arms)
        object.__setattr__(self, "_bounds", tuple(_bound(share) for share in sums))

    @classmethod
    def of(cls, name: str, shares: Mapping[str, str | Fraction]) -> Experiment:
        """From shares such as {"champion": "0.95", "challenger": "1/20"}. Raises ConfigError."""
        try:
            return cls(name, tuple(Arm(arm, Fraction(share)) for arm, share in shares.items()))
        except (ValueError, ZeroDivisionError):
            raise ConfigError(
                f"experiment {name!r}: shares must be numbers such as 0.05 or 1/20"
            ) from None

    def arm_of(self, unit: str) -> Arm | None:
        """The arm of a unit; None for one that takes no part."""
        place = bisect_right(self._bounds, self._hash(unit))
        return self.arms[place] if place < len(self.arms) else None

    def _hash(self, unit: str) -> int:
        salted = f"{self.name}\0{unit}".encode()
        digest = hashlib.blake2b(salted, digest_size=HASH_BITS // 8).digest()
        return int.from_bytes(digest, "big")


def unit_of(user_id: str | None, request_id: str) -> str:
    """What is assigned: `user:ID`, or `request:ID` for a request of nobody known."""
    return f"{USER}:{user_id}" if user_id else f"{REQUEST}:{request_id}"


def _bound(share: Fraction) -> int:
    """The smallest hash that is not below the share."""
    return -((-share.numerator << HASH_BITS) // share.denominator)

"""Every key that onesearch has in Redis, with its lifetime or the reason why it has none.

All begin with PREFIX:FORMAT: (`onesearch:1:`). PREFIX is a setting, so that several shops can share
a server; FORMAT changes when what lies under the keys is no longer readable by older programs.

Key                                    Type    Lifetime
keywords:generic:VERSION:QUERY         string  `GENERIC_TTL_S`; nothing found `NOTHING_TTL_S`;
                                               failed `FAILED_TTL_S`
keywords:personal:VERSION:QUERY:USER   string  `PERSONAL_TTL_S`; the others as above
keywords:version                       string  none: one short text, replaced by each worker
keywords:made                          stream  none: bounded by `MADE_ENTRIES`
queue:live, queue:warm                 stream  none: a job must not be lost. Bounded at the door,
                                               and an entry is deleted when its job is done
queue:jobs                             hash    none: has exactly the jobs that are not done
queue:later                            zset    none: jobs again, waiting for their next attempt
queue:dead                             stream  none: a person decides. Bounded by `DEAD_ENTRIES`
behaviour:events                       stream  none: bounded by `EVENT_ENTRIES` and the setting
                                               behaviour_retention_days
behaviour:exposures                    stream  none: bounded by `EXPOSURE_ENTRIES` and as above
behaviour:seen:EVENT                   string  `SEEN_TTL_S`: an event sent again is known so long
behaviour:batch:BATCH                  string  `BATCH_TTL_S`: the same for a batch of exposures
users:recent:USER                      zset    `RECENT_TTL_S` after the last event; item ids by the
                                               time of the event, the newest remembered_items
generations:moved                      channel none: nothing is stored. A server that misses an
                                               announcement finds the change in the registry itself
sidecar:lease                          string  the sidecar's setting lease_s after its last renewal;
                                               says who works
rates:CLIENT                           hash    until the client's bucket is full again, and 1 s

QUERY, USER, EVENT and CLIENT are digests: a key has a bounded length, and no text of a user.
VERSION is that of the generator: prompt, model, catalogue (`server.keywords.keywords.Source`).
"""

from __future__ import annotations

import hashlib

FORMAT = 1
DEFAULT_PREFIX = "onesearch"
DAY_S = 24 * 3600
GENERIC_TTL_S = 7 * DAY_S
PERSONAL_TTL_S = DAY_S
NOTHING_TTL_S = DAY_S
"""Of an answer without terms: the query is no merchandise, or nothing was found."""
FAILED_TTL_S = 3600
"""How long a query whose job is a dead letter is not asked again."""
MADE_ENTRIES = 200_000
DEAD_ENTRIES = 10_000
EVENT_ENTRIES = 500_000
EXPOSURE_ENTRIES = 200_000
SEEN_TTL_S = DAY_S
BATCH_TTL_S = 3600
RECENT_TTL_S = 30 * DAY_S
_DIGEST_BYTES = 12


class Keys:
    """The keys under one prefix."""

    def __init__(self, prefix: str = DEFAULT_PREFIX) -> None:
        self._root = f"{prefix}:{FORMAT}:"
        self.version = f"{self._root}keywords:version"
        self.made = f"{self._root}keywords:made"
        self.live = f"{self._root}queue:live"
        self.warm = f"{self._root}queue:warm"
        self.jobs = f"{self._root}queue:jobs"
        self.later = f"{self._root}queue:later"
        self.dead = f"{self._root}queue:dead"
        self.announcements = f"{self._root}generations:moved"
        self.events = f"{self._root}behaviour:events"
        self.exposures = f"{self._root}behaviour:exposures"
        self.sidecar = f"{self._root}sidecar:lease"

    def keywords(self, version: str, query: str, user_id: str | None) -> str:
        """Where keywords of a normalised query are kept; `user_id` None: the generic ones."""
        if user_id is None:
            return f"{self._root}keywords:generic:{version}:{digest(query)}"
        return f"{self._root}keywords:personal:{version}:{digest(query)}:{digest(user_id)}"

    def seen(self, event_id: str) -> str:
        """Says that an event was taken."""
        return f"{self._root}behaviour:seen:{digest(event_id)}"

    def batch(self, name: str) -> str:
        """Says that a batch of exposures was written."""
        return f"{self._root}behaviour:batch:{name}"

    def recent(self, user_id: str) -> str:
        """The items that a user clicked or ordered last."""
        return f"{self._root}users:recent:{digest(user_id)}"

    def tokens(self, client: str) -> str:
        """How many requests a client may still send."""
        return f"{self._root}rates:{digest(client)}"


def digest(text: str) -> str:
    """A short name of a text: 24 hexadecimal digits."""
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()

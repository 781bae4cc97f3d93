"""Changes of the champion that come at the same time, beside searches."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from tests.server.test_rollout_faults import searches


def test_changes_that_come_at_once_are_made_one_after_the_other(
    published: Any, follow: Callable[..., httpx.Client]
):
    client, registry = follow(), published.registry

    def change(version: str, what: str, **body: str) -> httpx.Response:
        with httpx.Client(base_url=client.base_url, timeout=60) as own:
            return own.post(f"/admin/generations/{version}:{what}", json=body)

    def at_once(*changes: tuple[Any, ...]) -> Counter[int]:
        with ThreadPoolExecutor(len(changes)) as threads:
            found = [
                threads.submit(change, *one[:2], **(one[2] if len(one) > 2 else {}))
                for one in changes
            ]
            answers = [one.result() for one in found]
        for answer in answers:
            if answer.status_code != 200:
                assert answer.json()["type"] == "/problems/champion-moved"
        live = client.get("/readyz").json()["generation"]
        assert live["version"] == registry.aliases().champion
        assert live["problem"] == ""
        return Counter(answer.status_code for answer in answers)

    first, second, foreign = published.first, published.second, published.foreign
    with searches(client):
        assert at_once((second, "promote"), (foreign, "promote")) == {200: 2}
        champion = registry.aliases().champion
        decided = {"expected_champion": champion}
        others = [version for version in (first, second, foreign) if version != champion]
        # Both were decided on the same champion: the second one is on another by then.
        one, two = ((version, "promote", decided) for version in others)
        assert at_once(one, two) == {200: 1, 409: 1}
        champion = registry.aliases().champion
        assert at_once((champion, "rollback"), (champion, "rollback")) == {200: 1, 409: 1}
        champion = registry.aliases().champion
        target = next(version for version in (first, second, foreign) if version != champion)
        assert set(at_once((champion, "rollback"), (target, "promote"))) <= {200, 409}
    made = [event for event in registry.events() if event["what"] in ("promote", "rollback")]
    assert [event["champion"] for event in made][-1] == registry.aliases().champion

"""vLLM's own OpenAI-compatible server with the logits processor, as docs/vllm.md starts it."""

import re
import time
from typing import Any

import httpx
import numpy as np
import pytest

from index.snapshot import Snapshot

pytest.importorskip("vllm", reason="needs vLLM's environment: make test-vllm")

STARTING_S = 120
SID = re.compile(r"<a_(\d+)><b_(\d+)><c_(\d+)>")


@pytest.fixture(scope="module")
def url(stock_server: Any) -> str:
    """The server was started before all tests; here it is waited for."""
    until = time.monotonic() + STARTING_S
    while time.monotonic() < until and stock_server.process.poll() is None:
        try:
            if httpx.get(f"{stock_server.url}/health", timeout=2).status_code == 200:
                return stock_server.url
        except httpx.TransportError:
            time.sleep(0.2)
    pytest.fail(f"no server: {stock_server.log.read_text()[-2000:]}")


def complete(url: str, **fields: Any) -> httpx.Response:
    request = {
        "model": "onesearch",
        "prompt": "<|query|>red oak desk<|item|>",
        "max_tokens": 4,
        "skip_special_tokens": False,
        "add_special_tokens": False,
        "seed": 1,
        **fields,
    }
    return httpx.post(f"{url}/v1/completions", json=request, timeout=60)


def texts(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [choice["text"] for choice in response.json()["choices"]]


def test_greedy_and_sampled_answers_are_legal(url: str, tiny_pair: Any):
    snapshot = Snapshot.open(tiny_pair.snapshot)
    legal = {
        tuple(codes)
        for codes in snapshot.trie.codes_of_leaves(np.arange(snapshot.trie.n_leaves)).tolist()
    }
    arguments = {"sid_constrained": "true"}
    found = texts(complete(url, n=48, temperature=1.5, vllm_xargs=arguments))
    found += texts(complete(url, temperature=0, vllm_xargs=arguments))
    sids = [SID.fullmatch(text.removesuffix("<|end|>")) for text in found]
    assert all(sids), found
    assert {tuple(map(int, sid.groups())) for sid in sids if sid} <= legal
    assert len(set(found)) > 4


def test_a_filter_holds_and_other_requests_are_free(url: str):
    first = texts(complete(url, temperature=0, vllm_xargs={"sid_constrained": 1}))[0]
    code = SID.match(first)
    assert code is not None
    other = next(
        text
        for text in texts(complete(url, n=32, temperature=2, vllm_xargs={"sid_constrained": 1}))
        if not text.startswith(f"<a_{code[1]}>")
    )
    begin = other[: other.index(">") + 1]
    filtered = complete(url, n=8, temperature=1, vllm_xargs={"sid_filter": [begin]})
    assert all(text.startswith(begin) for text in texts(filtered))
    free = texts(complete(url, n=16, temperature=2))
    assert not all(SID.match(text) for text in free)


def test_log_probabilities_are_scores(url: str, tiny_pair: Any):
    """Of the whole level: what is legal of it sums up to less than one."""
    response = complete(url, temperature=0, logprobs=8, vllm_xargs={"sid_constrained": 1})
    choice = response.json()["choices"][0]["logprobs"]
    scores = choice["token_logprobs"][:3]
    assert all(score < 0 for score in scores)
    for level, score in enumerate(scores):
        assert max(choice["top_logprobs"][level].values()) == pytest.approx(score)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"sid_prefix": [99]}, "code 99 at level 0, which has codes 0 to 7"),
        ({"sid_prefix": [0, 0, 0, 0]}, "4 codes, a SID has 3"),
        ({"sid_filter": ["<a_1"]}, "no SID or beginning of one"),
        ({"sid_nope": 1}, "unknown argument 'sid_nope'"),
        ({"sid_constrained": "perhaps"}, "must be true or false"),
    ],
)
def test_wrong_arguments_are_a_400_that_says_what(url: str, arguments: Any, told: str):
    response = complete(url, vllm_xargs=arguments)
    assert response.status_code == 400
    assert told in response.json()["error"]["message"]

"""The processor in both interfaces with made-up batches, on a CPU; V2's is not proven on a GPU."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from index.errors import ArtifactError, ConfigError

pytest.importorskip("vllm", reason="vLLM lives in an environment of its own: make test-vllm")

from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor.interface import (
    BatchUpdate,
    MoveDirectionality,
)
from vllm.v1.worker.gpu.sample.logits_processor.interface import (
    LogitsContext,
    LogitsProcRequestState,
)
from vllm.v1.worker.gpu.sample.logits_processor.loader import (
    build_custom_logits_processors_params_validator,
)

from decoding.vllm import processor
from decoding.vllm.processor import PROCESSOR, SidProcessor

CAPACITY, VOCABULARY, END_TOKEN, SIZE = 12, 88, 1, 16
OFFSET = (40, 56, 72)
LONGEST = 24


class Request(NamedTuple):
    """A request and the tokens it has generated, as vLLM would hand them."""

    prompt: list[int]
    arguments: dict[str, Any] | None
    output: list[int]

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(max_tokens=4, extra_args=self.arguments)


@pytest.fixture
def config(tiny_model, tiny_snapshot):
    return SimpleNamespace(
        additional_config={"onesearch": {"snapshot": str(tiny_snapshot)}},
        model_config=SimpleNamespace(model=str(tiny_model.checkpoint)),
        scheduler_config=SimpleNamespace(max_num_seqs=CAPACITY),
    )


@pytest.fixture
def sids(tiny_trie) -> list[tuple[int, ...]]:
    return [tuple(sid) for sid in tiny_trie.layout.unpack(tiny_trie.keys).tolist()]


def expected_row(logits, request: Request, sids) -> torch.Tensor:
    """What one row becomes, from the definitions."""
    arguments = request.arguments or {}
    if not any(key.startswith("sid_") for key in arguments):
        return logits.clone()
    row = torch.full_like(logits, -torch.inf)
    prefix = list(arguments.get("sid_prefix", []))
    first = len(prefix)
    prefix += [
        token - offset for token, offset in zip(request.output, OFFSET[first:], strict=False)
    ]
    level = len(prefix)
    if level == 3:
        row[END_TOKEN] = 0.0
        return row
    allowed = {sid[level] for sid in sids if list(sid[:level]) == prefix}
    if "sid_allowed" in arguments and not request.output:
        allowed = set(arguments["sid_allowed"])
    if "sid_filter" in arguments:
        entries = [
            [int(part.split("_")[1]) for part in text.strip("<>").split("><")]
            for text in arguments["sid_filter"]
        ]
        allowed = {
            code
            for code in allowed
            if any(
                all(ours == theirs for ours, theirs in zip([*prefix, code], entry, strict=False))
                for entry in entries
            )
        }
    if not allowed:
        row[END_TOKEN] = 0.0
        return row
    part = logits[OFFSET[level] : OFFSET[level] + SIZE].double()
    if "sid_prior" in arguments:
        start = sum([SIZE] * (level - first))
        prior = arguments["sid_prior"][start : start + SIZE]
        part = part + torch.tensor(prior or [0.0] * SIZE).double()
    scores = torch.log_softmax(part, 0)
    for code in allowed:
        row[OFFSET[level] + code] = scores[code]
    return row


def drawn_request(random: np.random.Generator, sids) -> Request:
    """Any kind of request, at any point of its life."""
    prompt = random.integers(2, 40, int(random.integers(1, 9))).tolist()
    if random.random() < 0.2:
        return Request(
            prompt, random.choice([None, {"other": 1}]), random.integers(0, 88, 2).tolist()
        )
    sid = sids[int(random.integers(len(sids)))]
    first = int(random.integers(0, 3))
    reached = int(random.integers(first, 4))
    arguments: dict[str, Any] = {"sid_prefix": list(sid[:first])}
    if random.random() < 0.3:
        arguments["sid_allowed"] = random.choice(SIZE, 4, replace=False).tolist()
    elif random.random() < 0.4:
        others = [sids[int(random.integers(len(sids)))] for _ in range(3)]
        chosen = [other[: int(random.integers(1, 4))] for other in [sid, *others]]
        arguments["sid_filter"] = [
            "".join(f"<{letter}_{code}>" for letter, code in zip("abc", one, strict=False))
            for one in chosen
        ]
    if random.random() < 0.4:
        count = SIZE * random.choice([1, 3 - first])
        arguments["sid_prior"] = random.normal(0, 2, int(count)).astype(np.float32).tolist()
    if not first and random.random() < 0.3:
        arguments = {"sid_constrained": True}
    output = [OFFSET[level] + sid[level] for level in range(first, reached)]
    return Request(prompt, arguments, output + [END_TOKEN] * (reached == 3))


def assert_rows(found, logits, batch, sids):
    for row, request in enumerate(batch):
        expected = expected_row(logits[row], request, sids)
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=0)


def test_v1_through_a_life_of_batches(config, sids):
    random, drawn = np.random.default_rng(0), torch.Generator().manual_seed(0)
    tested = SidProcessor(config, torch.device("cpu"), False)
    assert not tested.is_argmax_invariant()
    batch: list[Request] = []
    for _ in range(300):
        removed = sorted((row for row in range(len(batch)) if random.random() < 0.3), reverse=True)
        added, moved = [], []
        free = list(removed)
        new_count = int(random.integers(0, 4))
        for _ in range(new_count):
            if free:
                row = free.pop()
            elif len(batch) < CAPACITY:
                row = len(batch)
                batch.append(Request([], None, []))
            else:
                break
            batch[row] = drawn_request(random, sids)
            added.append((row, batch[row].params, batch[row].prompt, batch[row].output))
        # As vLLM condenses its batch: the last request moves into a free row.
        for row in sorted(free):
            while len(batch) - 1 in free and len(batch) - 1 > row:
                free.remove(len(batch) - 1)
                batch.pop()
            if row >= len(batch):
                continue
            if row == len(batch) - 1:
                batch.pop()
                continue
            moved.append((len(batch) - 1, row, MoveDirectionality.UNIDIRECTIONAL))
            batch[row] = batch.pop()
        if len(batch) > 2 and random.random() < 0.5:
            one, two = random.choice(len(batch), 2, replace=False).tolist()
            batch[one], batch[two] = batch[two], batch[one]
            moved.append((one, two, MoveDirectionality.SWAP))
        nothing = not (removed or added or moved)
        tested.update_state(None if nothing else BatchUpdate(len(batch), removed, added, moved))
        logits = torch.randn((len(batch), VOCABULARY), generator=drawn) * 3
        given = logits.clone()
        found = tested.apply(given)
        assert found is given
        assert_rows(found, logits, batch, sids)
        for row, request in enumerate(batch):
            _go_on(request, found[row], random)


def _go_on(request: Request, scores: torch.Tensor, random: np.random.Generator) -> None:
    """A constrained request generates one more token."""
    constrained = any(key.startswith("sid_") for key in request.arguments or {})
    if constrained and len(request.output) < 4 and random.random() < 0.7:
        request.output.append(int(scores.argmax()))


class Buffer(NamedTuple):
    """As V2's buffers look to a processor."""

    gpu: torch.Tensor
    np: np.ndarray


def v2_state() -> LogitsProcRequestState:
    tokens = torch.zeros((CAPACITY, LONGEST), dtype=torch.int32)
    length = torch.zeros(CAPACITY, dtype=torch.int32)
    return LogitsProcRequestState(
        device=torch.device("cpu"),
        max_num_reqs=CAPACITY,
        vocab_size=VOCABULARY,
        all_token_ids=SimpleNamespace(gpu=tokens),
        prompt_len=Buffer(length, length.numpy()),
        prefill_len=SimpleNamespace(),
        total_len=SimpleNamespace(),
    )


def v2_context(slots: list[int], lengths: list[int]) -> LogitsContext:
    mapping = torch.tensor(slots, dtype=torch.int32)
    return LogitsContext(
        expanded_idx_mapping=mapping,
        idx_mapping=mapping,
        idx_mapping_np=mapping.numpy(),
        expanded_local_pos=torch.zeros(len(slots), dtype=torch.int32),
        input_ids=torch.zeros(len(slots), dtype=torch.int32),
        pos=torch.tensor(lengths) - 1,
        seq_lens_upper_bound_np=np.array(lengths, dtype=np.int32),
    )


def test_v2_through_a_life_of_slots(config, sids):
    random, drawn = np.random.default_rng(1), torch.Generator().manual_seed(1)
    state = v2_state()
    tested = SidProcessor(config, state)
    slots: dict[int, Request] = {}
    for _ in range(300):
        for slot in [slot for slot in slots if random.random() < 0.2]:
            del slots[slot]
        for slot in random.permutation(CAPACITY)[: int(random.integers(0, 4))].tolist():
            request = slots[slot] = drawn_request(random, sids)
            state.prompt_len.gpu[slot] = len(request.prompt)
            constrained = any(key.startswith("sid_") for key in request.arguments or {})
            assert tested.add_request(slot, request.params) or not constrained
        tested.apply_staged_writes()
        order = random.permutation(list(slots)).astype(int).tolist()
        if not order:
            continue
        for slot in order:
            tokens = slots[slot].prompt + slots[slot].output
            state.all_token_ids.gpu[slot] = 87
            state.all_token_ids.gpu[slot, : len(tokens)] = torch.tensor(tokens)
        lengths = [len(slots[slot].prompt + slots[slot].output) for slot in order]
        logits = torch.randn((len(order), VOCABULARY), generator=drawn) * 3
        found = tested.apply(logits.clone(), v2_context(order, lengths))
        batch = [slots[slot] for slot in order]
        assert_rows(found, logits, batch, sids)
        for row, request in enumerate(batch):
            _go_on(request, found[row], random)


def test_v2_refuses_speculative_decoding(config):
    tested = SidProcessor(config, v2_state())
    tested.add_request(0, SamplingParams(extra_args={"sid_constrained": True}))
    with pytest.raises(ValueError, match="speculative"):
        tested.apply(torch.zeros((2, VOCABULARY)), v2_context([0], [3]))


def test_vllm_takes_the_class_by_name_for_both_runners():
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.sample.logits_processor import _load_logitsprocs_by_fqcns

    assert _load_logitsprocs_by_fqcns([PROCESSOR]) == [SidProcessor]
    validate = build_custom_logits_processors_params_validator([PROCESSOR])
    validate(SamplingParams(extra_args={"sid_prefix": [1, 2]}))
    # What it answers with HTTP 400.
    with pytest.raises(VLLMValidationError, match="unknown argument 'sid_prefx'"):
        validate(SamplingParams(extra_args={"sid_prefx": [1]}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sid_prefix": [0, 16]}, "code 16 at level 1, which has codes 0 to 15"),
        ({"sid_prefix": [3, 5]}, "no SID begins with these codes"),
        ({"sid_filter": ["<a_3><b_9>"]}, "leaves nothing"),
        ({"sid_prefix": [7], "sid_filter": ["<a_3>"]}, "leaves nothing: .* with sid_prefix"),
        ({"sid_prior": [0.0] * 17}, "17 numbers, after 0 codes it must have 16 or 48"),
    ],
)
def test_what_no_sid_fits_is_refused_where_requests_come_in(
    tiny_snapshot, monkeypatch, arguments, message
):
    monkeypatch.setenv("ONESEARCH_SNAPSHOT", str(tiny_snapshot))
    processor._known_to_frontend.cache_clear()
    try:
        SidProcessor.validate_params(SamplingParams(extra_args={"sid_prefix": [3, 0]}))
        SidProcessor.validate_params(SamplingParams(extra_args=None))
        with pytest.raises(ValueError, match=message):
            SidProcessor.validate_params(SamplingParams(extra_args=arguments))
    finally:
        processor._known_to_frontend.cache_clear()


def test_all_requests_are_constrained_where_that_is_set(config, sids):
    config.additional_config["onesearch"]["constrain"] = "always"
    tested = SidProcessor(config, torch.device("cpu"), False)
    added = [
        (0, SamplingParams(max_tokens=4), [5], []),
        (1, SamplingParams(max_tokens=4, extra_args={"sid_constrained": False}), [5], []),
    ]
    tested.update_state(BatchUpdate(2, [], added, []))
    logits = torch.randn((2, VOCABULARY))
    batch = [Request([5], {"sid_constrained": True}, []), Request([5], None, [])]
    assert_rows(tested.apply(logits.clone()), logits, batch, sids)


def test_a_request_that_slipped_through_ends_at_once(config):
    tested = SidProcessor(config, torch.device("cpu"), False)
    wrong = [{"sid_prefix": [99]}, {"sid_prefix": [3, 5]}, {"sid_filter": ["<a_3><b_9>"]}]
    added = [
        (row, SamplingParams(max_tokens=4, extra_args=arguments), [5], [])
        for row, arguments in enumerate(wrong[:2])
    ]
    tested.update_state(BatchUpdate(2, [], added, []))
    found = tested.apply(torch.randn((2, VOCABULARY)))
    assert found.argmax(dim=1).tolist() == [END_TOKEN] * 2
    assert torch.isinf(found).sum() == 2 * (VOCABULARY - 1)


def test_settings_that_cannot_be_are_refused(config, tmp_path):
    device = torch.device("cpu")
    config.additional_config["onesearch"]["constrain"] = "sometimes"
    with pytest.raises(ConfigError, match="'sometimes'"):
        SidProcessor(config, device)
    config.additional_config = {"onesearch": {"snapshots": "x"}}
    with pytest.raises(ConfigError, match="unknown setting 'snapshots'"):
        SidProcessor(config, device)
    config.additional_config = None
    config.model_config.model = str(tmp_path)
    with pytest.raises(ArtifactError, match="no checkpoint with SIDs"):
        SidProcessor(config, device)

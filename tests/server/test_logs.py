import io
import json
import logging
import time
import warnings
from typing import Any

import pytest

from server.logs import forward_standard_logging, make_logger


def lines(log_lines: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log_lines.getvalue().splitlines()]


def request_line(log_lines: io.StringIO) -> dict[str, Any]:
    """The line is written after the answer is sent: wait for it."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        found = [line for line in lines(log_lines) if line["event"] == "request"]
        if found:
            assert len(found) == 1
            return found[0]
        time.sleep(0.01)
    raise AssertionError("no line about the request")


def test_a_request_is_one_json_line_without_its_query(stub_client: Any, log_lines: io.StringIO):
    response = stub_client().post("/v1/search", json={"query": "private matter"})
    line = request_line(log_lines)
    assert line["request_id"] == response.headers["x-request-id"]
    assert [line["route"], line["status"], line["method"]] == ["/v1/search", 200, "POST"]
    assert line["duration_ms"] > 0
    assert "private" not in log_lines.getvalue()


def test_queries_are_logged_where_a_setting_says_so(stub_client: Any, log_lines: io.StringIO):
    stub_client(log_queries=True).post("/v1/search", json={"query": "private matter"})
    assert request_line(log_lines)["query"] == "private matter"


def test_line_breaks_in_paths_cannot_forge_lines(stub_client: Any, log_lines: io.StringIO):
    stub_client().get("/x%0a%7b%22event%22%3a1%7d")
    assert request_line(log_lines)["route"] == "other"
    assert len(lines(log_lines)) == 1


def test_levels(log_lines: io.StringIO):
    log = make_logger("warning", log_lines)
    log.info("no")
    log.warning("yes", text="\ud800")
    assert lines(log_lines)[0]["event"] in ("yes", "'yes'")


@pytest.fixture
def restored_logging():
    root, captured = logging.getLogger(), warnings.showwarning
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(False)
    warnings.showwarning = captured
    root.handlers, root.level = handlers, level


def test_other_libraries_log_the_same_way(log_lines: io.StringIO, restored_logging: None):
    forward_standard_logging(make_logger("info", log_lines))
    logging.getLogger("some.library").warning("careful: %s", 7)
    [line] = lines(log_lines)
    assert [line["event"], line["logger"], line["level"]] == [
        "careful: 7",
        "some.library",
        "warning",
    ]

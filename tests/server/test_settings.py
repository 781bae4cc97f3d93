from pathlib import Path

import pytest

from index.errors import ConfigError
from server.settings import DEFAULT_PORT, load


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch):
    for name in ("ONESEARCH_PORT", "ONESEARCH_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def test_arguments_beat_environment_beats_file_beats_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "s.toml"
    file.write_text("port = 1\nbeam_width = 7\n")
    assert load().port == DEFAULT_PORT
    assert load(file).port == 1
    monkeypatch.setenv("ONESEARCH_PORT", "2")
    assert load(file).port == 2
    assert load(file, port=3).port == 3
    assert load(file, port=None).beam_width == 7
    monkeypatch.setenv("ONESEARCH_CONFIG", str(file))
    assert load().beam_width == 7


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nope = 1", "nope: no such setting"),
        ("port = 70000", "port (ONESEARCH_PORT)"),
        ('engine = "other"', "engine"),
        ("port = ", "not valid TOML"),
    ],
)
def test_wrong_files_are_told_in_one_line(tmp_path: Path, text: str, told: str):
    file = tmp_path / "s.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert told in str(caught.value)


def test_a_missing_file_and_a_wrong_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="is not there"):
        load(tmp_path / "none.toml")
    monkeypatch.setenv("ONESEARCH_PORT", "eighty")
    with pytest.raises(ConfigError, match="ONESEARCH_PORT"):
        load()

"""Where the real data sets lie; tests that read them are skipped elsewhere."""

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).parents[4] / "shared" / "data"


@pytest.fixture
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data at {SHARED_DATA}")
    return SHARED_DATA

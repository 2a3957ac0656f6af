"""Where the screenshots go."""

from pathlib import Path

import pytest


@pytest.fixture
def screenshots(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Folder for screenshots: that of --screenshots (or HILUM_SCREENSHOTS), else the test's own."""
    given = request.config.getoption("--screenshots")
    folder = Path(given).absolute() if given else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    return folder

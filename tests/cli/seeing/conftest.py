"""Two small runs that many tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scenes import demo_model, kept


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One with two passes and one with a single one, on the demo."""
    home = tmp_path_factory.mktemp("runs")
    return kept(demo_model(), home / "steered"), kept(demo_model("linear"), home / "linear")

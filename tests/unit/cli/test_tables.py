"""The tables that close a run."""

from __future__ import annotations

import pytest
from rich.console import Console

from toast_cli.cli.output.run_summary import build_pretuning_table


def printed(results: dict[str, dict[str, float]]) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(build_pretuning_table("vit_demo on demo", results))
    return " ".join(capture.get().split())


@pytest.mark.parametrize(("after", "explained"), [(0.09, True), (0.07, False), (0.03, False)])
def test_a_reconstruction_loss_that_went_up_is_explained_where_it_is_told(after: float, explained: bool) -> None:
    said = printed({"before": {"1": 0.5, "2": 0.07}, "after": {"1": 0.4, "2": after}})
    assert ("a least-squares start begins at its minimum" in said) is explained
    assert f"│ 2 │ 0.07 │ {after} │" in said

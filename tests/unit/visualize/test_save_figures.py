"""Pictures of different runs, images and texts in one folder: none is written over by another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.scenes import demo_model, scenes, viewer_of
from toast_cli.model.model import Model
from toast_cli.visualize.save_figures import find_free_name, save_attention_figure, save_comparison_figure


@pytest.fixture(scope="module")
def models() -> list[Model]:
    return [demo_model(seed=0), demo_model(seed=1)]


def test_another_run_and_another_image_of_one_name_get_names_of_their_own(models: list[Model], tmp_path: Path) -> None:
    one, other = map(viewer_of, models)
    scene, second = scenes(2)
    made = [
        save_attention_figure(*how, tmp_path, "it")
        for how in ((one, scene), (other, scene), (one, second), (one, scene))
    ]
    names = [Path(record["figure"]).name for record in made]
    assert names == ["it.png", "it-2.png", "it-3.png", "it.png"]  # the same again is written over
    for record in made[:3]:
        assert json.loads(Path(record["figure"]).with_suffix(".json").read_text()) == record
    assert len({Path(record["maps"]).read_bytes() for record in made}) == 3


def test_so_do_several_runs_side_by_side(models: list[Model], tmp_path: Path) -> None:
    viewers = [viewer_of(model, name) for model, name in zip(models, "ab", strict=True)]
    first, second = scenes(2)
    figures = [
        save_comparison_figure(viewers, shown, tmp_path)[0]["figure"]
        for shown in ([("x", first)], [("y", second)], [("x", first)])
    ]
    assert [Path(figure).name for figure in figures] == [
        "comparison-a-b.png",
        "comparison-a-b-2.png",
        "comparison-a-b.png",
    ]


def test_a_record_that_is_damaged_or_of_an_older_version_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "it.json").write_text("{")
    (tmp_path / "it-2.json").write_text("{}")
    assert find_free_name(tmp_path, "it", "0") == "it-3"

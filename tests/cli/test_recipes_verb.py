from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from toast_cli.cli.app import app
from toast_cli.recipe import builtin

GOOD = "# Mine.\nbackbone: vit_s16\ndataset: folder:/birds\nmethod: linear\n"


def recipes(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["recipes", *arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(autouse=True)
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One built-in recipe with an awkward header; tests run in an empty folder."""
    folder = tmp_path / "shelf"
    (folder / "demo").mkdir(parents=True)
    (folder / "demo" / "birds.yaml").write_text(GOOD.replace("Mine.", "Birds [bold] in boxes.\n# Second line."))
    monkeypatch.setattr(builtin, "get_recipes_folder", lambda: folder)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def test_ls_is_a_line_per_recipe() -> None:
    code, out, _ = recipes("ls")
    assert code == 0
    line = next(line for line in out.splitlines() if "demo/birds" in line)
    assert line.split() == ["demo/birds", "vit_s16", "folder", "linear", "Birds", "[bold]", "in", "boxes."]


def test_ls_is_json_for_machines() -> None:
    code, out, _ = recipes("ls", "--json")
    about = {"backbone": "vit_s16", "dataset": "folder", "method": "linear", "about": "Birds [bold] in boxes."}
    assert code == 0
    assert json.loads(out) == [{"name": "demo/birds", **about}]


def test_show_prints_the_recipe_as_written(shelf: Path) -> None:
    assert recipes("show", "demo/birds")[:2] == (0, (shelf / "demo/birds.yaml").read_text())


def test_an_unknown_recipe_is_answered_with_the_nearest() -> None:
    code, out, err = recipes("show", "demo/brids")
    assert (code, out) == (2, "")
    assert "Did you mean 'demo/birds'?" in err


def test_an_unknown_subcommand_is_answered_with_the_nearest() -> None:
    code, _, err = recipes("validat")
    assert code == 2
    assert "Did you mean 'validate'?" in err


def test_copy_goes_to_the_current_folder_or_where_it_is_told(shelf: Path) -> None:
    text = (shelf / "demo/birds.yaml").read_text()
    assert recipes("copy", "demo/birds")[:2] == (0, "birds.yaml\n")
    assert Path("birds.yaml").read_text() == text
    assert recipes("copy", "demo/birds", "sub/mine.yaml")[0] == 0
    assert Path("sub/mine.yaml").read_text() == text


def test_copy_never_writes_over_a_file() -> None:
    Path("birds.yaml").write_text("precious")
    code, _, err = recipes("copy", "demo/birds")
    assert code == 2
    assert "birds.yaml already exists" in err
    assert Path("birds.yaml").read_text() == "precious"


def test_validate_checks_every_file_and_reports_each() -> None:
    Path("bad.yaml").write_text(GOOD.replace("linear", "liner") + "training:\n  epochz: 3\n")
    Path("good.yaml").write_text(GOOD)
    code, out, err = recipes("validate", "bad.yaml", "good.yaml", "gone.yaml", "demo/birds")
    assert code == 2
    assert out == "good.yaml: valid\ndemo/birds: valid\n"
    assert "method.name = 'liner' (bad.yaml:4): There is no method 'liner'. Did you mean 'linear'?" in err
    assert "training.epochz = 3 (bad.yaml:6): there is no such field. Did you mean 'epochs'?" in err
    assert "There is no file gone.yaml." in err


def test_validate_is_quietly_content() -> None:
    Path("good.yaml").write_text(GOOD)
    assert recipes("validate", "good.yaml") == (0, "good.yaml: valid\n", "")


def test_the_schema_is_json_that_knows_every_section() -> None:
    code, out, _ = recipes("schema")
    assert code == 0
    assert {"backbone", "dataset", "method", "task", "training"} <= set(json.loads(out)["properties"])


def test_what_comes_with_toast_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    names = builtin.list_recipes()
    code, out, err = recipes("validate", *names)
    assert (code, err) == (0, "")
    assert out.count(": valid\n") == len(names) > 0
    for name in names:
        assert builtin.get_header_comment(builtin.find_recipe(name).text)
        assert yaml.safe_load(builtin.find_recipe(name).text)

"""What pip installs: a wheel with recipes and plugins in it, and other people's plugins beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.cli.conftest import ROOT, TINY_DEMO, toast_from_the_shell


def pip_install(package: Path, target: Path) -> None:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--target",
            target,
            package,
        ],
        check=True,
        timeout=300,
    )


def test_a_wheel_brings_its_recipes_its_plugins_and_the_demos_weights(tmp_path: Path) -> None:
    pip_install(ROOT, tmp_path)
    # Neither the checkout nor an editable install of it may help: only the wheel's own files are on the path.
    script = (
        "import sys; sys.path[:] = [p for p in sys.path if p not in sys.argv[1:]];"
        "import toast_cli, toast_vit, json; from importlib.resources import files;"
        "from toast_cli import registry; from toast_cli.recipe.builtin import list_recipes, list_suites;"
        "from toast_cli.utils.formatting import TEMPLATES;"
        "print(json.dumps([toast_cli.__file__, TEMPLATES.list_templates(['html', 'tex']),"
        "list_recipes() + list_suites(), registry.list_names(registry.BACKBONES),"
        "files('toast_vit').joinpath('weights/vit_demo.safetensors').is_file()]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(ROOT), str(ROOT / "plugins")],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    file, templates, recipes, backbones, weights = json.loads(done.stdout)
    assert Path(file).is_relative_to(tmp_path)
    assert {"demo/toast", "vtab1k", "demo/pretrain-2-crowded", "fgvc/cub-vit_b16-toast-lite"} <= set(recipes)
    assert {"bench/tables/templates/table.tex", "visualize/templates/base.html"} <= set(templates)
    assert {"vit_demo", "vit_b16"} <= set(backbones)
    assert weights


def test_a_third_partys_plugin_is_listed_and_tunes_without_an_edit_to_the_core(tmp_path: Path) -> None:
    pip_install(ROOT / "plugins" / "example", tmp_path / "site")
    listed = toast_from_the_shell("backbones", "--json", PYTHONPATH=str(tmp_path / "site"))
    assert listed.code == 0, listed.err
    assert "example_tiny" in listed.out and "toast-example" in listed.out
    run = tmp_path / "run"
    said = toast_from_the_shell(
        "tune", "--backbone", "example_tiny", "--dataset", "demo", "--output-dir", run, *TINY_DEMO,
        PYTHONPATH=str(tmp_path / "site"),
    )  # fmt: skip
    assert said.code == 0, said.err
    said = toast_from_the_shell("eval", "--run", run, "--json", PYTHONPATH=str(tmp_path / "site"))
    assert said.code == 0, said.err
    first = json.loads((run / "results.json").read_text())
    assert json.loads(said.out)["test"]["accuracy"] == first["test"]["accuracy"]

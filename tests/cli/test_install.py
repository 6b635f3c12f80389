"""What a release holds and what pip installs: an sdist, a wheel with recipes and plugins, and plugins of others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import ROOT, TINY_DEMO, toast_from_the_shell
from toast_cli.utils.version import __version__


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


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an sdist and of the wheel that was built from it, as 'make dist' builds them."""
    folder = tmp_path_factory.mktemp("dist")
    # Without isolation, nothing is downloaded: the build backend is a development dependency.
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT],
        check=True, timeout=300, env=clean_environment(),
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def installed(distributions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of an empty environment into which pip installed the wheel.

    Its dependencies are those of the environment that runs the tests. Neither the checkout nor an editable install of
    it is on its path: Python ignores the `.pth` files of a folder that was added by one.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    (wheel,) = distributions.glob("*.whl")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", scripts / "python", "install", "--quiet", "--no-deps", wheel],
        check=True, timeout=300, env=clean_environment(),
    )  # fmt: skip
    packages = run(scripts / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    (Path(packages) / "dependencies.pth").write_text(str(Path(torch.__file__).parent.parent))
    return scripts


def clean_environment() -> dict[str, str]:
    """The environment of this process without what puts the checkout on the path of another."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(), cwd=cwd, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def test_the_package_index_would_take_both_distributions(distributions: Path) -> None:
    files = sorted(distributions.iterdir())
    assert [file.name for file in files] == [
        f"toast_tune-{__version__}-py3-none-any.whl",
        f"toast_tune-{__version__}.tar.gz",
    ]
    run(sys.executable, "-m", "twine", "check", "--strict", *files)
    with tarfile.open(files[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"tests/cli/test_install.py", "CONTRIBUTING.md", "SECURITY.md", "Makefile", "requirements.lock"} <= names


def test_a_wheel_brings_its_recipes_its_plugins_and_the_demos_weights(installed: Path, tmp_path: Path) -> None:
    script = (
        "import toast_cli, toast_vit, json; from importlib.resources import files;"
        "from toast_cli import registry; from toast_cli.recipe.builtin import list_recipes, list_suites;"
        "from toast_cli.utils.formatting import get_templates;"
        "print(json.dumps([toast_cli.__file__, get_templates().list_templates(['html', 'tex']),"
        "list_recipes() + list_suites(), registry.list_names(registry.BACKBONES),"
        "files('toast_vit').joinpath('weights/vit_demo.safetensors').is_file()]))"
    )
    file, templates, recipes, backbones, weights = json.loads(
        run(installed / "python", "-c", script, cwd=tmp_path).stdout
    )
    assert Path(file).is_relative_to(installed.parent)
    assert {"demo/toast", "vtab1k", "demo/pretrain-2-crowded", "fgvc/cub-vit_b16-toast-lite"} <= set(recipes)
    assert {"bench/tables/templates/table.tex", "visualize/templates/base.html"} <= set(templates)
    assert {"vit_demo", "vit_b16"} <= set(backbones)
    assert weights


def test_the_command_of_an_installed_wheel_tunes_and_evaluates(installed: Path, tmp_path: Path) -> None:
    report = json.loads(run(installed / "toast", "doctor", "--json", cwd=tmp_path).stdout)
    assert report["versions"]["toast"] == __version__
    assert report["missing"] == report["failed"] == []
    run(installed / "toast", "tune", "--output-dir", "run", *TINY_DEMO, cwd=tmp_path)
    said = json.loads(run(installed / "toast", "eval", "--run", "run", "--json", cwd=tmp_path).stdout)
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert said["test"]["accuracy"] == results["test"]["accuracy"]


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

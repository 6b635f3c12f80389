"""`toast import` given what toast itself wrote: told as what it is, and how it is used."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import TINY_DEMO, toast
from toast_cli.export import verification_worker


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, toast_run: Path, pretuned_run: Path) -> Path:
    """A run, a pre-tuned start, and exports of both."""
    here = tmp_path_factory.mktemp("made")
    shutil.copytree(toast_run, here / "run")
    shutil.copytree(pretuned_run, here / "pre")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(verification_worker, "run_in_new_process", verification_worker.open_and_run_export)
        for run, words in (
            ("run", ["--out", here / "one"]),
            ("run", ["--what", "backbone", "--out", here / "plain"]),
            ("run", ["--format", "hf", "--out", here / "hf"]),
            ("pre", ["--out", here / "start"]),
        ):
            said = toast("export", "--run", here / run, *words)
            assert said.code == 0, said.err
    return here


OWN = {
    "run": ("a toast run or adapter", "eval --run {}/run"),
    "run/adapter": ("a toast run or adapter", "eval --run {}/run/adapter"),
    "run/adapter/adapter_model.safetensors": ("part of a toast adapter", "eval --run {}/run/adapter"),
    "one.safetensors": ("by 'toast export'", "eval --run {}/one.safetensors"),
    "hf": ("by 'toast export --format hf'", "eval --run {}/hf"),
    "hf/model.safetensors": ("by 'toast export'", "eval --run {}/hf/model.safetensors"),
    "pre": ("a pre-tuned toast artifact", "tune --init-from {}/pre"),
    "pre/artifact/feedback.safetensors": ("part of a pre-tuned toast artifact", "tune --init-from {}/pre/artifact"),
    "start.safetensors": ("a pre-tuned artifact", "tune --init-from {}/start.safetensors"),
}


@pytest.mark.parametrize("what", OWN)
def test_what_toast_wrote_is_told_how_it_is_used(made: Path, what: str) -> None:
    kind, use = OWN[what]
    toast("import", made / what).fails(2, kind, f"toast {use.format(made)}", error="export.import-not-needed")


def test_what_is_advised_works(made: Path, tmp_path: Path) -> None:
    for run in ("run/adapter", "hf"):
        said = toast("eval", "--run", made / run)
        assert said.code == 0, said.err
    for number, start in enumerate(("pre/artifact", "start.safetensors")):
        words = ["training.epochs=1", "--output-dir", tmp_path / str(number), "--init-from", made / start]
        said = toast("tune", *TINY_DEMO, *words)
        assert said.code == 0, said.err


def test_a_plain_backbone_is_still_sent_to_weights(made: Path) -> None:
    toast("import", made / "plain.safetensors", "--backbone", "vit_demo").fails(
        1, "--weights", error="checkpoint.no-feedback"
    )

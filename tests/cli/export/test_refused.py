"""Exports and imports of what is wrong: options, damage, hostile files, a full disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.cli.conftest import toast
from tests.cli.export.conftest import top_down_parts
from toast_cli.export import export_run


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--format", "onxx"], "onnx"),
        (["--format", "onnx", "--what", "adapter"], "full"),
        (["--format", "onnx", "--dtype", "bfloat16"], "float16"),
        (["--what", "artifact"], "adapter"),
        (["--maps"], "onnx, openvino or torch-export"),
        (["--normalize"], "onnx, openvino or torch-export"),
        (["--format", "hf", "--maps"], ".attention(images)"),
        (["--dtype", "int8"], "float16"),
        (["--what", "backbone", "--fold"], "--fold"),
        (["--push", "a/b/c"], "repository"),
    ],
)
def test_options_that_do_not_go_together_are_refused(here: Path, run: Path, options: list[str], words: str) -> None:
    toast("export", "--run", run, "--out", here / "out", *options).fails(2, words)
    assert not (here / "out").exists()


@pytest.mark.usefixtures("quickly")
def test_a_truncated_and_a_hostile_file_are_refused(here: Path, run: Path) -> None:
    target = here / "model.safetensors"
    assert toast("export", "--run", run, "--what", "full", "--out", target).code == 0
    whole = target.read_bytes()
    target.write_bytes(whole[:-1000])
    toast("eval", "--run", target).fails(1, "damaged")
    target.write_bytes((2**60).to_bytes(8, "little") + whole[8:])  # a header that claims to be an exabyte long
    toast("eval", "--run", target).fails(1, "damaged")
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    save_file(tensors, target, {"toast": '{"format": 1, "recipe": [[[]]]}'})
    toast("eval", "--run", target).fails(1, "damaged")


@pytest.mark.usefixtures("quickly")
def test_another_backbone_and_other_weights_are_refused_by_their_fingerprint(here: Path, run: Path) -> None:
    assert toast("export", "--run", run, "--out", here / "a.safetensors").code == 0
    toast("export", "--run", here / "a.safetensors", "--weights", "none", "--out", here / "b").fails(
        1, "other weights", "fingerprint"
    )


@pytest.mark.usefixtures("quickly")
def test_permuted_classes_are_refused(here: Path, run: Path) -> None:
    assert toast("export", "--run", run, "--out", here / "a.safetensors").code == 0
    tensors = load_file(here / "a.safetensors")
    with safe_open(here / "a.safetensors", "pt") as file:
        config = json.loads(file.metadata()["toast"])
        del config["sha256"]
    config["classes"] = config["classes"][::-1]
    save_file(tensors, here / "b.safetensors", {"toast": json.dumps(config)})
    toast("eval", "--run", here / "b.safetensors").fails(1, error="data.wrong-classes")
    toast("export", "--run", here / "b.safetensors", "--out", "c").fails(1, error="export.class-order")


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """Within the block the system refuses to write more than so many bytes to a file, as a full disk would."""
    import resource  # not on Windows
    import signal

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("form", ["safetensors", "torch-export", "hf", "onnx"])
def test_a_full_disk_is_an_error_that_leaves_nothing(here: Path, run: Path, form: str) -> None:
    with no_file_beyond(100_000):
        said = toast("export", "--run", run, "--format", form, "--out", here / "out" / "model")
    said.fails(1, "could not be written")
    assert not any((here / "out").rglob("*"))


def test_an_import_onto_a_full_disk_leaves_no_run(here: Path) -> None:
    torch.save(top_down_parts(), here / "theirs.pth")
    with no_file_beyond(100_000):
        said = toast("import", "theirs.pth", "--backbone", "vit_demo_3", "--output-dir", "start")
    said.fails(1, "could not be written")
    assert not (here / "start").exists()


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"classes": [["a"]] * 6}, "damaged"),
        ({"recipe": {"method": {"name": "toast-lite", "rank": 10**9}}}, "cannot be built"),
        ({"whole": True, "files": '{"../x": "y"}'}, "cannot be built from ../x"),
        ({"files": "[" * 100_000}, "damaged"),
        ({"text": "[" * 100_000}, "damaged"),
    ],
)
def test_a_file_whose_description_is_hostile_is_refused(
    here: Path, run: Path, entries: dict[str, Any], words: str
) -> None:
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    config.pop("sha256")  # whoever means harm seals what they write, or leaves the seal out
    files, text = entries.pop("files", None), entries.pop("text", None)
    recipe = config["recipe"] | entries.pop("recipe", {})
    metadata = {"toast": text or json.dumps({**config, "recipe": recipe, **entries})}
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    save_file(tensors, here / "a.safetensors", metadata | ({"backbone": files} if files else {}))
    toast("export", "--run", "a.safetensors", "--out", "b").fails(1, words)
    assert [path.name for path in here.iterdir()] == ["a.safetensors"]


def test_numbers_of_another_kind_are_no_weights(here: Path, run: Path) -> None:
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    config = (run / "adapter" / "adapter_config.json").read_text()
    save_file({name: tensor.int() for name, tensor in tensors.items()}, here / "a.safetensors", {"toast": config})
    toast("export", "--run", "a.safetensors", "--out", "b").fails(
        1, "of another shape or type", error="adapter.wrong-shape"
    )


@pytest.mark.usefixtures("quickly")
def test_changed_weights_of_a_whole_file_are_refused(here: Path, linear_run: Path) -> None:
    assert toast("export", "--run", linear_run, "--what", "full", "--out", "whole.safetensors").code == 0
    with safe_open("whole.safetensors", framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = next(name for name in tensors if name.endswith("mlp.fc1.weight"))
    tensors[name] = tensors[name].mul(1.001)
    save_file(tensors, "changed.safetensors", metadata)
    toast("eval", "--run", "changed.safetensors").fails(1, "changed.safetensors", error="adapter.damaged")


def write_zip(path: Path, *names: str) -> None:
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        for name in names or ("a.txt",):
            archive.writestr(name, "a")


FOREIGN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "o.onnx": (lambda path: path.write_bytes(b"\x08\x0a\x12\x07pytorch" * 9), "is an ONNX graph"),
    "x.json": (lambda path: path.write_text('{"a": 1}'), "is JSON text"),
    "notes.txt": (lambda path: path.write_text("to whom it may concern"), "is plain text"),
    "p.png": (lambda path: Image.new("RGB", (9, 9)).save(path), "is a PNG image"),
    "g.pt2": (
        lambda path: torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.ones(2),)), path),
        "is a torch.export program",
    ),
    "t.pt": (lambda path: write_zip(path, "t/constants.pkl", "t/data.pkl"), "is a TorchScript program"),
    "z.zip": (write_zip, "is a zip archive"),
    "s.pth": (lambda path: save_file({"a": torch.ones(2)}, path), "is a safetensors file under another name"),
    "w.safetensors": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"), "Git LFS pointer"),
    "e.safetensors": (lambda path: path.touch(), "is empty"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_another_kind_is_called_what_it_is(here: Path, name: str) -> None:
    make, words = FOREIGN[name]
    make(here / name)
    toast("import", name, "--backbone", "vit_demo").fails(1, words)
    if name != "s.pth":
        for verb in ("eval", "export"):
            toast(verb, "--run", name).fails(2, words)
    assert [path.name for path in here.iterdir()] == [name]


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_that_no_export_made_is_written_into_and_never_over(here: Path, run: Path, slash: str) -> None:
    own = shutil.copytree(run, here / "own")
    (here / "mine").mkdir()
    (here / "mine" / "thesis.txt").write_text("precious")
    for place in ("mine", "own"):
        before = {path.name for path in (here / place).iterdir()}
        said = toast("export", "--run", own, "--format", "hf", "--out", f"{here / place}{slash}", "--force")
        assert said.code == 0, said.err
        assert {path.name for path in (here / place).iterdir()} == before | {"own-hf"}
    shutil.rmtree(here / "mine" / "own-hf")
    (here / "mine" / "own-hf").mkdir()
    said = toast("export", "--run", own, "--format", "hf", "--out", here / "mine", "--force")
    said.fails(2, "own-hf", error="export.foreign-folder")


@pytest.mark.usefixtures("quickly")
def test_a_folder_that_an_export_made_is_written_over_when_asked(here: Path, run: Path) -> None:
    words = ["export", "--run", run, "--format", "hf", "--out", here / "hf"]
    assert toast(*words).code == 0
    toast(*words).fails(2, "--force", error="disk.already-exists")
    said = toast(*words, "--force")
    assert said.code == 0 and "Writing over hf" in said.err


@pytest.mark.usefixtures("quickly")
def test_a_damaged_report_is_said_before_the_work(here: Path, run: Path) -> None:
    for content in ("[]", '{"a.safetens'):
        (here / "export_report.json").write_text(content)
        toast("export", "--run", run, "--out", here / "b").fails(1, "export_report.json", error="export.damaged-report")
    assert [path.name for path in here.iterdir()] == ["export_report.json"]


def test_a_cache_that_cannot_be_made_is_not_blamed_on_the_target(
    here: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "file").touch()
    monkeypatch.setenv("TOAST_CACHE_DIR", str(here / "file" / "cache"))
    toast("export", "--run", run, "--out", here / "b").fails(1, "TOAST_CACHE_DIR", error="cache.cannot-write")


def test_no_space_for_what_it_is_checked_with_is_not_blamed_on_the_target(
    here: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, tensors: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("toast_cli.export.verification.write_tensors", full)
    toast("export", "--run", run, "--out", here / "out" / "b").fails(
        1, "No space left", "TMPDIR", error="disk.cannot-write"
    )
    assert list((here / "out").iterdir()) == []


def test_an_export_that_cannot_be_moved_whole_puts_back_what_was_there(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, folder = here / "made", here / "out"
    for where in (place, folder):
        where.mkdir()
        for name in ("a", "b"):
            (where / name).write_text(f"{where.name} {name}")
    move = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if self == place / "b":
            raise OSError(28, "No space left on device")
        return move(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OSError, match="No space"):
        export_run._install_files(place, folder, here / "before", replace=True)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"a": "out a", "b": "out b"}
    assert sorted(path.name for path in place.iterdir()) == ["a", "b"]


@pytest.mark.usefixtures("quickly")
def test_what_a_killed_export_left_is_cleared_away_and_what_a_living_one_has_is_not(here: Path, run: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = [here / f"{export_run._get_temporary_prefix()}{number}-x" for number in (gone.pid, os.getpid())]
    for folder in left:
        folder.mkdir()
    assert toast("export", "--run", run, "--out", here / "a").code == 0
    assert [folder.exists() for folder in left] == [False, True]

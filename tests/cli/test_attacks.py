"""Files made to do harm, each a real attack: nothing in them runs, and the error names it."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.cli.conftest import MakePictures, toast
from tests.language import make_model
from tests.peak import forget_peak, peak
from toast_cli.data.images.decode import open_image
from toast_cli.storage.load_model import load_model
from toast_cli.utils.errors import ToastError
from toast_cli.utils.names import escape_control_characters
from toast_cli.utils.pickle_scan import find_pickled_code


class Attack:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {Path('ran').absolute()}",)


def of_torch(file: Path) -> None:
    torch.save({"state_dict": {"x": torch.ones(2)}, "y": Attack()}, file)


def of_old_torch(file: Path) -> None:
    torch.save({"y": Attack()}, file, _use_new_zipfile_serialization=False)


def plain(protocol: int) -> Any:
    return lambda file: file.write_bytes(pickle.dumps({"y": Attack()}, protocol=protocol))


def of_numpy(file: Path) -> None:
    np.savez(file, y=np.array([Attack()], dtype=object))


PICKLES = {
    "a.pth": of_torch,
    "old.pth": of_old_torch,
    "p0.bin": plain(0),
    "p2.bin": plain(2),
    "p5.bin": plain(5),
    "a.npz": of_numpy,
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_is_refused_with_the_name_of_what_it_would_run(here: Path, pictures: MakePictures, name: str) -> None:
    PICKLES[name](here / name)
    assert find_pickled_code(here / name) in ("posix.system", "nt.system")
    words = ["--backbone", "vit:test_vit", "--weights", name]
    toast("tune", *words, "--dataset", f"folder:{pictures(cat=3, dog=3)}").fails(1, "was not loaded", ".system")
    if name != "a.npz":
        toast("import", name, "--backbone", "vit_demo").fails(1, ".system", error="weights.unsafe-file")
    assert toast("eval", "--run", name).code in (1, 2)
    assert not Path("ran").exists() and not Path("runs").exists()


def header(told: dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(told).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


LIES = {
    "longer than the file": header({"a": tensor([1], [0, 4])}, bytes(4), length=2**62),
    "an exabyte of numbers": header({"a": tensor([2**58], [0, 2**60])}, bytes(4)),
    "a shape that overflows": header({"a": tensor([2**32, 2**32, 4], [0, 4])}, bytes(4)),
    "less than nothing": header({"a": tensor([-1], [0, 4])}, bytes(4)),
    "one over the other": header({"a": tensor([2], [0, 8]), "b": tensor([2], [4, 12])}, bytes(12)),
    "backwards": header({"a": tensor([1], [4, 0])}, bytes(4)),
    "of no type": header({"a": tensor([1], [0, 4], "F33")}, bytes(4)),
    "deep": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "no end": header({"a": tensor([1], [0, 4])})[:-3],
}


@pytest.mark.parametrize("lie", LIES)
def test_a_safetensors_file_whose_header_lies_is_refused(here: Path, lie: str) -> None:
    (here / "a.safetensors").write_bytes(LIES[lie])
    toast("eval", "--run", "a.safetensors").fails(1, "damaged")
    toast("import", "a.safetensors", "--backbone", "vit_demo").fails(1, error="checkpoint.damaged")


BOMBS = {
    "aliases": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)),
    "merges": "a: &a {x: 1}\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} {{<<: [{','.join(['*' + chr(97 + i)] * 9)}]}}\n" for i in range(12)),
    "itself": "a: &a [*a]",
    "code": "training: !!python/object/apply:os.system ['touch ran']",
    "code by its other name": "training: !!python/name:os.system",
    "a very long number": "seed: " + "9" * 5_000,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_yaml_bomb_is_refused_at_once(here: Path, bomb: str) -> None:
    (here / "bomb.yaml").write_text(BOMBS[bomb])
    started = time.monotonic()
    toast("recipes", "validate", "bomb.yaml").fails(2, "bomb.yaml")
    toast("tune", "--recipe", "bomb.yaml", "--dry-run").fails(2, "bomb.yaml")
    assert time.monotonic() - started < 10 and not Path("ran").exists()


def zip_bomb(file: Path) -> None:
    """400 MB of zeros in half a megabyte, called an image."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for kind in ("cat", "dog"):
            if kind == "cat":
                with archive.open("cat/0.png", "w") as member:
                    for _ in range(400):
                        member.write(bytes(1 << 20))
            for number in range(1, 8):
                archive.writestr(f"{kind}/{number}.png", png(number))


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), (number, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def test_a_zip_bomb_is_refused_without_filling_memory(here: Path) -> None:
    zip_bomb(here / "a.zip")
    assert (here / "a.zip").stat().st_size < 1_000_000
    forget_peak()
    before = peak()
    toast("tune", "--backbone", "vit_demo", "--dataset", "archive:a.zip", "--method", "linear").fails(1, "0.png")
    assert peak() - before < 300e6


def image_bomb(file: Path) -> None:
    """A PNG that says it is 60,000 pixels square."""
    content = bytearray(png(1))
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    import zlib

    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    file.write_bytes(content)


def postscript(file: Path) -> None:
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(ran) (w) file closefile\n%%EOF\n")


def not_an_image(file: Path) -> None:
    (file.parent / "secret").write_text("root:x:0:0")
    file.symlink_to(file.parent / "secret")


@pytest.mark.parametrize(
    ("make", "words"),
    [(image_bomb, "too large"), (postscript, "not an image"), (not_an_image, "not an image")],
)
def test_an_image_that_is_a_bomb_a_program_or_a_link_to_a_secret_is_refused(here: Path, make: Any, words: str) -> None:
    make(here / "0.png")
    with pytest.raises(ToastError, match=words) as error:
        open_image(here / "0.png")
    assert "root:" not in str(error.value) and not Path("ran").exists()


@pytest.mark.parametrize("name", ["--help", "-rf", "--output-dir=x", "$(touch ran)", "; touch ran"])
def test_names_of_files_and_classes_are_only_names(here: Path, pictures: MakePictures, name: str) -> None:
    root = pictures(cat=6, dog=6)
    (root / "cat").rename(root / name)
    words = ["--backbone", "vit_demo", "--method", "linear", "training.epochs=1", "--output-dir", "run"]
    said = toast("tune", "--dataset", f"folder:{root}", *words)
    assert said.code == 0, said.err
    assert load_model(here / "run").classes.count(name) == 1
    assert not Path("ran").exists() and not Path("x").exists()


def test_names_that_command_a_terminal_are_refused_or_spelled_out(here: Path, pictures: MakePictures) -> None:
    evil = "a\x1b]0;owned\x07b"
    root = pictures(cat=6, dog=6)
    (root / "dog" / "0.png").rename(root / "dog" / f"{evil}.png").write_bytes(b"no image")
    checked = toast("data", "check", f"folder:{root}")
    (root / "cat").rename(root / evil)
    refused = toast("tune", "--backbone", "vit_demo", "--dataset", f"folder:{root}", "--output-dir", "run")
    refused.fails(1, "control characters")
    assert r"a\x1b]0;owned\x07b" in refused.err
    for said in (checked, refused):
        assert "\x1b" not in said.out + said.err and "\x07" not in said.out + said.err


def test_what_commands_a_terminal_is_spelled_out_wherever_it_is_printed(here: Path) -> None:
    evil = "a\x1b[2Jb\x9b31m\u202ec"
    assert escape_control_characters(evil) == "a\\x1b[2Jb\\x9b31m\\u202ec"
    toast("eval", "--run", evil).fails(2, "a\\x1b[2Jb\\x9b31m\\u202ec")
    (here / "names.txt").write_text(evil)
    assert "\x1b" not in toast("tune", "--backbone", evil).err + toast("recipes", "show", evil).err


SCRIPT = "<script>alert(1)<img src=x onerror=alert(1)>\"'"


def test_a_page_shows_script_in_names_and_runs_none(here: Path, pictures: MakePictures) -> None:
    root = pictures(cat=12, dog=12)
    (root / "cat").rename(root / SCRIPT)
    for file in (root / SCRIPT).iterdir():
        file.rename(file.with_name(f"{SCRIPT}{file.name}"))
    words = ["--backbone", "vit_demo", "--method", "linear", "training.epochs=1", "--device", "cpu"]
    assert toast("tune", "--dataset", f"folder:{root}", *words, "--output-dir", "run").code == 0
    shutil.copytree("run", SCRIPT)
    said = toast("compare", "run", SCRIPT, "--out", "page")
    assert said.code == 0, said.err
    pages = list((here / "page").rglob("*.html")) if (here / "page").is_dir() else [here / "page"]
    assert pages
    for page in pages:
        text = page.read_text()
        assert "<script" not in text and "<img src=x" not in text and "&lt;script&gt;" in text


def test_a_model_folder_with_code_of_its_own_is_not_run(here: Path) -> None:
    folder = make_model(here / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(here / 'ran')!r}, 'w')\nclass Config: ...\nclass Model: ...\n")
    toast("generate", "--backbone", f"llama:{folder}", "Hi").fails(1, "could not be loaded")
    assert not (here / "ran").exists()


def test_a_checkpoint_that_hides_its_code_behind_tensors_is_not_run(here: Path, linear_run: Path) -> None:
    """An adapter folder in which a pickle has a safetensors file's name."""
    shutil.copytree(linear_run, "run")
    of_torch(here / "run" / "adapter" / "adapter_model.safetensors")
    toast("eval", "--run", "run").fails(2, "torch.save")
    save_file({"x": torch.ones(1)}, here / "run" / "adapter" / "adapter_model.safetensors")
    toast("eval", "--run", "run").fails(1, "damaged")
    assert not (here / "ran").exists()

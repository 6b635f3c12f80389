"""Bad input by the dozen, and by the thousand with `-m slow`: it works or is a ToastError, soon and within memory.

What Hypothesis makes is the same each time; whatever fails is shown shrunk.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save

from tests.cli.conftest import toast
from tests.peak import forget_peak, peak
from toast_cli.data.images.decode import open_image
from toast_cli.data.text.formats import alpaca, sharegpt
from toast_cli.export import verification_worker
from toast_cli.export.read_checkpoint import read_checkpoint
from toast_cli.recipe import builtin
from toast_cli.recipe.overrides import apply_overrides
from toast_cli.recipe.parse import validate_partial_recipe
from toast_cli.recipe.safe_yaml import parse_recipe
from toast_cli.storage.load_model import load_model
from toast_cli.utils.errors import RUNTIME_FAILURE, USAGE_ERROR, ToastError

HANGS = timedelta(seconds=10)
MEMORY = 500_000_000
"""Bytes by which the most that this process holds may exceed what it held before, over all inputs of a test."""
HEALTH = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


def often(short: int, many: int) -> Callable[[Any], Any]:
    """A test for `short` inputs, and a slow one for `many`."""

    def twice(test: Any) -> Any:
        test.__test__ = False

        @pytest.mark.parametrize("times", [short, pytest.param(many, marks=pytest.mark.slow)])
        def run(tmp_path: Path, times: int) -> None:
            for_inputs(times, test, tmp_path)

        run.__doc__ = test.__doc__
        return run

    return twice


def for_inputs(times: int, test: Any, *arguments: Any) -> None:
    """A test of Hypothesis for so many inputs, each soon done, all within memory."""
    how = settings(max_examples=times, deadline=HANGS, derandomize=True, suppress_health_check=HEALTH)
    forget_peak()
    before = peak()
    how(test)(*arguments)
    assert peak() - before < MEMORY


def works_or_says_why(work: Callable[[], Any]) -> None:
    try:
        work()
    except ToastError as error:
        assert error.what and error.exit_code in (RUNTIME_FAILURE, USAGE_ERROR)


TEXTS = [recipe.text for recipe in map(builtin.find_recipe, builtin.list_recipes())]
WORDS = sorted({word for text in TEXTS for word in text.replace(":", " ").split() if not word.startswith("#")})
VALUES = st.one_of(
    st.sampled_from(WORDS),
    st.sampled_from(["null", "~", "true", "1e999", "-1", "0", "nan", ".inf", "[]", "{}", "!!python/none", "&a [*a]"]),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=20),
)
KEYS = st.lists(st.sampled_from(WORDS) | st.text(max_size=8), min_size=1, max_size=4).map(".".join)
OVERRIDES = st.lists(st.one_of(st.tuples(KEYS, VALUES).map("=".join), st.text(max_size=30)), max_size=4)


@st.composite
def mutated(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Bytes cut short, overwritten, repeated or with others put in, at one to four places."""
    content = bytearray(draw(whole))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        kind = draw(st.sampled_from(["cut", "set", "put", "again", "drop"]))
        if kind == "cut":
            del content[place:]
        elif kind == "set" and content:
            content[place] = draw(st.integers(0, 255))
        elif kind == "put":
            content[place:place] = draw(st.binary(max_size=16))
        elif kind == "again":
            content[place:place] = content[place : place + 40]
        else:
            del content[place : place + draw(st.integers(1, 40))]
    return bytes(content)


@often(60, 5_000)
@given(recipe=mutated(st.sampled_from(TEXTS).map(str.encode)), whole=st.sampled_from(TEXTS), overrides=OVERRIDES)
def test_a_recipe_and_overrides(tmp_path: Path, recipe: bytes, whole: str, overrides: list[str]) -> None:
    def checked(text: str, words: list[str]) -> None:
        draft = parse_recipe(text, "mine.yaml")
        apply_overrides(draft, words)
        validate_partial_recipe(draft)

    works_or_says_why(lambda: checked(recipe.decode("utf-8", "replace"), []))
    works_or_says_why(lambda: checked(whole, overrides))


def encoded(image: Image.Image) -> dict[str, bytes]:
    """An image in every format and mode that Pillow can write."""
    Image.init()
    found = {}
    for kind in sorted(Image.SAVE):
        for mode in ("RGB", "L", "1", "P", "RGBA"):
            stream = io.BytesIO()
            try:
                image.convert(mode).save(stream, kind)
            except Exception:
                continue
            found[f"{kind} {mode}"] = stream.getvalue()
    return found


IMAGES = encoded(Image.new("RGB", (17, 13), "teal"))


@often(80, 2_000)
@given(content=mutated(st.sampled_from(sorted(IMAGES)).map(IMAGES.__getitem__)))
def test_an_image(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    works_or_says_why(lambda: open_image(tmp_path / "a.png"))


@pytest.fixture(scope="module")
def photographs() -> dict[str, bytes]:
    """Real ones as they came, from every collection there is, and one of them, small, in every format."""
    real = os.environ.get("TOAST_REAL_DATA")
    files = [] if real is None else sorted(file for file in Path(real).rglob("*.*") if file.suffix in (".jpg", ".png"))
    if not files:
        pytest.skip("TOAST_REAL_DATA does not name a folder with real photographs in it")
    found = {str(file): file.read_bytes() for file in files[:: len(files) // 100 + 1]}
    with Image.open(files[0]) as small:
        small.thumbnail((96, 96))
        return found | encoded(small)


@pytest.mark.parametrize("times", [pytest.param(2_000, marks=pytest.mark.slow)])
def test_a_photograph(tmp_path: Path, photographs: dict[str, bytes], times: int) -> None:
    @given(content=mutated(st.sampled_from(sorted(photographs)).map(photographs.__getitem__)))
    def read(content: bytes) -> None:
        (tmp_path / "a.jpg").write_bytes(content)
        works_or_says_why(lambda: open_image(tmp_path / "a.jpg"))

    for_inputs(times, read)


def of_torch(old: bool) -> bytes:
    stream = io.BytesIO()
    content = {"model": {"prompt": torch.arange(5.0), "head.weight": torch.eye(3)}, "epoch": 3}
    torch.save(content, stream, _use_new_zipfile_serialization=not old)
    return stream.getvalue()


def of_safetensors() -> bytes:
    return save({"prompt": torch.arange(5.0), "head.weight": torch.eye(3)}, {"format": "pt"})


CHECKPOINTS = [
    (".pth", of_torch(old=False)),
    (".pth", of_torch(old=True)),
    (".safetensors", of_safetensors()),
    (".bin", pickle.dumps({"prompt": [1.0, 2.0]})),
]


@often(60, 1_000)
@given(data=st.data())
def test_a_checkpoint(tmp_path: Path, data: st.DataObject) -> None:
    suffix, content = data.draw(st.sampled_from(CHECKPOINTS))
    file = tmp_path / f"a{suffix}"
    file.write_bytes(data.draw(mutated(st.just(content))))
    works_or_says_why(lambda: read_checkpoint(file))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, lite_run: Path) -> list[tuple[str, bytes, Path]]:
    """What an adapter consists of, and where the rest of it lies: an exported file, and each file of a folder."""
    here = tmp_path_factory.mktemp("adapters")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(verification_worker, "run_in_new_process", verification_worker.open_and_run_export)
        assert toast("export", "--run", lite_run, "--out", here / "one").code == 0
    folder, one = lite_run / "adapter", here / "one.safetensors"
    parts = [(file.name, file.read_bytes(), folder) for file in sorted(folder.iterdir()) if file.suffix != ".md"]
    # Without their seals, too, as whoever means harm would leave them out: what is read is then believed.
    config = json.loads((folder / "adapter_config.json").read_text())
    plain = json.dumps({name: value for name, value in config.items() if not name.startswith("sha256")})
    shutil.copytree(folder, here / "plain")
    (here / "plain" / "adapter_config.json").write_text(plain)
    parts += [(file.name, file.read_bytes(), here / "plain") for file in sorted((here / "plain").glob("adapter_*"))]
    bare = save({**load_file(one)}, {"toast": plain})
    return [("", one.read_bytes(), here), ("", bare, here), *parts]


@pytest.mark.parametrize("times", [20, pytest.param(1_000, marks=pytest.mark.slow)])
def test_an_adapter(tmp_path: Path, adapters: list[tuple[str, bytes, Path]], times: int) -> None:
    @given(data=st.data())
    def read(data: st.DataObject) -> None:
        name, content, folder = data.draw(st.sampled_from(adapters))
        spoiled = data.draw(mutated(st.just(content)))
        if not name:
            (tmp_path / "one.safetensors").write_bytes(spoiled)
            works_or_says_why(lambda: load_model(tmp_path / "one.safetensors"))
            return
        shutil.copytree(folder, tmp_path / "adapter", dirs_exist_ok=True)
        (tmp_path / "adapter" / name).write_bytes(spoiled)
        works_or_says_why(lambda: load_model(tmp_path / "adapter"))

    for_inputs(times, read)


TEXT = st.text(max_size=12)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(["instruction", "input", "output", "conversations", "from", "value", "role", "content"])
ENTRIES = st.lists(st.dictionaries(FIELDS, ANY, max_size=4) | ANY, max_size=5)
TURNS = st.lists(st.fixed_dictionaries({"from": TEXT | st.just("human"), "value": ANY}), max_size=3)
GOOD = [{"instruction": f"Say {n}.", "input": "", "output": "yes"} for n in range(4)]


@often(60, 1_000)
@given(
    content=ENTRIES.map(json.dumps).map(str.encode)
    | st.lists(st.fixed_dictionaries({"conversations": TURNS}), max_size=4).map(json.dumps).map(str.encode)
    | mutated(st.just(json.dumps(GOOD).encode())),
    lines=st.booleans(),
)
def test_instructions(tmp_path: Path, content: bytes, lines: bool) -> None:
    file = tmp_path / ("a.jsonl" if lines else "a.json")
    file.write_bytes(content)
    for source in (alpaca, sharegpt):

        def read(source: Any = source) -> None:
            options = source.SOURCE.options(path=str(file))
            for split in source.SOURCE.open(options, None).splits.values():
                for index in range(len(split)):
                    split.load(index)

        works_or_says_why(read)

"""The page of `toast app` in a browser, with two runs on images and a language model; skipped without Chromium."""

from __future__ import annotations

import base64
import io
import re
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from tests.cli.conftest import toast
from tests.cli.test_pages_in_a_browser import SIZES, browser  # noqa: F401, a fixture
from tests.forks import LONGEST, Command, begin
from tests.scenes import demo_model, kept
from tests.shared_runs import SharedRuns

pytest.importorskip("gradio", reason="gradio is not installed")
DROP = """content => {
  const data = new DataTransfer();
  data.items.add(new File([Uint8Array.from(atob(content.bytes), (each) => each.charCodeAt(0))], content.name));
  return data;
}"""


@dataclass
class Page:
    """The page in a tab, with what went wrong and what was asked for."""

    tab: Any
    address: str
    troubles: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def open(self) -> None:
        self.tab.set_default_timeout(60_000)
        self.tab.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.tab.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        self.tab.goto(self.address)
        self.tab.wait_for_selector("#choices button")

    def pick(self, index: int = 0) -> None:
        before = self.look()
        self.tab.click(f"#choices button[data-index='{index}']")
        self.wait_for_another_look(before)

    def drop(self, name: str, content: bytes) -> None:
        data = self.tab.evaluate_handle(DROP, {"name": name, "bytes": base64.b64encode(content).decode()})
        self.tab.dispatch_event("#dropzone button", "drop", {"dataTransfer": data})

    def look(self) -> list[str]:
        """The pictures of all maps."""
        return list(self.tab.evaluate("[...document.querySelectorAll('.heat')].map((each) => each.src)"))

    def wait_for_another_look(self, before: list[str]) -> list[str]:
        self.tab.wait_for_function(
            "before => { const now = [...document.querySelectorAll('.heat')].map((each) => each.src);"
            " return now.length && JSON.stringify(now) !== JSON.stringify(before); }",
            arg=before,
        )
        return self.look()

    def message(self) -> str:
        self.tab.wait_for_selector("#message .note")
        return str(self.tab.inner_text("#message"))

    def captions(self) -> list[str]:
        return list(self.tab.locator("figcaption").all_inner_texts())


def png(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("runs")
    return {name: kept(demo_model(name), home / f"my-{name}") for name in ("toast", "linear")}


@pytest.fixture(scope="module")
def server(
    runs: dict[str, Path], shared_runs: SharedRuns, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Command, str]]:
    paths = [*runs.values(), shared_runs.get("text")]
    command = begin(
        tmp_path_factory.mktemp("server") / "said",
        "app",
        "--port",
        "0",
        *(word for path in paths for word in ("--run", path)),
    )
    address, last = None, time.monotonic() + LONGEST
    while address is None and command.ended(0.2) is None and time.monotonic() < last:
        address = re.search(r"http://127\.0\.0\.1:\d+/", command.err)
    assert address is not None, command.err
    yield command, address[0]
    command.kill()


@pytest.fixture(params=["desktop"])
def page(request: pytest.FixtureRequest, server: tuple[Command, str], browser: Any) -> Iterator[Page]:  # noqa: F811
    width, height = SIZES[request.param]
    tab = browser.new_page(viewport={"width": width, "height": height})
    opened = Page(tab, server[1])
    opened.open()
    yield opened
    assert opened.troubles == []
    assert opened.hosts == {server[1].split("/")[2]}, "nothing is asked of another host"
    assert "Traceback" not in server[0].err
    tab.close()


@pytest.mark.parametrize("page", SIZES, indirect=True)
def test_a_test_picture_is_shown_with_both_passes_of_each_run_and_fits_the_screen(page: Page) -> None:
    assert page.tab.inner_text("#title").endswith("my-toast, my-linear, run")
    page.pick()
    titles = [caption.split("\n")[0] for caption in page.captions()]
    assert titles == ["Before: the plain model", "With TOAST", "What TOAST looks for (ξ)", "Where it looks"]
    assert page.tab.inner_text(".card >> nth=1").count("The correct answer is two-spotted.") == 1
    width = page.tab.viewport_size["width"]
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [stage.bounding_box() for stage in page.tab.locator(".stage").all()]
    assert all(box["width"] >= 140 and box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    assert page.tab.locator("#chat-message textarea").is_visible(), "the run of a language model has a chat"


def test_sliders_steer_and_choose_the_map(page: Page) -> None:
    page.pick()
    before = page.look()
    page.tab.fill("#strength input[type=range]", "0")
    plain = page.wait_for_another_look(before)
    assert plain[0] == plain[1] != before[1], "at 0, both passes are the plain model"
    assert "The steering strength is 0" in page.tab.inner_text(".card >> nth=0")
    page.tab.fill("#strength input[type=range]", "1")
    assert page.wait_for_another_look(plain) == before
    page.tab.fill("#level input[type=range]", "1")
    layer = page.wait_for_another_look(before)
    assert layer[3] != before[3] and layer[2] == before[2], "maps of each layer, one ξ"
    page.tab.click("#head input")
    page.tab.click("text=strongest head")
    assert page.wait_for_another_look(layer)[3] != layer[3]
    page.tab.fill("#opacity input[type=range]", "0.25")
    page.tab.wait_for_function("getComputedStyle(document.querySelector('.heat')).opacity === '0.25'")


def test_pointing_at_something_is_an_experiment_that_can_be_reset(page: Page) -> None:
    page.pick()
    before = page.look()
    stage = page.tab.locator(".stage >> nth=1")
    box = stage.bounding_box()
    stage.click(position={"x": 0.3 * box["width"], "y": 0.7 * box["height"]})
    pointed = page.wait_for_another_look(before)
    assert pointed[1] != before[1] and pointed[2] != before[2] and pointed[3] == before[3]
    assert page.captions()[1].startswith("After you pointed (experiment)")
    assert re.search(
        r"in your selection: [\d.]+% before, [\d.]+% with TOAST as trained", page.tab.inner_text("#canvas")
    )
    assert page.tab.locator(".picked.point").count() == 3, "the run with one pass was not steered"
    page.tab.mouse.move(box["x"] + 20, box["y"] + 20)
    page.tab.mouse.down()
    page.tab.mouse.move(box["x"] + 120, box["y"] + 90, steps=4)
    page.tab.mouse.up()
    boxed = page.wait_for_another_look(pointed)
    assert page.tab.locator(".picked:not(.point)").count() == 3
    page.tab.click("#reset")
    assert page.wait_for_another_look(boxed) == before
    assert page.tab.locator(".picked").count() == 0


def test_saved_numbers_come_again_from_the_saved_command(page: Page, runs: dict[str, Path], here: Path) -> None:
    page.drop("my photo.png", png(70, 50))
    page.tab.wait_for_selector(".stage")
    page.tab.fill("#strength input[type=range]", "0.5")
    page.tab.wait_for_timeout(300)
    shown = page.look()
    page.tab.click(".stage >> nth=0")
    page.wait_for_another_look(shown)
    page.tab.click("#save")
    assert "Saved" in page.message()
    (folder,) = (runs["toast"] / "attention/app").iterdir()
    arrays = np.load(folder / "maps.npz")
    commands = (folder / "command.txt").read_text().splitlines()
    assert "--alpha 0.5" in commands[0] and "--point 35,25" in commands[0] and "--alpha" not in commands[1]
    with Image.open(folder / "picture.png") as picture:
        assert picture.width > 4 * 480
    for command, run in zip(commands, ("my-toast", "my-linear"), strict=True):
        assert_same_arrays(command, {name: arrays[name] for name in arrays.files if name.startswith(f"{run}/")})


def assert_same_arrays(command: str, arrays: dict[str, Any]) -> None:
    words = shlex.split(command)[1:]
    said = toast(*words)
    assert said.code == 0, said.err
    (file,) = Path(words[words.index("--out") + 1]).glob("*.safetensors")
    again = load_file(file)
    assert len(again) == len(arrays) > 0
    for name, array in arrays.items():
        np.testing.assert_allclose(array, again[name.partition("/")[2]], rtol=1e-5, atol=1e-7)


def test_errors_are_messages_of_ours_and_what_was_shown_stays(page: Page, runs: dict[str, Path]) -> None:
    page.pick()
    shown = page.look()
    page.drop("notes.txt", b"These are notes.")
    assert "Cannot read the image notes.txt." in page.message()
    stream = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(stream, "PNG")
    page.drop("huge.png", stream.getvalue())
    page.tab.wait_for_selector("#message :text('huge.png')")
    assert "It is too large" in page.message()
    assert page.look() == shown
    page.drop("wide.png", png(200, 40))
    page.wait_for_another_look(shown)
    page.tab.wait_for_selector("#message .note", state="hidden")
    stage = page.tab.locator(".stage >> nth=0")
    stage.click(position={"x": 3, "y": 5})
    assert "outside of what the model sees" in page.message()
    gone = runs["toast"].rename(runs["toast"].parent / "moved")
    try:
        page.tab.click("#save")
        page.tab.wait_for_selector("#message :text('is gone')")
    finally:
        gone.rename(runs["toast"])


def test_the_page_answers_to_names_of_its_own_machine_and_to_its_own_pages_alone(server: tuple[Command, str]) -> None:
    request = urllib.request.Request(server[1], headers={"Host": "toast.example"})
    with pytest.raises(urllib.error.HTTPError, match="421"):
        urllib.request.urlopen(request)
    upload = urllib.request.Request(f"{server[1]}gradio_api/upload", b"", {"Origin": "https://toast.example"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(upload)
    with urllib.request.urlopen(server[1]) as answer:
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]


def test_a_run_that_is_not_there_and_a_port_in_use_end_the_command(
    server: tuple[Command, str], runs: dict[str, Path], here: Path
) -> None:
    toast("app", "--run", here / "nothing").fails(2, "There is no run", error="run.not-a-run-folder")
    port = server[1].rstrip("/").rpartition(":")[2]
    toast("app", "--run", runs["linear"], "--port", port).fails(2, "Cannot listen", error="serve.address-unavailable")

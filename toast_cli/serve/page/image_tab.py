"""The tab for images: a photograph under the maps of every run, with sliders, and pointing at something."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio

from toast_cli.serve.page.page_html import (
    EMPTY_CANVAS,
    format_canvas,
    format_choices,
    format_error,
    format_note,
    read_asset,
)
from toast_cli.serve.page.page_tab import PageTab, TabContent, show_errors
from toast_cli.serve.page.run_loader import RunLoader, takes_images
from toast_cli.utils.errors import ToastError, UsageError

if TYPE_CHECKING:
    from toast_cli.evaluation.open_run import OpenedRun
    from toast_cli.serve.page.image_explorer import ImageExplorer, LookSettings, PageImage, RunLook

CHOICE_COUNT = 12
"""Number of test pictures to choose from at a time."""
MOST_BYTES = 64 * 2**20
"""Largest size of a dropped file."""
HEADS = [("average of all heads", "mean"), ("strongest head", "max"), ("path through all layers", "rollout")]
SET_OPACITY = "(value) => { document.documentElement.style.setProperty('--heat-opacity', value); }"

CLEAR_CHOICE = "() => { for (const each of document.querySelectorAll('#choices button')) each.ariaPressed = 'false'; }"


class ImageTab:
    """The handlers of the tab. Each returns the values of its outputs; the last one is always the message."""

    def __init__(self, loader: RunLoader) -> None:
        self.loader = loader
        self.explorers: dict[str, ImageExplorer] = {}

    def fill(self, runs: dict[str, OpenedRun]) -> list[Any]:
        """Make an explorer for every run; return the new ranges of the sliders, the test pictures and a message."""
        from toast_cli.evaluation.attention_evaluation import build_viewer
        from toast_cli.serve.page.image_explorer import ImageExplorer, count_heads

        if not self.explorers:
            self.explorers = {name: ImageExplorer(build_viewer(run, name)) for name, run in runs.items()}
        explorers = self.explorers.values()
        levels = max(explorer.level_count for explorer in explorers)
        heads = max(map(count_heads, explorers))
        steered = any(explorer.is_steered for explorer in explorers)
        numbered = [(f"head {number}", str(number)) for number in range(heads)]
        choices, _, message = self.list_choices(-CHOICE_COUNT)
        return [
            gradio.update(interactive=steered, value=1.0),
            gradio.update(maximum=levels - 1, value=levels - 1, interactive=True),
            gradio.update(choices=[*HEADS, *numbered] if heads else HEADS[:1]),
            choices,
            0,
            message,
        ]

    def list_choices(self, after: int) -> tuple[str, int, str]:
        """Return the strip of test pictures after those from `after`, the number of its first one, and a message."""
        loaded = self.loader.wait()
        if loaded.test is None:
            note = "" if loaded.test_error is None else format_error(loaded.test_error)
            return "", 0, note
        first = after + CHOICE_COUNT if after + CHOICE_COUNT < len(loaded.test) else 0
        samples = [
            (index, loaded.test.load(index)) for index in range(first, min(first + CHOICE_COUNT, len(loaded.test)))
        ]
        return format_choices(samples), first, ""

    def open_dropped(self, file: str | None, *settings: Any) -> Sequence[Any]:
        """Read a dropped file, look at it, and make room for another one."""
        from toast_cli.serve.page.image_explorer import PageImage
        from toast_cli.utils.hashing import hash_bytes
        from toast_cli.visualize.view import load_image_sample

        if file is None:
            return [None, gradio.skip(), gradio.skip(), gradio.skip(), ""]
        path = Path(file)
        if path.stat().st_size > MOST_BYTES:
            raise UsageError(
                f"{path.name} is too large: {path.stat().st_size / 2**20:,.0f} MB.",
                f"The page reads files of up to {MOST_BYTES // 2**20} MB.",
                "Save the photograph at a smaller size.",
                code="image.too-large",
            )
        self.loader.wait()
        white = next(iter(self.explorers.values())).viewer.images.white
        sample = _hide_folder(path, white, load_image_sample)
        image = PageImage(hash_bytes(repr(sample.image.size).encode(), sample.image.tobytes()).hex(), sample)
        return [None, image, None, *self.draw(image, None, *settings)]

    def open_choice(self, index: int, *settings: Any) -> Sequence[Any]:
        """Look at a test picture."""
        from toast_cli.serve.page.image_explorer import PageImage

        loaded = self.loader.wait()
        if loaded.test is None or not 0 <= index < len(loaded.test):
            raise UsageError("There is no such test picture.", code="data.unknown-index")
        image = PageImage(f"test-{index}", loaded.test.load(index), index)
        return [image, None, *self.draw(image, None, *settings)]

    def draw(self, image: PageImage | None, box: Any, strength: float, level: int, head: str) -> tuple[str, str]:
        """Return the canvas and a message."""
        if image is None:
            return EMPTY_CANVAS, ""
        settings = make_settings(box, strength, level, head)
        return format_canvas(image, list(self._look(image, settings).values()), settings), ""

    def point(self, shares: dict[str, float], image: PageImage | None, *settings: Any) -> Sequence[Any]:
        """Set xi from what lies at a place of the picture, given as shares of its width and height."""
        from toast_cli.attention.image_box import ImageBox

        if image is None:
            raise UsageError("There is no picture to point at.", what_to_do="Choose one first.", code="app.no-image")
        width, height = image.sample.image.size
        sizes = {"left": width, "top": height, "width": width, "height": height}
        numbers = {name: round(float(shares[name]) * size, 2) for name, size in sizes.items()}
        if not all(map(math.isfinite, numbers.values())):
            raise UsageError("This place lies outside of the picture.", code="attention.outside-crop")
        box = ImageBox(**numbers)
        return [box, *self.draw(image, box, *settings)]

    def save(self, image: PageImage | None, box: Any, opacity: float, *settings: Any) -> list[str]:
        """Save what is shown; return a message with the folder and the commands."""
        from toast_cli.serve.page.save_look import save_look

        if image is None:
            raise UsageError("There is no picture to save.", what_to_do="Choose one first.", code="app.no-image")
        chosen = make_settings(box, *settings)
        folder, commands = save_look(self.loader.options, image, self._look(image, chosen), chosen, opacity)
        text = f"Saved the picture and the numbers in {folder}. To compute the same numbers again:"
        return [format_note(text, "\n".join(commands))]

    def _look(self, image: PageImage, settings: LookSettings) -> dict[str, RunLook]:
        """Return what every run sees. With a box, one with a single pass stays as it is beside a steered one."""
        any_steered = any(explorer.is_steered for explorer in self.explorers.values())
        plain = replace(settings, box=None) if any_steered else settings
        return {
            name: explorer.look(image, settings if explorer.is_steered else plain)
            for name, explorer in self.explorers.items()
        }


def make_settings(box: Any, strength: float, level: int, head: str) -> LookSettings:
    """Return the settings of the sliders."""
    from toast_cli.serve.page.image_explorer import LookSettings

    chosen: Any = int(head) if str(head).isdecimal() else head
    return LookSettings(float(strength), int(level), chosen, box)


def _hide_folder(path: Path, white: int | None, load: Any) -> Any:
    """Load a dropped file; messages name it without the folder of uploads."""
    try:
        return replace(load(path, white), name=path.name)
    except ToastError as error:
        what, *reasons = (text.replace(str(path), path.name) for text in (error.what, *error.reasons))
        raise ToastError(what, reasons, "Choose another photograph.", code=error.code) from error


def build_image_tab(loader: RunLoader) -> TabContent:
    """Build the tab within Gradio's blocks."""
    tab = ImageTab(loader)
    with gradio.Row(equal_height=False):
        with gradio.Column(scale=1, min_width=240):
            file = gradio.File(show_label=False, file_count="single", height=132, elem_id="dropzone")
        with gradio.Column(scale=3, min_width=280):
            gradio.HTML('<p class="hint">Or pick a picture that the model was tested on:</p>')
            choices = gradio.HTML("", js_on_load=read_asset("choices.js"), elem_id="choices")
            more = gradio.Button("Show others", size="sm", elem_id="more")
    message = gradio.HTML("", elem_id="message")
    canvas = gradio.HTML(EMPTY_CANVAS, js_on_load=read_asset("canvas.js"), elem_id="canvas")
    with gradio.Row():
        strength = gradio.Slider(
            0,
            2,
            1,
            step=0.05,
            label="Steering strength",
            info="0: plain, 1: as trained",
            elem_id="strength",
            min_width=200,
        )
        level = gradio.Slider(0, 11, 11, step=1, label="Layer", info="0: the first one", elem_id="level", min_width=200)
        head = gradio.Dropdown(
            HEADS[:1], value="mean", label="Head", info="Part of a layer", elem_id="head", min_width=200
        )
        opacity = gradio.Slider(
            0, 1, 0.8, step=0.05, label="Colours", info="0: photograph only", elem_id="opacity", min_width=200
        )
    with gradio.Row(elem_id="actions"):
        reset = gradio.Button("Reset", elem_id="reset", min_width=140)
        save = gradio.Button("Save", variant="primary", elem_id="save", min_width=140)
    image, box, first = gradio.State(None), gradio.State(None), gradio.State(0)
    settings = [strength, level, head]
    shown: list[Any] = [image, box, canvas, message]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    def choose(strength: float, level: int, head: str, event: gradio.EventData) -> Sequence[Any]:
        return tab.open_choice(int(event.index), strength, level, head)

    def point(image: Any, strength: float, level: int, head: str, event: gradio.EventData) -> Sequence[Any]:
        shares = {name: getattr(event, name) for name in ("left", "top", "width", "height")}
        return tab.point(shares, image, strength, level, head)

    file.upload(
        show_errors(5, cleared=1)(tab.open_dropped), [file, *settings], [file, *shown], api_visibility="private"
    ).then(None, js=CLEAR_CHOICE)
    choices.select(show_errors(4)(choose), settings, shown, **quiet)
    canvas.select(show_errors(3)(point), [image, *settings], [box, canvas, message], **quiet)
    more.click(show_errors(3)(tab.list_choices), [first], [choices, first, message], **quiet)
    redraw = show_errors(2)(tab.draw)
    for control in (strength, level, head):
        control.input(redraw, [image, box, *settings], [canvas, message], trigger_mode="always_last", **quiet)
    opacity.input(None, [opacity], None, js=SET_OPACITY)

    def restore(image: Any, *settings: Any) -> Sequence[Any]:
        return [None, 1.0, *tab.draw(image, None, 1.0, *settings[1:])]

    reset.click(show_errors(4)(restore), [image, *settings], [box, strength, canvas, message], **quiet)
    save.click(show_errors(1)(tab.save), [image, box, opacity, *settings], [message], **quiet)
    return TabContent([strength, level, head, choices, first, message], tab.fill)


TAB = PageTab("Images", takes_images, build_image_tab, while_loading=True)

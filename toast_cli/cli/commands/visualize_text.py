"""`toast visualize-attention --prompt`: a text coloured by where the model looks, in the terminal and as a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from toast_cli.cli.output.console import out, print_json, say
from toast_cli.utils.atomic import write_json, write_tensors, write_text
from toast_cli.visualize.color_scales import Scale
from toast_cli.visualize.html import render
from toast_cli.visualize.output_names import KEY, free_name, made_of
from toast_cli.visualize.save_figures import compared_name, described_maps, origin, told, versions
from toast_cli.visualize.text import MEANING, TextView, ink, most, named, scales, see_text, visible
from toast_cli.visualize.view import Viewer

STEPS = 8
"""Colours between two numbers of a legend."""


def show_text(viewers: list[Viewer], prompt: str, template: str | None, folder: Path, as_json: bool) -> None:
    """Show what each viewer sees in a text, and leave `prompt.html`, the numbers and how they were made in a folder."""
    views = [see_text(viewer, prompt, template) for viewer in viewers]
    meaning, single = scales(views), len(views) == 1
    own = made_of(viewers, [prompt.encode(errors="surrogatepass"), str(template).encode()])
    name = free_name(folder, f"prompt{viewers[0].ending}" if single else f"prompt-{compared_name(viewers)}", own)
    page = folder / f"{name}.html"
    write_text(page, page_of(views))
    write_tensors(
        folder / f"{name}.safetensors",
        {name if single else f"{view.viewer.name}/{name}": map for view in views for name, map in view.maps.items()},
    )
    record = {
        "prompt": prompt,
        KEY: own,
        "template": template,
        "page": str(page),
        "versions": versions(),
        "views": list(map(_record, views)),
    }
    write_json(folder / f"{name}.json", record)
    if as_json:
        print_json(record)
        return
    for view in views:
        say(f"{view.viewer.name}: {described_maps(view.viewer, 'attention')}. {_next(view)}")
        for name in view.maps:
            say("")
            say(MEANING[name])
            out.print(coloured(view, name, meaning[name]), soft_wrap=True)
            out.print(legend(meaning[name], name), soft_wrap=True)
            say(f"  {_alt(view, name)}")
    say("")
    say(f"Page: {page}")


def page_of(views: Sequence[TextView]) -> str:
    """All views as one page."""
    meaning = scales(views)
    return render("text.html", title="Where it looks", views=[_page(view, meaning) for view in views])


def coloured(view: TextView, name: str, scale: Scale) -> Text:
    """The text on the colours of one of its maps."""
    text = Text()
    for token, colour in zip(view.tokens, scale.hex(view.maps[name].numpy()), strict=True):
        text.append(visible(token), style=f"{ink(colour)} on {colour}")
    return text


def legend(scale: Scale, name: str) -> Text:
    """What the colours mean, in one line: numbers on their own colours, and those between."""
    text = Text(f"  {scale.label}: ")
    (low, least), (middle, between), (high, greatest) = scale.ticks(_said_by(name))
    for first, word, last in ((low, least, middle), (middle, between, high), (high, greatest, None)):
        shown = [(f" {word} ", first)]
        if last is not None:
            shown += [(" ", first + (last - first) * part / STEPS) for part in range(1, STEPS)]
        for (letters, _), colour in zip(shown, scale.hex([value for _, value in shown]), strict=True):
            text.append(letters, style=f"{ink(colour)} on {colour}")
    return text


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"


def _points(value: float) -> str:
    return f"{100 * value:+.3g}" if value else "0"


def _said_by(name: str) -> Callable[[float], str]:
    """How numbers of a map are written: a difference of percentages is in points."""
    return _points if name == "difference" else _percent


def _number(value: float, name: str) -> str:
    """A number of a map, with its unit."""
    return _said_by(name)(value) + " points" * (name == "difference")


def _alt(view: TextView, name: str) -> str:
    """A map in words, for whoever sees no colours."""
    largest = (f"{token} {_number(value, name)}" for token, value in most(view, name))
    return f"Most: {', '.join(largest)}"


def _next(view: TextView) -> str:
    first = f"Next token: {view.first.label!r} ({view.first.probability:.1%})"
    if view.last is None:
        return f"{first}."
    return f"{first} in pass one, {view.last.label!r} ({view.last.probability:.1%}) in pass two."


def _page(view: TextView, meaning: dict[str, Scale]) -> dict[str, Any]:
    maps = []
    for name, values in view.maps.items():
        tokens = [
            {
                "text": visible(token),
                "name": named(view.tokens, index),
                "value": _number(value, name),
                "colour": colour,
                "ink": ink(colour),
            }
            for index, (token, value, colour) in enumerate(
                zip(view.tokens, values.tolist(), meaning[name].hex(values.numpy()), strict=True)
            )
        ]
        maps.append(
            {
                "meaning": MEANING[name],
                "tokens": tokens,
                "alt": _alt(view, name),
                "legend": _legend(meaning[name], name),
            }
        )
    described = described_maps(view.viewer, "attention")
    return {"name": view.viewer.name, "described": described, "next": _next(view), "maps": maps}


def _legend(scale: Scale, name: str) -> dict[str, Any]:
    """A scale as a page has it: colours from one end to the other, and the numbers at the ends and in the middle."""
    words = [word for _, word in scale.ticks(_said_by(name))]
    shown = scale.hex([scale.low + (scale.high - scale.low) * part / STEPS for part in range(STEPS + 1)])
    return {"label": scale.label, "words": words, "colours": ",".join(shown)}


def _record(view: TextView) -> dict[str, Any]:
    steering = view.viewer.model.adapted.steering
    return {
        **origin(view.viewer, view.viewer.name),
        "layer": view.viewer.recorder.level,
        "head": view.viewer.head,
        "alpha": None if steering is None else steering.strength,
        "tokens": view.tokens,
        "checks": None if view.checks is None else view.checks.told(),
        "pass_one": told(view.first),
        "pass_two": told(view.last),
    }

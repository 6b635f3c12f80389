"""Words about what a run sees in an image, for someone who does not know the method."""

from __future__ import annotations

from toast_cli.serve.page.image_explorer import LookSettings, PageImage, RunLook
from toast_cli.utils.names import shorten_name
from toast_cli.visualize.figure_panels import get_label_name, get_label_names, is_right
from toast_cli.visualize.heat_overlay import (
    SIMILARITY_COLOURS,
    CaptionedMap,
    compute_heat_limit,
)
from toast_cli.visualize.view import TopPrediction

LONGEST_NAME = 40


def list_captioned_maps(image: PageImage, look: RunLook, settings: LookSettings) -> list[CaptionedMap]:
    """Return the maps of a run with captions: a title, the answer of the pass, and a remark, one per line."""
    view = look.view
    maps, window = view.maps, view.window
    what = "Where it looks" if view.kind == "attention" else "Where its features are strong"
    if "pass_two" not in maps:
        limit = compute_heat_limit([maps["pass_one"]])
        caption = _join(what, _format_answer(image, look, view.first), _format_share(look, "pass_one", 0))
        return [CaptionedMap(caption, maps["pass_one"], window, high=limit)]
    limit = compute_heat_limit([maps["pass_one"], maps["pass_two"]])
    pointed = settings.box is not None
    after = "After you pointed (experiment)" if pointed else "With TOAST"
    aim = "What resembles your selection (ξ)" if pointed else "What TOAST looks for (ξ)"
    return [
        CaptionedMap(
            _join(
                "Before: the plain model", _format_answer(image, look, view.first), _format_share(look, "pass_one", 0)
            ),
            maps["pass_one"],
            window,
            high=limit,
        ),
        CaptionedMap(
            _join(after, _format_answer(image, look, view.last), _format_share(look, "pass_two", 2)),
            maps["pass_two"],
            window,
            high=limit,
        ),
        CaptionedMap(
            _join(aim, "", "bright: similar, dark: different"), maps["similarity"], window, SIMILARITY_COLOURS
        ),
    ]


def describe_page_look(image: PageImage, look: RunLook, settings: LookSettings) -> list[str]:
    """Return sentences on the answers and on the attention in what a user selected."""
    view, lines = look.view, []
    truth = get_label_name(image.sample, view)
    if truth and view.first is not None:
        lines.append(f"The correct answer is {shorten_name(truth, LONGEST_NAME)}.")
    if look.selected is not None:
        before, usual, pointed = look.selected
        lines.append(
            f"Attention in your selection: {before:.1%} before, {usual:.1%} with TOAST as trained, {pointed:.1%} after "
            "you pointed."
        )
    if "pass_two" in view.maps and settings.strength == 0:
        lines.append("The steering strength is 0, so both pictures show the plain model.")
    return lines


def _format_answer(image: PageImage, look: RunLook, answer: TopPrediction | None) -> str:
    if answer is None:
        return ""
    mark = {None: "", True: " ✓", False: " ✗"}[is_right(answer, get_label_names(image.sample, look.view), look.view)]
    return f"{shorten_name(answer.label, LONGEST_NAME)} · {answer.format()}{mark}"


def _format_share(look: RunLook, name: str, number: int) -> str:
    """Return the share of a map on the labelled object, or in what a user selected."""
    if look.selected is not None:
        return f"{look.selected[number]:.1%} of its attention in your selection"
    share = look.view.shares.get(name)
    return "" if share is None or share != share else f"{share:.0%} of it on the labelled object"


def _join(*lines: str) -> str:
    return "\n".join(lines).rstrip("\n")

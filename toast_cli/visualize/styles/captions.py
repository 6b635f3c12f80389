"""The words of figures: what the maps of a viewer are, and one sentence that a layman understands."""

from __future__ import annotations

from toast_cli.attention.feature_energy import FEATURE_ENERGY
from toast_cli.data.base import Sample
from toast_cli.utils.names import shorten_name
from toast_cli.visualize.view import AttentionViewer, ImageView, TopPrediction

MAX_WORD_LENGTH = 40
"""Largest number of characters of a class in a sentence."""
LITTLE_MOVED = 0.03
"""Share of a map, below which a sentence says that it has not moved."""
REGISTER_NOTE = (
    "×: {cells} that the network itself uses as scratch space (“register tokens”), not parts of the picture. "
    "{share} of the attention is there{without}."
)


def describe_look(kind: str, name: str, two: bool, strength: float = 1.0, pointed: bool = False) -> str:
    """Return the heading of the map of a pass, such as `where it looks with TOAST`.

    `name` is `pass_one` or `pass_two`, `two` whether there are two passes, and `pointed` whether a place in the image
    sets xi.
    """
    look = "where features are strong" if kind == FEATURE_ENERGY else "where it looks"
    if not two:
        return look
    if name == "pass_one":
        return f"{look} without TOAST"
    how = ", pointed at a place (experiment)" if pointed else ""
    return f"{look} with TOAST" + ("" if strength == 1 else f", strength {strength:g}") + how


def get_strength(viewer: AttentionViewer) -> float:
    """Return the factor of the feedback signals; 1 without any."""
    steering = viewer.model.adapted.steering
    return 1.0 if steering is None else steering.strength


def describe_maps(viewer: AttentionViewer, kind: str) -> str:
    """Return a description of the maps, such as `attention of layer 11, mean over heads`."""
    heads = {
        "mean": ", mean over heads",
        "max": ", maximum over heads",
        "rollout": ", rolled out over all layers so far",
    }
    head = heads.get(str(viewer.head), f", head {viewer.head}") if kind == "attention" else ""
    strength = get_strength(viewer)
    ignored = ", without register tokens" if viewer.ignore_registers else ""
    signals = "" if strength == 1 else f", signals × {strength:g}"
    experiment = "" if viewer.box is None else f", ξ from {viewer.box.format()} (experiment)"
    return f"{kind} of layer {viewer.recorder.level}{head}{signals}{ignored}{experiment}"


def write_sentence(sample: Sample, view: ImageView) -> str:
    """Return one sentence on an image: what the model says, how sure it is, and what TOAST changed."""
    last, first = view.last or view.first, view.first if view.last else None
    moved = _describe_move(view)
    clause = f", and {moved}" if moved else ""
    if last is None:
        if view.viewer.plain:
            return "This network has not been tuned, so it names no class; the bright places are where it looks."
        return f"The model labels every pixel{clause}."
    if last.value is not None:
        before = "" if first is None else f" (without TOAST: {format_sureness(first)})"
        return f"The model estimates {_shorten(last.label)} at {format_sureness(last)}{before}{clause}."
    chosen = view.viewer.label is not None
    if chosen or view.viewer.model.objective.target == "labels":
        before = "" if first is None else f"; without TOAST it would be {format_sureness(first)}"
        return f"“{_shorten(last.label)}” gets {format_sureness(last)} from the model{before}{clause}."
    if first is None:
        return f"The model says “{_shorten(last.label)}” and is {format_sureness(last)} sure."
    if first.label == last.label:
        if format_sureness(first) == format_sureness(last):
            return (
                f"With TOAST or without, the model says “{_shorten(last.label)}” and is {format_sureness(last)} "
                f"sure{clause}."
            )
        return (
            f"The model says “{_shorten(last.label)}” and is {format_sureness(last)} sure "
            f"(without TOAST it says the same, {format_sureness(first)} sure){clause}."
        )
    return (
        f"With TOAST the model says “{_shorten(last.label)}” ({format_sureness(last)} sure) instead of "
        f"“{_shorten(first.label)}” ({format_sureness(first)}){clause}."
    )


def format_sureness(prediction: TopPrediction) -> str:
    """Return the probability in whole percent, without claiming 0% or 100%, or the value of a number."""
    if prediction.probability is None:
        return prediction.format()
    if prediction.probability >= 0.995:
        return "more than 99%"
    return "less than 1%" if prediction.probability < 0.005 else prediction.format()


def write_verdict(names: tuple[str, ...] | None, right: bool | None) -> tuple[str, bool | None]:
    """Return the line on the true class of an image, empty if it is not known, and whether the model is right."""
    if not names:
        return "", None
    mark = {None: "", True: ". The model is right ✓", False: ". The model is wrong ✗"}[right]
    return f"Correct answer: {', '.join(map(_shorten, names))}{mark}", right


def write_register_note(view: ImageView) -> str:
    """Return a line on the register tokens of an image; empty if there is none."""
    if view.registers is None or not bool(view.registers.any()):
        return ""
    count = int(view.registers.sum())
    last = view.maps.get("pass_two", view.maps["pass_one"])
    share = float(last[view.registers].sum())
    cells = "one patch" if count == 1 else f"{count} patches"
    removed = "; they are left out here" if view.viewer.ignore_registers else ""
    return REGISTER_NOTE.format(cells=cells, share=f"{share:.0%}", without=removed)


def format_answer(prediction: TopPrediction | None) -> str:
    """Return a prediction in a few words, such as `iris 97%`; empty without one."""
    return "" if prediction is None else f"{_shorten(prediction.label)} {prediction.format()}"


def _shorten(name: str) -> str:
    return shorten_name(name, MAX_WORD_LENGTH)


def _describe_move(view: ImageView) -> str:
    """Return a clause on where the second pass looks: on the object if it is known, else how much has moved."""
    if "pass_two" not in view.maps:
        return ""
    looks = "of its features’ strength" if view.kind == FEATURE_ENERGY else "of its attention"
    if {"pass_one", "pass_two"} <= view.shares.keys():
        before, after = view.shares["pass_one"], view.shares["pass_two"]
        return f"{after:.0%} {looks} is on the outlined object, {before:.0%} without TOAST"
    moved = float(view.get_drawn_maps()["difference"].abs().sum()) / 2
    if moved < LITTLE_MOVED:
        return "it looks at nearly the same places"
    return f"{moved:.0%} {looks} has moved to other places"

"""Whether and how a backbone can be steered, found out without its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from toast_cli.backbones.base import Backbone, Card, Level, Preprocessing
from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    from torch import nn

LARGEST_RANDOM_BUILD = 100_000_000
"""Parameters up to which a model that cannot be built on the meta device is built with random weights."""

AT_THE_VALUES = "the input of the value projection of {levels}; queries and keys do not change"
AT_THE_INPUT = "the input of {levels}"
BEFORE_DOWNSAMPLING = "the input of {levels}, before the down-sampling; from there they reach the whole level"


@dataclass(frozen=True)
class SteeringCheck:
    """What `toast backbones --check` reports about a backbone.

    `maps` names what is drawn: attention maps, or feature energy. `licence` and `published` are those of the published
    weights.
    """

    name: str
    family: str
    network: str
    levels: tuple[Level, ...]
    signal_entry: str
    width: int
    prefix_tokens: int
    maps: str
    preprocessing: Preprocessing | None
    any_image_size: bool
    parameters: int
    source: str
    licence: str | None
    published: bool | None

    def as_dict(self) -> dict[str, Any]:
        """Return the check as JSON data."""
        return {"steered": True, **asdict(self)}

    def format_lines(self) -> list[str]:
        """Return the check as lines of text."""
        maps = f"{self.maps} of every level" if self.maps == "attention" else f"{self.maps}; there is no attention map"
        lines = [
            f"{self.name} can be steered.",
            f"family: {self.family} ({self.network})",
            *_format_levels(self.levels),
            f"signals enter: {self.signal_entry}",
            f"z: {self.width} channels{f'; prefix tokens: {self.prefix_tokens}' if self.prefix_tokens else ''}",
            f"maps: {maps}",
        ]
        if self.preprocessing is not None:
            height, width = self.preprocessing.image_size
            mean, std = (
                ", ".join(f"{value:.3g}" for value in values)
                for values in (self.preprocessing.mean, self.preprocessing.std)
            )
            lines += [
                f"images: {height} × {width} pixels{'; any other size' if self.any_image_size else ''}",
                f"preprocessing: {self.preprocessing.interpolation}, crop {self.preprocessing.crop_pct:.3g} "
                f"({self.preprocessing.crop_mode}), mean ({mean}), std ({std})",
            ]
        published = {True: "", False: ", which publishes no weights", None: ""}[self.published]
        return [
            *lines,
            f"parameters: {self.parameters / 1e6:.1f}M",
            f"weights: {self.source}{published}",
            f"licence: {self.licence or 'not recorded'}",
        ]


def check_steering(card: Card, name: str, listed: Card | None = None, *, family_known: bool = True) -> SteeringCheck:
    """Build a backbone without its weights and report how it is steered.

    Args:
        card: The backbone's card.
        name: Name that the user gave.
        listed: Card of the same model in the catalogue of its family, which knows more about its weights.
        family_known: The card names the family. Otherwise the plugin that steers the model does.

    Raises:
        ToastError: It cannot be steered; the message has the reason.
    """
    backbone = build_without_weights(card, name)
    if backbone.steering_error is not None:
        raise backbone.steering_error
    parameters = sum(weight.numel() for weight in backbone.module.parameters())
    known = [each for each in (card, listed) if each is not None]
    return SteeringCheck(
        name,
        card.family if family_known else type(backbone).__module__.partition(".")[0].removeprefix("toast_"),
        type(backbone.module).__name__,
        tuple(backbone.levels),
        describe_signal_entry(backbone),
        backbone.width,
        backbone.prefix_tokens,
        "attention" if backbone.has_attention else "feature energy",
        backbone.preprocessing,
        backbone.any_image_size,
        parameters,
        card.source if listed is None else f"{listed.name.partition(':')[2]} ({listed.source})",
        next((each.licence for each in known if each.licence), None),
        next((each.published for each in known if each.published is not None), None),
    )


def describe_signal_entry(backbone: Backbone) -> str:
    """Return where signals enter a backbone, in a few words."""
    if backbone.signal_entry is not None:
        return backbone.signal_entry
    at_values = [backbone.steers_values(index) for index in range(len(backbone.levels))]
    if not any(at_values):
        return AT_THE_INPUT.format(levels="every level")
    groups: dict[str, list[int]] = {}
    for number, (level, at_value) in enumerate(zip(backbone.levels, at_values, strict=True), 1):
        place = AT_THE_VALUES if at_value else BEFORE_DOWNSAMPLING if level.stride > 1 else AT_THE_INPUT
        groups.setdefault(place, []).append(number)
    named = {place: _format_numbers(numbers) if len(groups) > 1 else "every level" for place, numbers in groups.items()}
    return "; and ".join(place.format(levels=levels) for place, levels in named.items())


def _format_numbers(numbers: Sequence[int]) -> str:
    """Return increasing numbers of levels in words, such as "levels 1-3 and 5"."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1][1:] = [number]
        else:
            ranges.append([number])
    *most, last = ("-".join(map(str, ends)) for ends in ranges)
    return f"level{'s' * (len(numbers) > 1)} {', '.join(most)}{' and ' * bool(most)}{last}"


def build_without_weights(card: Card, name: str) -> Backbone:
    """Build a backbone on the meta device, whose tensors take no memory, or with random weights if it is small.

    Raises:
        ToastError: It cannot be built or steered, or only in much memory.
    """
    import torch
    from torch.nn.modules.module import register_module_parameter_registration_hook

    options, created = card.options(name=name, weights="none"), 0

    def count(_: nn.Module, __: str, parameter: nn.Parameter | None) -> None:
        nonlocal created
        created += 0 if parameter is None else parameter.numel()

    handle = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            return card.build(options)
    except Exception as error:  # code that needs the values of a tensor may raise anything
        if isinstance(error, ToastError) and not needs_tensor_values(error):
            raise
        why = " ".join(str(error).split())[:200]
        if created > LARGEST_RANDOM_BUILD:
            raise ToastError(
                f"'{name}' cannot be checked without its weights.",
                f"It cannot be built on the meta device ({type(error).__name__}: {why}), and is too large to "
                "be built for this check.",
                "Try it: toast tune --dry-run builds it with its weights.",
                code="backbone.cannot-check",
            ) from error
    finally:
        handle.remove()
    return card.build(options)


def needs_tensor_values(error: BaseException | None) -> bool:
    """Return whether an error, or one that caused it, comes from reading values of a tensor on the meta device."""
    while error is not None:
        if isinstance(error, (RuntimeError, NotImplementedError)) and "meta tensor" in str(error).lower():
            return True
        error = error.__cause__
    return False


def _format_levels(levels: tuple[Level, ...]) -> list[str]:
    lines, first = [], 1
    for level, group in groupby(levels):
        count = len(list(group))
        label = f"level {first}" if count == 1 else f"levels {first}-{first + count - 1}"
        layer = "a linear layer"
        if level.undo == "deconvolution":
            layer = f"a deconvolution with stride {level.stride}" if level.stride > 1 else "a 1 × 1 deconvolution"
        lines.append(f"{label}: {level.width_in} to {level.width_out} channels, undone by {layer}")
        first += count
    return lines

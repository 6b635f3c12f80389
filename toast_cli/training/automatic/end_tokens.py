"""The choice of end tokens whose output rows a run trains: those that the backbone was never trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any

from toast_cli.model.model import Model
from toast_cli.recipe.schema import Recipe
from toast_cli.tasks.output_rows import MIN_NEAR_ROWS, count_near_rows, find_output_layer
from toast_cli.utils.errors import UsageError


@dataclass(frozen=True)
class EndTokenChoice:
    """The end tokens whose output rows are trained, and what to tell the user."""

    tokens: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def choose_end_tokens(model: Model, recipe: Recipe) -> EndTokenChoice:
    """Return which output rows of end tokens a run trains, by `task.end_tokens` and the rows of the backbone.

    With `auto`, these are the tokens that the backbone was never trained on, unless the method trains the output layer.

    Raises:
        UsageError: `task.end_tokens` is `trained`, and the rows cannot be trained.
    """
    wanted = getattr(recipe.task, "end_tokens", None)
    layer = find_output_layer(model.backbone.module)
    ends = getattr(model.objective, "ends", ())
    tokens = tuple(sorted({token for end in ends for token in end}))
    if not isinstance(wanted, str):  # chosen before, or not a language task
        return EndTokenChoice()
    obstacle = _find_obstacle(model, recipe, layer, tokens)
    if obstacle is not None or layer is None:
        if wanted == "trained":
            raise UsageError(
                "task.end_tokens=trained: the output rows of the tokens that end answers cannot be trained.",
                obstacle or "",
                "Use task.end_tokens=auto.",
                code="task.no-output-rows",
            )
        return EndTokenChoice()
    near = dict(zip(tokens, count_near_rows(layer, tokens), strict=True))
    untrained = tuple(token for token in tokens if near[token] >= MIN_NEAR_ROWS)
    chosen = {"trained": tokens, "auto": untrained, "frozen": ()}[wanted]
    notes = [_describe_untrained(model.backbone.tokenizer, untrained, near)] if untrained else []
    if untrained and not chosen:
        notes = [
            f"Warning: {notes[0]} The answers of the tuned model will not stop by themselves. "
            "Use task.end_tokens=auto, which trains the output too, or --method full."
        ]
    if chosen:
        rows = "the output row of 1 token" if len(chosen) == 1 else f"the output rows of {len(chosen)} tokens"
        notes.append(
            f"Also trained, so that answers stop: {rows}, {len(chosen) * layer.in_features:,} parameters "
            "(task.end_tokens=frozen leaves them out)."
        )
    return EndTokenChoice(chosen, tuple(notes))


def _find_obstacle(model: Model, recipe: Recipe, layer: Any, tokens: Sequence[int]) -> str | None:
    """Return why output rows need not, or cannot, be trained apart; None if they can."""
    if not tokens:
        return "The format ends answers with no token of its own."
    if layer is None:
        return "The model has no linear output layer."
    if layer.weight.is_meta or not layer.weight.is_floating_point():
        return "The weights of its output layer cannot be read."
    if any(weight.requires_grad for weight in layer.parameters()):
        return "The method trains the output layer already."
    if recipe.training.shard:
        return "training.shard splits the output layer."
    return None


def _describe_untrained(tokenizer: Any, untrained: Sequence[int], near: dict[int, int]) -> str:
    named = ", ".join(repr(tokenizer.convert_ids_to_tokens(token)) for token in untrained[:5])
    named += f" and {len(untrained) - 5} more" if len(untrained) > 5 else ""
    others = max(near[token] for token in untrained)
    return (
        f"The model does not seem to have been trained on {named}, with which answers end: its output layer hardly "
        f"tells it from {others:,} other tokens, so a frozen layer keeps the loss there at about {log(others + 1):.1f} "
        "or above."
    )

"""Trained additions to single rows of an output layer: the tokens that end answers, which a base model never learned.

The row of a token that the backbone was never trained on is nearly the same as those of all other such tokens, so the
softmax cannot tell them apart, and a method that freezes the output layer cannot learn the token (Land and Bartolo,
"Fishing for Magikarp", 2024, find untrained tokens by the cosine of their rows).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toast_cli.utils.errors import UsageError

NEAR_COSINE = 0.99
"""Cosine from which two rows count as the same."""
MIN_NEAR_ROWS = 8
"""Number of other rows, the same as that of a token, from which it counts as never trained."""
CHUNK_ROWS = 8192
"""Rows that are compared at a time."""


class OutputRows(nn.Module):
    """Trained additions `rows` `[n, d]`, zero at first, to the rows of `tokens` `[n]` of an output layer."""

    tokens: Tensor

    def __init__(self, tokens: Sequence[int], layer: nn.Linear) -> None:
        super().__init__()
        device = layer.weight.device
        self.rows = nn.Parameter(torch.zeros(len(tokens), layer.in_features, device=device))
        self.register_buffer("tokens", torch.tensor(tokens, device=device), persistent=False)
        self.enabled = True


def find_output_layer(network: Any) -> nn.Linear | None:
    """Return the linear output layer of a model of transformers; None if it has none."""
    find = getattr(network, "get_output_embeddings", None)
    layer = None if find is None else find()
    return layer if isinstance(layer, nn.Linear) else None


def add_output_rows(network: nn.Module, tokens: Sequence[int]) -> OutputRows:
    """Add trained rows for `tokens` to the output layer of a network.

    Only outputs change: an input embedding that shares the weights of the layer stays as it is.

    Raises:
        UsageError: The network has no linear output layer, or no such token.
    """
    layer = find_output_layer(network)
    if layer is None or min(tokens) < 0 or max(tokens) >= layer.out_features:
        why = "It has no linear output layer." if layer is None else f"It has {layer.out_features:,} tokens."
        raise UsageError(
            f"{type(network).__name__} has no output rows for the tokens {', '.join(map(str, tokens))}.",
            why,
            "Use task.end_tokens=frozen.",
            code="task.no-output-rows",
        )
    rows = OutputRows(tokens, layer)
    layer.output_rows = rows
    layer.register_forward_hook(_add_logits)
    return rows


def _add_logits(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Add the logits of the trained rows to those of the layer `[..., V]`, in place."""
    added: Any = getattr(layer, "output_rows", None)
    if added is None or not added.enabled:
        return output
    extra = F.linear(inputs[0].to(added.rows.dtype), added.rows)
    return output.index_add_(-1, added.tokens, extra.to(output.dtype))


@contextmanager
def disable_output_rows(network: nn.Module) -> Iterator[None]:
    """Disable the trained rows of the network inside the block."""
    found = [part for part in network.modules() if isinstance(part, OutputRows) and part.enabled]
    for part in found:
        part.enabled = False
    try:
        yield
    finally:
        for part in found:
            part.enabled = True


def remove_output_rows(network: nn.Module) -> None:
    """Remove the trained rows from the network."""
    for layer in [part for part in network.modules() if isinstance(getattr(part, "output_rows", None), OutputRows)]:
        del layer.output_rows
        for key in [key for key, hook in layer._forward_hooks.items() if hook is _add_logits]:
            del layer._forward_hooks[key]


@torch.no_grad()
def merge_output_rows(network: nn.Module, *, untie: bool = False) -> None:
    """Add the trained rows to the weights of their layer, and remove them.

    With `untie`, a layer that shares its weights with the input embedding gets weights of its own.

    Raises:
        UsageError: The layer shares its weights with the input embedding, whose rows must not change, and stays tied.
    """
    for layer in [part for part in network.modules() if isinstance(getattr(part, "output_rows", None), OutputRows)]:
        shared = [part for part in network.modules() if part is not layer and _get_weight(part) is layer.weight]
        if shared and not untie:
            raise UsageError(
                "The trained rows of the end tokens cannot be merged into the backbone's weights.",
                "Its output layer and its input embedding are the same weights, and only the output is trained.",
                "Export with --format hf or --what full, or train with task.end_tokens=frozen.",
                code="method.cannot-merge",
            )
        added: Any = layer.output_rows
        weight: Any = layer.weight
        if shared:
            weight = layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
        weight[added.tokens] += added.rows.to(weight.dtype)
    remove_output_rows(network)


@torch.no_grad()
def get_merged_output_layer(network: nn.Module) -> tuple[str, Tensor] | None:
    """Return the name of the layer with trained rows and its weight `[V, d]` with them added; None without any."""
    for name, layer in network.named_modules():
        added = getattr(layer, "output_rows", None)
        if isinstance(added, OutputRows) and isinstance(layer, nn.Linear):
            return name, layer.weight.index_add(0, added.tokens, added.rows.to(layer.weight.dtype))
    return None


def _get_weight(part: nn.Module) -> Any:
    return part._parameters.get("weight")


@torch.no_grad()
def count_near_rows(layer: nn.Linear, tokens: Sequence[int]) -> list[int]:
    """Return, for each of `tokens`, how many other rows of an output layer are nearly the same as its own.

    The cosine of the same rows is at least `NEAR_COSINE`; a row of zeros is the same as other rows of zeros.
    """
    own = layer.weight[list(tokens)].float()
    zero = own.norm(dim=1) == 0
    counts = torch.zeros(len(tokens), dtype=torch.int64, device=own.device)
    for chunk in layer.weight.split(CHUNK_ROWS):
        rows = chunk.float()
        counts += (F.normalize(rows) @ F.normalize(own).T >= NEAR_COSINE).sum(0)
        counts += zero * (rows.norm(dim=1) == 0).sum()
    return [int(count) - 1 for count in counts]

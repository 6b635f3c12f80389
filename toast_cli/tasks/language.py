"""Language modelling: the model's own head and the cross-entropy of the next token, on target tokens only."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from toast_cli.tasks.base import Meter, Objective, Task
from toast_cli.utils.config import NamedOptions
from toast_cli.utils.constants import BATCH_METADATA_KEYS, IGNORE_INDEX
from toast_cli.utils.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from toast_cli.backbones.base import Backbone


PROBE_TOKENS = 17
"""Tokens of the text on which the memory of the loss is measured."""


class LanguageModelingOptions(NamedOptions):
    """Options of language modelling, which has none."""

    name: Literal["language"] = Field("language", description="the task")


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the summed cross-entropy of the logits `[B, N, V]` at each token and the label `[B, N]` of the next."""
    from torch.nn import functional as F

    learned = labels[:, 1:] != IGNORE_INDEX
    return F.cross_entropy(logits[:, :-1][learned].float(), labels[:, 1:][learned], reduction="sum")


def measure_texts(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of every text, summed over its target tokens, and their number, both `[B]`.

    `logits` are `[B, N, V]` and `labels` `[B, N]`, as for `next_token_loss`.
    """
    from torch.nn import functional as F

    learned = labels[:, 1:] != IGNORE_INDEX
    losses = logits.new_zeros(learned.shape).float()
    losses[learned] = F.cross_entropy(logits[:, :-1][learned].float(), labels[:, 1:][learned], reduction="none")
    return losses.sum(1), learned.sum(1)


class LanguageMeter(Meter):
    """Loss per target token, and perplexity."""

    def __init__(self) -> None:
        super().__init__(loss=0.0, tokens=0, texts=0)

    def add(self, outputs: Tensor, batch: Mapping[str, Any]) -> None:
        """Add logits `[B, N, V]` with labels `batch["labels"]` `[B, N]`."""
        self.sums["loss"] += next_token_loss(outputs, batch["labels"]).item()
        self.sums["tokens"] += count_target_tokens(batch)
        self.sums["texts"] += len(batch["labels"])

    def result(self) -> dict[str, float]:
        """Return `loss`, `perplexity`, and the numbers of `tokens` and `texts`."""
        loss = self.sums["loss"] / max(self.sums["tokens"], 1)
        return {
            "perplexity": exp(loss) if loss < 700 else float("inf"),
            "loss": loss,
            "tokens": self.sums["tokens"],
            "texts": self.sums["texts"],
        }


def count_target_tokens(batch: Mapping[str, Any]) -> int:
    """Return the number of predicted tokens: all labels except the first, which has no preceding token."""
    return int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())


class LanguageModeling(Objective):
    """Next-token prediction with the model's own output layer."""

    target = "text"

    def __init__(self, head: nn.Module) -> None:
        self.head = head

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the token ids `[B, N]` and the masks that come with them."""
        return {name: tensor for name, tensor in batch.items() if name not in ("labels", *BATCH_METADATA_KEYS)}

    def count(self, batch: Mapping[str, Any]) -> int:
        """Return the number of target tokens."""
        return count_target_tokens(batch)

    def loss(self, outputs: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Return the cross-entropy of the target tokens, summed."""
        return next_token_loss(outputs, batch["labels"])

    def make_loss_probe(self, outputs: Tensor, sample: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, Any]]:
        """Return the outputs for a few tokens, all of them learned: those of a long text may not fit into memory."""
        import torch

        tokens = min(PROBE_TOKENS, outputs.shape[1])
        labels = torch.zeros(1, tokens, dtype=torch.int64)
        return torch.zeros(1, tokens, outputs.shape[2], dtype=outputs.dtype), {"labels": labels}

    def meter(self) -> LanguageMeter:
        """Return a new meter of loss and perplexity."""
        return LanguageMeter()


def build_language_modeling(
    options: LanguageModelingOptions, backbone: Backbone, classes: tuple[str, ...]
) -> LanguageModeling:
    """Build the objective with the backbone's own head, which is trained only by methods that train the backbone.

    Raises:
        UsageError: The backbone is not a language model.
    """
    head = backbone.output()
    if head is None:
        raise UsageError(
            f"{type(backbone.module).__name__} is not a language model.",
            what_to_do="Choose a language model: llama:<model>.",
            code="task.not-a-language-model",
        )
    return LanguageModeling(head)


TASK = Task(LanguageModelingOptions, build_language_modeling)

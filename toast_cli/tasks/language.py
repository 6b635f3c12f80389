"""Language modelling: the model's own head, cross-entropy of the next token, on the tokens to be learned alone."""

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


class LanguageModelingOptions(NamedOptions):
    """Language modelling has no settings of its own."""

    name: Literal["language"] = Field("language", description="the task")


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, summed: the logits `[B, N, V]` at a token against the label `[B, N]` of the token after it."""
    from torch.nn import functional as F

    learned = labels[:, 1:] != IGNORE_INDEX
    return F.cross_entropy(logits[:, :-1][learned].float(), labels[:, 1:][learned], reduction="sum")


class LanguageMeter(Meter):
    """Loss per learned token, and its perplexity."""

    def __init__(self) -> None:
        super().__init__(loss=0.0, tokens=0, texts=0)

    def add(self, outputs: Tensor, batch: Mapping[str, Any]) -> None:
        """Logits `[B, N, V]` against `batch["labels"]` `[B, N]`."""
        self.sums["loss"] += next_token_loss(outputs, batch["labels"]).item()
        self.sums["tokens"] += count_target_tokens(batch)
        self.sums["texts"] += len(batch["labels"])

    def result(self) -> dict[str, float]:
        """`loss`, `perplexity`, and over how many `tokens` of how many `texts`."""
        loss = self.sums["loss"] / max(self.sums["tokens"], 1)
        return {
            "perplexity": exp(loss) if loss < 700 else float("inf"),
            "loss": loss,
            "tokens": self.sums["tokens"],
            "texts": self.sums["texts"],
        }


def count_target_tokens(batch: Mapping[str, Any]) -> int:
    """Tokens that are predicted: every label but the first, which nothing comes before."""
    return int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())


class LanguageModeling(Objective):
    """The next token, scored by the model's own output layer."""

    def __init__(self, head: nn.Module) -> None:
        self.head = head

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Token ids `[B, N]`, and whatever says which are real and which belong together."""
        return {name: tensor for name, tensor in batch.items() if name not in ("labels", *BATCH_METADATA_KEYS)}

    def count(self, batch: Mapping[str, Any]) -> int:
        """Tokens to be learned."""
        return count_target_tokens(batch)

    def loss(self, outputs: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Cross-entropy over the tokens to be learned, summed."""
        return next_token_loss(outputs, batch["labels"])

    def meter(self) -> LanguageMeter:
        """Loss and perplexity."""
        return LanguageMeter()

    def score(self, metrics: Mapping[str, Any]) -> float:
        """The lower the loss, the better."""
        return -metrics["loss"]


def build_language_modeling(
    options: LanguageModelingOptions, backbone: Backbone, classes: tuple[str, ...]
) -> LanguageModeling:
    """The backbone's own head, which only a method that trains the backbone changes.

    Raises:
        UsageError: the backbone predicts no tokens.
    """
    head = backbone.output()
    if head is None:
        raise UsageError(
            f"A {type(backbone.module).__name__} writes no text.",
            what_to_do="Choose a language model, llama:<model>.",
            code="task.not-a-language-model",
        )
    return LanguageModeling(head)


TASK = Task(LanguageModelingOptions, build_language_modeling)

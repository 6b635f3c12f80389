"""The learning rates of language models by method and size of the model (`training.lr=recommended`).

Up to `SMALL` parameters the rates are measured, by benchmarks/language_rates.py (docs/reports/results.md). Above, they
are published ones; each row names its source. They are for the batches of the general recipes, four texts a step. The
number of texts is not in the table: the best rates for 32 and for 128 texts were the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from toast_cli.recipe.schema import Recipe
from toast_cli.utils.errors import UsageError

SMALL = 100_000_000
"""Parameters up to which the rates are measured."""

MEASURED = "measured on three models of up to 283 thousand parameters, docs/reports/results.md"
PAPER = "TOAST, appendix A.3, and the authors' command (LLaMA-7B, 52,000 texts and more, batches of 96 to 128)"
ALPACA = (
    "Stanford Alpaca (LLaMA-7B, 52,000 texts, batches of 128), torchtune's 1B_full_single_device for Llama 3.2 "
    "(52,000 texts, batches of 4)"
)
LIMA = "LIMA (LLaMA-65B, 1,000 texts, batches of 32)"
QLORA = "QLoRA, LLaMA-7B and 13B (9,000 texts and more, batches of 16), and LoRA for GPT-2 (E2E, batches of 8)"
LARGE_QLORA = "QLoRA, LLaMA-33B and 65B (9,000 texts and more, batches of 16 and more)"


@dataclass(frozen=True)
class RecommendedRate:
    """A row of the table: a rate for models up to `parameters`, and its source."""

    method: str
    parameters: float
    lr: float
    source: str


RATES = (
    RecommendedRate("toast", SMALL, 0.01, MEASURED),
    RecommendedRate("toast", math.inf, 2e-5, PAPER),
    RecommendedRate("toast-lite", SMALL, 0.03, MEASURED),
    RecommendedRate("toast-lite", math.inf, 2e-5, PAPER),
    RecommendedRate("lora", SMALL, 0.03, MEASURED),
    RecommendedRate("lora", 2e10, 2e-4, QLORA),
    RecommendedRate("lora", math.inf, 1e-4, LARGE_QLORA),
    RecommendedRate("full", SMALL, 0.003, MEASURED),
    RecommendedRate("full", 2e10, 2e-5, ALPACA),
    RecommendedRate("full", math.inf, 1e-5, LIMA),
)
"""Rows in order: the first one of a method for enough parameters applies."""

OTHER_METHODS = "lora"
"""The method whose rates are used for a method without rows, such as PEFT's variants of LoRA."""


@dataclass(frozen=True)
class RateChoice:
    """The recommended rate of a run, and what it was chosen by."""

    rate: RecommendedRate
    method: str
    parameters: int

    @property
    def message(self) -> str:
        """Return the sentence that tells the user of the rate and its source."""
        own = "" if self.method == self.rate.method else f" ({self.method} has no rates of its own)"
        return (
            f"training.lr=recommended: {self.rate.lr:g}, for {self.rate.method} and {self.parameters:,} parameters{own}"
            f". Source: {self.rate.source}. --lr sets another rate."
        )


def find_recommended_rate(method: str, parameters: int) -> RateChoice:
    """Return the row of the table for a method and a model of `parameters`."""
    known = method if any(row.method == method for row in RATES) else OTHER_METHODS
    rows = (row for row in RATES if row.method == known and parameters <= row.parameters)
    return RateChoice(next(rows), method, parameters)


def require_recommended_rates(recipe: Recipe) -> None:
    """Check that the table has rates for the kind of run.

    Raises:
        UsageError: the run is not the tuning of a language model.
    """
    if recipe.task.name != "language" or recipe.pretuning is not None:
        what = "pre-tuning" if recipe.pretuning is not None else f"the task {recipe.task.name}"
        raise UsageError(
            f"There is no recommended learning rate for {what} (training.lr=recommended).",
            "The table has rates for tuning language models.",
            "Set training.lr to a number, or to auto.",
            code="training.no-recommended-rate",
        )

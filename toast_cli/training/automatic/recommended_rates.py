"""The learning rates of language models by method, size of the model and number of texts (`training.lr=recommended`).

Up to `SMALL` parameters the rates are measured, by benchmarks/language_rates.py (docs/reports/results.md). Above, they
are published ones; each row names its source. They are for the batches of the general recipes, four texts a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from toast_cli.recipe.schema import Recipe
from toast_cli.utils.errors import UsageError

SMALL = 100_000_000
"""Parameters up to which the rates are measured."""

MEASURED = "measured on three models of up to 760 thousand parameters, docs/reports/results.md"
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
    """A row of the table: a rate for models up to `parameters` and training splits up to `texts`, and its source."""

    method: str
    parameters: float
    texts: float
    lr: float
    source: str


RATES = (
    RecommendedRate("toast", SMALL, math.inf, 0.01, MEASURED),
    RecommendedRate("toast", math.inf, math.inf, 2e-5, PAPER),
    RecommendedRate("toast-lite", SMALL, math.inf, 0.03, MEASURED),
    RecommendedRate("toast-lite", math.inf, math.inf, 2e-5, PAPER),
    RecommendedRate("lora", SMALL, math.inf, 0.03, MEASURED),
    RecommendedRate("lora", 2e10, math.inf, 2e-4, QLORA),
    RecommendedRate("lora", math.inf, math.inf, 1e-4, LARGE_QLORA),
    RecommendedRate("full", SMALL, math.inf, 0.001, MEASURED),
    RecommendedRate("full", 2e10, math.inf, 2e-5, ALPACA),
    RecommendedRate("full", math.inf, math.inf, 1e-5, LIMA),
)
"""Rows in order: the first one of a method that is large enough in both columns applies."""

OTHER_METHODS = "lora"
"""The method whose rates are used for a method without rows, such as PEFT's variants of LoRA."""


@dataclass(frozen=True)
class RateChoice:
    """The recommended rate of a run, and what it was chosen by."""

    rate: RecommendedRate
    method: str
    parameters: int
    texts: int

    @property
    def message(self) -> str:
        """Return the sentence that tells the user of the rate and its source."""
        own = self.method == self.rate.method
        return (
            f"training.lr=recommended: {self.rate.lr:g}, for {self.rate.method}, {self.parameters:,} parameters and "
            f"{self.texts:,} texts{'' if own else f' ({self.method} has no rates of its own)'}. Source: "
            f"{self.rate.source}. --lr sets another rate."
        )


def find_recommended_rate(method: str, parameters: int, texts: int) -> RateChoice:
    """Return the row of the table for a method, a model and a number of training texts."""
    known = method if any(row.method == method for row in RATES) else OTHER_METHODS
    rows = (row for row in RATES if row.method == known and parameters <= row.parameters and texts <= row.texts)
    return RateChoice(next(rows), method, parameters, texts)


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

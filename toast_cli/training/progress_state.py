"""Where a run stands: how far it has come, and which epoch is the best so far."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any


@dataclass
class BestEpoch:
    """The epoch that validation chose: higher is better, the lower validation loss decides a tie."""

    epoch: int = 0
    score: list[float] = field(default_factory=lambda: [-sys.float_info.max] * 2)
    metrics: dict[str, Any] | None = None

    def offer(self, epoch: int, metrics: dict[str, Any], score: float) -> bool:
        """Take this epoch if it is better than any before."""
        if [score, -metrics["loss"]] <= self.score:
            return False
        self.epoch, self.score, self.metrics = epoch, [score, -metrics["loss"]], metrics
        return True


@dataclass
class TrainingProgress:
    """Where training stands: epochs done whole, batches done of the next one, and optimizer steps in all."""

    epochs: int = 0
    batches: int = 0
    steps: int = 0

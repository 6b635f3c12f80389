"""The pictures of a run. Training asks for them and does not draw: `cli` and `api` pass an object that does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

    from toast_cli.training.evaluate import SplitAnswers
    from toast_cli.training.session import Session


class RunFigures:
    """The pictures of a run; this class draws none."""

    def draw_first_batch(self, session: Session, batch: Mapping[str, Any]) -> dict[str, Image]:
        """Return pictures of the first batch of training, by name."""
        return {}

    def draw_results(self, session: Session, split: str, answers: SplitAnswers | None) -> dict[str, Image]:
        """Return pictures of the selected model on a split, by name. `answers` are those to the split, if any."""
        return {}

    def write_curves(self, folder: Path) -> None:
        """Write the curves of a run that has ended or was interrupted into its folder."""

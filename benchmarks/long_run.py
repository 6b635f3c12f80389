"""Memory, open files and threads of one long run, measured as it goes on, printed and drawn.

    python benchmarks/long_run.py --steps 2000 --out long-run.png -- --method toast training.workers=2

What stands after `--` are overrides of the demo's recipe. A run that neither leaks nor forgets to close is flat after
its first epochs: what is printed is the growth from the first quarter's end to the end.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import psutil

from toast_cli.recipe.lookup import resolve_recipe
from toast_cli.training.reporter import Reporter
from toast_cli.training.tune import tune_model

EVERY = 20
"""Steps between two looks."""
IMAGES, BATCH = 400, 8
NAMES = ("memory in MB", "open files", "threads")


class Watch(Reporter):
    """Looks at this process every few steps."""

    def __init__(self) -> None:
        self.process = psutil.Process()
        self.steps: list[int] = []
        self.seen: list[tuple[float, int, int]] = []

    def report_step(self, step: int, total: int, metrics: dict[str, Any]) -> None:
        if step % EVERY == 0:
            self.steps.append(step)
            now = self.process
            self.seen.append((now.memory_info().rss / 1e6, now.num_fds(), now.num_threads()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("long-run.png"))
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    epochs = -(-given.steps * BATCH // IMAGES)
    small = [f"dataset.train_images={IMAGES}", "dataset.val_images=20", "dataset.test_images=20"]
    sizes = [*small, f"training.batch_size={BATCH}", f"training.epochs={epochs}", "training.log_every=10"]
    resolved = resolve_recipe(device="cpu", overrides=[*sizes, *given.overrides])
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        tune_model(resolved.recipe, Path(folder) / "run", watch)
    quarter = len(watch.seen) // 4
    figure, axes = plt.subplots(len(NAMES), sharex=True, figsize=(7, 6), layout="constrained")
    print(f"{watch.steps[-1]} steps, {epochs} epochs")
    for place, (name, axis) in enumerate(zip(NAMES, axes, strict=True)):
        values = [seen[place] for seen in watch.seen]
        axis.plot(watch.steps, values)
        axis.set_ylabel(name)
        axis.set_ylim(0, 1.15 * max(values))
        print(f"{name}: {values[quarter]:.0f} after {watch.steps[quarter]} steps, {values[-1]:.0f} at the end")
    axes[-1].set_xlabel("optimizer steps")
    figure.savefig(given.out, dpi=110)


if __name__ == "__main__":
    main()

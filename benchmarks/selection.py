"""What carries the selection of a tuned TOAST run: change one part of it at inference and measure again.

    python benchmarks/selection.py RUN [--images 200]

Prints, for every change, test accuracy and the share of the last layer's attention on the object in the second pass.
Then, for each steered level, the same with the signal of that level alone and with all signals but that level's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from toast_cli.attention.maps import AttentionRecorder
from toast_cli.attention.metrics import share_inside
from toast_cli.backbones.base import Readout
from toast_cli.cli.output.console import out
from toast_cli.data.base import BatchOptions
from toast_cli.data.subset import draw_subset
from toast_cli.model.model import Model
from toast_cli.model.recipe_data import build_batches, open_data
from toast_cli.steering.steering import Steering
from toast_cli.storage.load_model import load_model

Signals = list[Tensor]
Change = Callable[[Steering, Readout, Tensor], Signals]
"""From the steering, the first pass and the object's place `[B, N]` (0 to 1, 0 on prefix tokens) to the signals."""


def as_trained(steering: Steering, first: Readout, place: Tensor) -> Signals:
    return list(steering.feedback(steering.selection(first)[1]))


def with_weights(weigh: Callable[[Tensor], Tensor]) -> Change:
    """Change the token weights m_i."""

    def change(steering: Steering, first: Readout, place: Tensor) -> Signals:
        m = weigh(steering.selection.compute_similarity(first))
        return list(steering.feedback(F.linear(m.unsqueeze(-1) * first.z, steering.selection.P)))

    return change


def without_P(steering: Steering, first: Readout, place: Tensor) -> Signals:
    m = steering.selection.compute_similarity(first)
    return list(steering.feedback(m.unsqueeze(-1) * first.z))


def scaled(factor: float) -> Change:
    return lambda steering, first, place: [factor * signal for signal in as_trained(steering, first, place)]


def shuffled(steering: Steering, first: Readout, place: Tensor) -> Signals:
    """Give every token the signals of another token of the image, the class token its own."""
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(place.shape[1] - 1)])
    return [signal[:, order] for signal in as_trained(steering, first, place)]


def averaged(steering: Steering, first: Readout, place: Tensor) -> Signals:
    """Give every token the mean signal of its image."""
    return [signal.mean(1, keepdim=True).expand_as(signal) for signal in as_trained(steering, first, place)]


def where(keep: Callable[[Tensor], Tensor]) -> Change:
    """Send the signals of some tokens alone; those of the others are zero."""
    return lambda steering, first, place: [
        keep(place).unsqueeze(-1) * signal for signal in as_trained(steering, first, place)
    ]


def levels(keep: Sequence[int]) -> Change:
    """Send the signals of some levels alone."""
    return lambda steering, first, place: [
        signal if level in keep else torch.zeros_like(signal)
        for level, signal in zip(steering.levels, as_trained(steering, first, place), strict=True)
    ]


def measure(model: Model, batches: Sequence[dict[str, Tensor]], change: Change) -> tuple[float, float]:
    """Return accuracy and attention on the object in the second pass."""
    steering = model.adapted.steering
    assert isinstance(steering, Steering)
    recorder = AttentionRecorder(model, checked=False)
    right, shares, images = 0, 0.0, 0
    for batch in batches:
        grid = model.backbone.grid(batch["image"])
        place = F.adaptive_avg_pool2d(batch["mask"].float()[:, None], grid).flatten(1)
        place = F.pad(place, (model.backbone.prefix_tokens, 0))

        def signals(first: Readout, place: Tensor = place) -> tuple[Tensor, Tensor, Signals]:
            m, selected = steering.selection(first)
            return m, selected, change(steering, first, place)

        steering.compute_signals = signals  # type: ignore[method-assign]
        look = recorder.record(batch["image"])
        del steering.compute_signals
        assert look.last is not None
        right += int((look.logits.argmax(-1) == batch["label"]).sum())
        shares += float(share_inside(look.last, batch["mask"]).sum())
        images += len(batch["label"])
    return right / images, shares / images


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=200)
    given = parser.parse_args()
    torch.manual_seed(0)
    loaded = load_model(given.run)
    model, data = loaded.model.eval(), open_data(loaded.recipe)
    steering = model.adapted.steering
    assert isinstance(steering, Steering)
    split = draw_subset(data.splits["test"], given.images, loaded.recipe.seed)  # type: ignore[arg-type]
    batches = list(build_batches(split, loaded.recipe, model.backbone, BatchOptions(50, with_masks=True)))
    first, last = steering.levels.start, steering.levels.stop
    middle = (first + last) // 2
    changes: dict[str, Change] = {
        "as trained": as_trained,
        "no signals": scaled(0.0),
        "m_i replaced by their mean over the image's tokens": with_weights(
            lambda m: m.mean(1, keepdim=True).expand_as(m)
        ),
        "m_i = 1": with_weights(torch.ones_like),
        "P = I": without_P,
        "signals negated": scaled(-1.0),
        "signals of other tokens": shuffled,
        "every token the mean signal": averaged,
        "signals on the object alone": where(lambda place: (place > 0.25).float()),
        "signals off the object alone": where(lambda place: (place <= 0.25).float()),
        "class token's signal alone": where(lambda place: F.pad(torch.zeros_like(place[:, 1:]), (1, 0), value=1.0)),
        f"levels {first + 1} to {middle} alone": levels(range(first, middle)),
        f"levels {middle + 1} to {last} alone": levels(range(middle, last)),
    }
    for level in steering.levels:
        changes[f"level {level + 1} alone"] = levels([level])
        changes[f"all but level {level + 1}"] = levels([other for other in steering.levels if other != level])
    out.print("| changed at inference | accuracy | attention on the object, pass two |\n|---|---|---|")
    for name, change in changes.items():
        accuracy, share = measure(model, batches, change)
        out.print(f"| {name} | {accuracy:.1%} | {share:.1%} |")


if __name__ == "__main__":
    main()

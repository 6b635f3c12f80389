"""How often pointing at an object moves attention to it: xi is set from the tokens that a click or a box selects.

    python benchmarks/pointing.py --run runs/scenes --scenes 100

The run is one on the demo's scenes (`--dataset demo`), each with a beetle, which the task is about, and three other
objects. Every object of every test scene is clicked once, at a random pixel of its mask that is not covered by another
object, and boxed once by the bounding box of its mask. Only its visible pixels count. Attention is that of the last
layer, mean over heads, as the share of the map inside of the mask. Reported, with 95% Wilson intervals:

- how often the share rises from the first pass (the plain backbone) to the pointed pass;
- how often it rises from the second pass with the trained xi to the pointed pass;
- for pairs of objects of one scene: how often A has more attention when A is selected than when B is.

Nothing is chosen on these scenes: strength 1, the last layer and the mean over heads are the defaults of the page.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from toast_cli.attention.image_box import ImageBox, compute_box_direction
from toast_cli.attention.kept_passes import PassRecorder
from toast_cli.attention.metrics import share_inside
from toast_cli.data.demo.scene_generator import TARGET_KIND, draw_fine_objects
from toast_cli.data.demo.scenes import DemoOptions, create_image_rng, get_demo_classes
from toast_cli.evaluation.attention_evaluation import build_viewer
from toast_cli.evaluation.open_run import RunRequest, open_run
from toast_cli.utils.statistics import estimate_proportion
from toast_cli.visualize.view import AttentionViewer

LEAST_VISIBLE = 0.3
"""Share of an object's pixels that later objects must leave visible."""


def draw_objects(options: DemoOptions, index: int) -> tuple[Image.Image, list[tuple[str, np.ndarray]]]:
    """Return a test scene, and kind and visible mask of its objects."""
    names = get_demo_classes(options)
    rng = create_image_rng(options, "test", index)
    pixels, painted = draw_fine_objects(rng, options.side, names[index % len(names)], names)
    visible, covered = [], np.zeros(pixels.shape[:2], bool)
    for kind, mask in reversed(painted):
        rest = mask & ~covered
        covered |= mask
        if rest.sum() >= LEAST_VISIBLE * max(mask.sum(), 1):
            visible.append((kind, rest))
    return Image.fromarray(pixels), visible


def select(mask: np.ndarray, how: str, rng: np.random.Generator) -> ImageBox:
    rows, columns = np.nonzero(mask)
    if how == "click":
        chosen = int(rng.integers(len(rows)))
        return ImageBox(columns[chosen] + 0.5, rows[chosen] + 0.5)
    left, top = int(columns.min()), int(rows.min())
    return ImageBox(left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top)


def measure_scene(
    viewer: AttentionViewer, options: DemoOptions, index: int, strength: float
) -> dict[str, list[tuple[str, np.ndarray]]]:
    """Return for click and box: per selected object its kind and shares `[passes, objects]`.

    The passes are the first one, the second one as trained, and the pointed one.
    """
    image, objects = draw_objects(options, index)
    recorder, level = PassRecorder(viewer.model), len(viewer.model.backbone.levels) - 1
    window = viewer.transform.compute_window(image)
    transformed = [viewer.transform(image, mask)[1] for _, mask in objects]
    masks = torch.stack([mask for mask in transformed if mask is not None])
    inputs = viewer.transform(image)[0][None]
    kept = recorder.run_first(inputs)
    assert kept.first is not None

    def measure(map: torch.Tensor) -> np.ndarray:
        return share_inside(map.expand(len(masks), -1, -1), masks).numpy()

    before = measure(kept.recorded.compute_map(level, "mean"))
    trained = measure(recorder.run_second(kept, strength).recorded.compute_map(level, "mean"))
    rng = np.random.default_rng([7, index])
    found: dict[str, list[tuple[str, np.ndarray]]] = {"click": [], "box": []}
    for how, rows in found.items():
        for kind, mask in objects:
            xi, _ = compute_box_direction(viewer.model.backbone, inputs, kept.first, window, select(mask, how, rng))
            pointed = measure(recorder.run_second(kept, strength, xi).recorded.compute_map(level, "mean"))
            rows.append((kind, np.stack([before, trained, pointed])))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--strength", type=float, default=1.0)
    given = parser.parse_args()
    run = open_run(RunRequest(given.run))
    assert isinstance(run.recipe.dataset, DemoOptions) and run.recipe.dataset.task == "fine"
    viewer = build_viewer(run, given.run.name)
    counts: dict[tuple[str, str, str], list[bool]] = defaultdict(list)
    shares: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
    began = time.perf_counter()
    for index in range(given.scenes):
        for how, rows in measure_scene(viewer, run.recipe.dataset, index, given.strength).items():
            for number, (kind, passes) in enumerate(rows):
                before, trained, pointed = passes[:, number]
                if np.isnan(before):
                    continue
                who = "the beetle" if kind == TARGET_KIND else "another object"
                for group in (who, "any object"):
                    counts[how, group, "above the first pass"].append(bool(pointed > before))
                    counts[how, group, "above the trained second pass"].append(bool(pointed > trained))
                    shares[how, group].append(passes[:, number])
            for (a, (_, with_a)), (_, (_, with_b)) in permutations(enumerate(rows), 2):
                if not np.isnan(with_a[2, a]):
                    counts[how, "pairs", "A when A is selected, above A when B is"].append(
                        bool(with_a[2, a] > with_b[2, a])
                    )
    record: dict[str, object] = {"run": given.run.name, "scenes": given.scenes, "strength": given.strength}
    for (how, group), values in shares.items():
        first, trained, pointed = np.mean(values, axis=0)
        print(f"{how:6} {group:15} mean share: first {first:.3f}, trained {trained:.3f}, pointed {pointed:.3f}")
        record[f"{how}, {group}, mean shares"] = [float(first), float(trained), float(pointed)]
    for (how, group, what), rose in counts.items():
        estimate = estimate_proportion(np.array(rose))
        print(f"{how:6} {group:15} {what}: {sum(rose)} of {len(rose)}, {estimate}")
        record[f"{how}, {group}, {what}"] = [sum(rose), len(rose)]
    print(json.dumps(record))
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()

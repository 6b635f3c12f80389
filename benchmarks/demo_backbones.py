"""Variants of `vit_demo`, each pre-trained for about half an hour and measured on the demo's task. Resumable.

    torchrun --nproc-per-node 2 benchmarks/demo_backbones.py --out variants     # every variant, or: --only "6 blocks"
    python benchmarks/demo_backbones.py --out variants --table                  # what is there so far

A variant changes the recipes demo/pretrain-1-several and demo/pretrain-2-dominant, or the network. All see equally many
images. Then a linear probe and TOAST from least squares are tuned on 50 scenes with seed 0. Validation is shown, not
test: variants are compared to choose one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from timm.models.vision_transformer import VisionTransformer

from toast_cli import registry
from toast_cli.backbones.base import Card, Preprocessing
from toast_cli.model.model import get_merged_state_dict
from toast_cli.recipe.lookup import resolve_recipe
from toast_cli.storage.load_model import load_model
from toast_cli.training.reporter import Reporter
from toast_cli.training.tune import tune_model
from toast_cli.utils.files import write_tensors
from toast_vit.backbone import VitBackbone
from toast_vit.cards import VIT_DEMO
from toast_vit.demo import IMAGE_SIDE
from toast_vit.options import VitOptions

STAGES = ("demo/pretrain-1-several", "demo/pretrain-2-dominant")
IMAGES = {STAGES[0]: 130_000, STAGES[1]: 50_000}


@dataclass(frozen=True)
class Variant:
    """How a backbone differs from `vit_demo`: its stages, their settings, and its network."""

    stages: Sequence[str] = STAGES
    changes: Sequence[str] = ()
    depth: int = 12
    registers: int = 0


VARIANTS = {
    "as vit_demo": Variant(),
    "no dominant-thing stage": Variant(stages=STAGES[:1]),
    "dominant-thing stage alone": Variant(stages=STAGES[1:]),
    "no patch labels": Variant(changes=("task.patch_weight=0",)),
    "8 blocks": Variant(depth=8),
    "6 blocks": Variant(depth=6),
    "4 register tokens": Variant(registers=4),
}


def build(variant: Variant, options: VitOptions) -> VitBackbone:
    """Build a variant's network."""
    module = VisionTransformer(
        img_size=IMAGE_SIDE, patch_size=8, embed_dim=128, depth=variant.depth, num_heads=4, mlp_ratio=3, num_classes=0,
        reg_tokens=variant.registers, weight_init="jax",
    )  # fmt: skip
    if options.weights not in (None, "none"):
        from safetensors.torch import load_file

        module.load_state_dict(load_file(str(options.weights)))
    return VitBackbone(module, Preprocessing((IMAGE_SIDE, IMAGE_SIDE), (0.5,) * 3, (0.25,) * 3))


def card_of(variant: Variant) -> Card:
    """Stand in for `vit_demo` with a variant's network."""
    return replace(VIT_DEMO, build=partial(build, variant), artifact=None, superseded={})


def pretrain(variant: Variant, folder: Path) -> Path:
    """Run a variant's stages, those that are done already left out; return its weights."""
    weights, total = "none", sum(IMAGES.values())
    given = sum(IMAGES[stage] for stage in variant.stages)
    for stage in variant.stages:
        run, made = folder / stage.rpartition("/")[2], folder / f"{stage.rpartition('/')[2]}.safetensors"
        images = round(IMAGES[stage] * total / given)
        if not made.exists():
            changes = [f"dataset.train_images={images}", f"backbone.weights={weights}", "test=false", *variant.changes]
            recipe = resolve_recipe(recipe=stage, device="cpu", overrides=changes).recipe
            tune_model(recipe, run, Reporter(), resume=(run / "recipe.yaml").is_file())
            write_tensors(made, get_merged_state_dict(load_model(run).model))
        weights = str(made)
    return Path(weights)


def measure(weights: Path, folder: Path) -> dict[str, Any]:
    """Tune a linear probe and TOAST on 50 scenes and return their validation accuracy and attention."""
    found = {}
    for method, changes in {"linear": [], "toast": ["init_from=null"]}.items():
        watch = ["test=false", "training.validate_attention=true", f"backbone.weights={weights}"]
        recipe = resolve_recipe(recipe=f"demo/{method}", device="cpu", overrides=[*watch, *changes]).recipe
        _, results = tune_model(recipe, folder / method, Reporter())
        validation = results["validation"]
        found[method] = {"accuracy": validation["accuracy"], **validation["attention_share"]}
    return found


def table(out: Path) -> str:
    """Return a Markdown table of the variants that are done."""
    lines = [
        "| variant | linear | TOAST | attention on the object, pass one | pass two |\n|---|---|---|---|---|",
    ]
    for name in VARIANTS:
        file = out / name / "results.json"
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            linear, toast = found["linear"], found["toast"]
            shown = (linear["accuracy"], toast["accuracy"], toast["pass_one"], toast["pass_two"])
            lines.append(f"| {name} | " + " | ".join(f"{value:.1%}" for value in shown) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("variants"))
    parser.add_argument("--only", action="append", choices=sorted(VARIANTS))
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    stock = registry.load_backbone_card
    for name in () if given.table else given.only or VARIANTS:
        folder = given.out / name
        if (folder / "results.json").is_file():
            continue
        registry.load_backbone_card = lambda asked, name=name: (  # type: ignore[assignment, misc]
            card_of(VARIANTS[name]) if asked == "vit_demo" else stock(asked)
        )
        folder.mkdir(parents=True, exist_ok=True)
        found = measure(pretrain(VARIANTS[name], folder), folder)
        (folder / "results.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
    print(table(given.out))


if __name__ == "__main__":
    main()

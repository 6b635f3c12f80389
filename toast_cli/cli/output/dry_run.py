"""Output of `--dry-run`, for tuning and pre-tuning."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toast_cli.recipe.schema import Recipe


def print_dry_run(recipe: Recipe, as_json: bool, labels: bool = True) -> None:
    """Print the size and cost of a run and the shapes of its first batch, notes, and the resolved recipe.

    Nothing is written. The recipe is printed without fields that do not concern the task. `labels` says whether the run
    needs labels.
    """
    from toast_cli.utils.lazy_imports import collect_garbage_less_often

    collect_garbage_less_often()

    from toast_cli.cli.output.console import print_json, print_line
    from toast_cli.recipe.safe_yaml import to_yaml
    from toast_cli.recipe.schema import IMAGE_FIELDS
    from toast_cli.training.automatic.placeholders import choose_workers, describe_open_choices, fill_placeholders
    from toast_cli.training.optimization import describe_schedule
    from toast_cli.training.session import prepare_session
    from toast_cli.utils.constants import BATCH_METADATA_KEYS

    recipe = choose_workers(recipe)
    session = prepare_session(fill_placeholders(recipe), labels=labels, place=False)
    sizes = session.measure_model_sizes()
    batches = session.make_loader("train", train=True)
    steps, *notes = describe_schedule(session.recipe.training, len(batches))
    batch = next(iter(batches))
    shapes = {name: list(tensor.shape) for name, tensor in batch.items() if name not in BATCH_METADATA_KEYS}
    memory = session.estimate_memory(batch)
    samples = {name: len(split) for name, split in session.data.splits.items()}
    if as_json:
        facts = {**sizes, "memory": asdict(memory), "first_batch": shapes, "samples": samples}
        print_json({"recipe": recipe.model_dump(mode="json"), **facts})
        return
    own, plain = sizes["flops"], sizes["flops_plain"]
    lines = [
        "samples: " + ", ".join(f"{count:,} {name}" for name, count in samples.items()),
        *([f"classes: {len(session.data.classes)}"] if session.data.classes else []),
        *([signals] if (signals := _describe_steering(session.model)) else []),
        steps,
        f"trainable parameters: {sizes['trained_parameters']:,} of {sizes['total_parameters']:,}",
        f"FLOPs per {sizes['flops_per']}: {own:.4g}, {own / plain:.2f} × the plain backbone's {plain:.4g}",
        str(memory),
        *([warning] if (warning := memory.format_warning(session.accelerator.device)) else []),
        f"first batch: {', '.join(f'{name} {shape}' for name, shape in shapes.items())}",
        "Dry run: nothing was trained or written.",
    ]
    for line in [
        *lines,
        "",
        *session.data.messages,
        *batches.notes,
        *session.describe_choices(),
        *(() if session.start is None else session.start.messages),
        *describe_open_choices(recipe),
        *notes,
        "",
        *to_yaml(recipe, IMAGE_FIELDS if session.model.objective.target == "text" else None).splitlines(),
    ]:
        print_line(line)


def _describe_steering(model: Any) -> str | None:
    """Describe which levels receive feedback signals; None for a method without feedback."""
    if model.adapted.steering is None:
        return None
    levels, count = model.adapted.steering.levels, len(model.backbone.levels)
    return f"feedback: from level {levels.stop} to levels {levels.start + 1}-{levels.stop} of {count}"

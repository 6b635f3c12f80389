"""`hf`: a folder that transformers loads, once `toast_cli.register()` has told it what 'toast' is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toast_cli.export.base import ExportFormat, ExportRequest, ExportRunner, Outputs
from toast_cli.export.redact_paths import redact_recipe
from toast_cli.storage.checksums import read_checksummed_json

if TYPE_CHECKING:
    from torch import Tensor

    from toast_cli.backbones.base import Preprocessing
    from toast_cli.backbones.image_options import ImageOptions
    from toast_cli.storage.load_model import LoadedModel


def write_hf(loaded: LoadedModel, wanted: ExportRequest, path: Path) -> None:
    """Configuration, weights, what prepares the inputs, and a model card."""
    import torch

    from toast_cli.export.hf_model import WEIGHTS, build_hf_config
    from toast_cli.model.model import fold_model
    from toast_cli.storage.adapter import save_adapter_file
    from toast_cli.utils.atomic import write_json, write_text

    dtype = getattr(torch, wanted.dtype)
    model = fold_model(loaded.model) if wanted.fold else loaded.model
    config = replace(
        loaded.config,
        recipe=redact_recipe(loaded.config.recipe),
        whole=True,
        folded=wanted.fold or loaded.config.folded,
    )
    save_adapter_file(
        path / WEIGHTS,
        model,
        config,
        with_backbone=True,
        cast=lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor,
    )
    build_hf_config(model, config).save_pretrained(path)
    backbone = model.backbone
    if backbone.preprocessing is not None:
        spelled = build_image_processor_config(
            backbone.preprocessing, loaded.recipe.images, whole=model.objective.dense
        )
        write_json(path / "preprocessor_config.json", spelled)
    if backbone.tokenizer is not None:
        backbone.tokenizer.save_pretrained(path)
    write_text(path / "README.md", build_model_card(loaded, wanted))


def reopen_hf(wanted: ExportRequest, path: Path) -> ExportRunner:
    """With transformers' Auto classes."""
    import transformers

    from toast_cli.export.hf_model import register

    register()
    architecture = json.loads((path / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    auto: Any = getattr(transformers, architecture.replace("ToastFor", "AutoModelFor"))
    model = auto.from_pretrained(path)

    def run(named: dict[str, Tensor]) -> Outputs:
        given = {{"image": "pixel_values"}.get(name, name): tensor for name, tensor in named.items()}
        return {"logits": model(**given).logits}

    return run


def build_image_processor_config(seen: Preprocessing, images: ImageOptions, whole: bool) -> dict[str, Any]:
    """How a run prepares images as transformers' image processors spell it: cover, cut out the centre, normalise.

    With `whole`, or where the run squashes its images, nothing is cut away: they are resized to the input size.
    """
    height, width = seen.image_size
    shorter = images.resize or int(min(height, width) / seen.crop_pct)
    mean, std = images.normalization(seen.mean, seen.std)
    whole = whole or images.squash
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": height, "width": width} if whole else {"shortest_edge": shorter},
        "resample": {"nearest": 0, "bilinear": 2, "bicubic": 3}[seen.interpolation],
        "do_center_crop": not whole,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def build_model_card(loaded: LoadedModel, wanted: ExportRequest) -> str:
    """The model card: what it does, how it was made and how good it is, as far as the run recorded that."""
    recipe, config = redact_recipe(loaded.config.recipe), loaded.config
    task, language = recipe["task"]["name"], loaded.model.backbone.preprocessing is None
    auto, pipeline = "AutoModelForImageClassification", "image-classification"
    if language:
        auto, pipeline = "AutoModelForCausalLM", "text-generation"
    elif loaded.model.objective.dense:
        auto, pipeline = "AutoModelForSemanticSegmentation", "image-segmentation"
    licence = loaded.model.backbone.licence
    lines = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {pipeline}",
        *([f"license: {licence}"] if licence else []),
        "tags: [toast]",
        "---",
        "",
        f"# {recipe['method']['name']} on {recipe['backbone']['name']} for {recipe['dataset']['name']}",
        "",
        "A frozen backbone that looks twice: TOAST (Shi, Gai, Darrell and Wang, arXiv:2305.15542) selects what matters",
        "for the task from the first pass, and feeds it back into every layer of the second.",
        "",
        f"- Task: {task}" + (f", {len(config.classes)} classes" if config.classes else ""),
        f"- Method: {_format_section(_omit_keys(recipe['method'], 'start', 'start_images'))}",
        f"- Trained parameters: {config.trained_parameters:,}",
        f"- Weights: {wanted.dtype}" + (", folded: for inference alone" if wanted.fold or config.folded else ""),
        f"- Data: {_format_section(recipe['dataset'])}",
        f"- Backbone: {recipe['backbone']['name']}, fingerprint `{config.backbone_fingerprint[:16]}…`",
        *_format_lineage(loaded.path, recipe),
        f"- Licence of the backbone: {licence or 'not recorded; ask where its weights came from'}",
        *_format_metrics(loaded.path),
        "",
        "```python",
        "import toast_cli",
        f"from transformers import {auto}",
        "",
        "toast_cli.register()",
        f'model = {auto}.from_pretrained("THIS_FOLDER")',
        "```",
    ]
    if loaded.model.backbone.has_attention and not language:
        lines += [
            "",
            "Where it looks, in the first pass and in the last, `[B, rows, columns]` each:",
            "",
            "```python",
            'maps = toast_cli.load("THIS_FOLDER").attention("image.jpg")  # .first, .last, .similarity',
            "```",
        ]
    if config.classes:
        names = [f"{index}. {name}" for index, name in enumerate(config.classes)]
        lines += ["", "## Classes", "", *names]
    return "\n".join([*lines, ""])


def _format_lineage(run: Path, recipe: dict[str, Any]) -> list[str]:
    """Where what was learned comes from: an imported checkpoint, or what the feedback path started from."""
    results = _read_results(run)
    if "imported_from" not in results:
        start = recipe["init_from"] or recipe["method"].get("start", "no feedback path")
        return [f"- Feedback path from: {start}", f"- Seed: {recipe['seed']}"]
    departures = ", ".join(f"backbone.{name}={value}" for name, value in (results.get("departures") or {}).items())
    return [
        f"- Imported from: {results['imported_from']} (SHA-256 `{results['file_sha256'][:16]}…`), of the authors' code",
        "- How it was trained is not recorded there",
        f"- Computed as there: {departures or 'no departure from the paper'}",
    ]


def _read_results(run: Path) -> dict[str, Any]:
    """What is recorded at the end of a run, where that lies with it."""
    return read_checksummed_json(run / "results.json") if (run / "results.json").is_file() else {}


def _omit_keys(section: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in section.items() if name not in names}


def _format_section(section: dict[str, Any]) -> str:
    """A recipe's section in one line."""
    told = {name: value for name, value in section.items() if value is not None}
    name = told.pop("name")
    return f"{name} ({', '.join(f'{key}={value}' for key, value in told.items())})" if told else name


def _format_metrics(run: Path) -> list[str]:
    """The run's closing numbers, where they lie with it."""
    results, lines = _read_results(run), list[str]()
    for split in ("validation", "test"):
        metrics = results.get(split) or {}
        told = [f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, int | float)]
        lines += [f"- {split.capitalize()}: {', '.join(told)}"] if told else []
    return lines


FORMAT = ExportFormat(
    "",
    ("full",),
    write_hf,
    reopen_hf,
    dict.fromkeys(("float32", "float16", "bfloat16"), 1e-5),  # whatever it is stored in, float32 is computed with
    loads="transformers",
)

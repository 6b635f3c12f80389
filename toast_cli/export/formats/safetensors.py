"""`safetensors`: one file with the adapter, the whole model, the backbone's weights alone, or a pre-tuned artifact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from toast_cli.export.base import ExportFormat, ExportRequest, ExportRunner, Outputs
from toast_cli.export.redact_paths import get_backbone_folder, redact_recipe

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from toast_cli.storage.load_model import LoadedModel


def write_safetensors(loaded: LoadedModel, wanted: ExportRequest, path: Path) -> None:
    """Write `adapter`, `full`, `backbone` or `artifact` in a storage type.

    `backbone` holds the network's own names, to be given to `--weights`, with low-rank factors worked into its weights;
    `artifact` is for `--init-from`; the other two load with `--run`.

    Raises:
        UsageError: what PEFT put into the backbone cannot be worked into its weights; there is nothing to fold.
    """
    import torch

    from toast_cli.model.model import fold_model, get_merged_state_dict
    from toast_cli.storage.adapter import BACKBONE_METADATA_KEY, save_adapter_file
    from toast_cli.storage.pretuned import read_artifact, save_artifact_file
    from toast_cli.utils.files import write_tensors

    dtype: torch.dtype = getattr(torch, wanted.dtype)
    if wanted.part == "backbone":
        tensors = get_merged_state_dict(loaded.model)
        told = {"format": "pt", BACKBONE_METADATA_KEY: redact_recipe(loaded.config.recipe)["backbone"]["name"]}
        write_tensors(path, {name: _cast_floating_point(tensor, dtype) for name, tensor in tensors.items()}, told)
        return
    if wanted.part == "artifact":
        lineage, _ = read_artifact(loaded.path)
        recipe = redact_recipe(lineage.recipe)
        lineage = replace(lineage, backbone=recipe["backbone"]["name"], recipe=recipe)
        save_artifact_file(
            path,
            loaded.model,
            lineage,
            with_files=_has_unnamed_backbone(loaded),
            cast=lambda tensor: _cast_floating_point(tensor, dtype),
        )
        return
    model = fold_model(loaded.model) if wanted.fold else loaded.model
    save_adapter_file(
        path,
        model,
        replace(
            loaded.config,
            recipe=redact_recipe(loaded.config.recipe),
            folded=wanted.fold or loaded.config.folded,
            # The adapter alone of a file that is whole is so no longer, unless all of it was trained.
            whole=model.network_tensors().keys() <= {*model.trained(), *model.get_frozen_additions()},
        ),
        with_backbone=wanted.part == "full",
        with_files=_has_unnamed_backbone(loaded),
        cast=lambda tensor: _cast_floating_point(tensor, dtype),
    )


def _has_unnamed_backbone(loaded: LoadedModel) -> bool:
    """Whether readers learn nowhere else what the backbone is.

    Its name was that of a folder here, and its weights, a file or random ones, do not tell it either; or it came from a
    file that had to tell it.
    """
    from toast_cli.storage.adapter import read_backbone_files

    named = loaded.recipe.backbone
    weights_tell = named.weights is None or Path(named.weights).expanduser().is_dir()
    return bool(read_backbone_files(loaded.path)) or (get_backbone_folder(named.name) is not None and not weights_tell)


def _cast_floating_point(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def reopen_safetensors(wanted: ExportRequest, path: Path) -> ExportRunner:
    """With toast: the whole model as `--run`, the backbone as `--weights`, a start as `--init-from`."""
    from toast_cli import registry
    from toast_cli.export.verification_outputs import compute_artifact_outputs, compute_outputs, to_backbone_inputs
    from toast_cli.steering.steering import run_one_pass
    from toast_cli.storage.load_model import load_model
    from toast_cli.storage.pretuned import load_artifact

    if wanted.part == "artifact":
        start = load_artifact(path, wanted.backbone_weights).model
        return lambda named: compute_artifact_outputs(start, named)
    if wanted.part != "backbone":
        model = load_model(path, wanted.backbone_weights).model
        return lambda named: compute_outputs(model, named)
    assert wanted.backbone_options is not None
    card = registry.load_backbone_card(wanted.backbone_options["name"])
    backbone = card.build(card.options(**{**wanted.backbone_options, "weights": str(path)}))
    backbone.module.float().eval()

    def run(named: dict[str, Tensor]) -> Outputs:
        return {"features": run_one_pass(backbone, to_backbone_inputs(named)).last.pooled}

    return run


FORMAT = ExportFormat(
    ".safetensors",
    ("adapter", "full", "backbone", "artifact"),
    write_safetensors,
    reopen_safetensors,
    dict.fromkeys(("float32", "float16", "bfloat16"), 1e-5),  # whatever it is stored in, float32 is computed with
)

"""`safetensors`: one file with the adapter, the full model, the backbone, or a pre-tuned artifact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from toast_cli.export.base import ExportFormat, ExportRequest, ExportRunner, Outputs
from toast_cli.export.redact_paths import get_backbone_folder, redact_config, redact_recipe

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from toast_cli.storage.load_model import LoadedModel


def write_safetensors(loaded: LoadedModel, wanted: ExportRequest, path: Path) -> None:
    """Write the requested part of a run in the requested data type.

    `adapter` and `full` are for `--run`, `artifact` is for `--init-from`. `backbone` is for `--weights`: it has the
    parameter names of the network, low-rank factors are merged into its weights, and quantized ones are dequantized.

    Raises:
        UsageError: PEFT's changes to the backbone cannot be merged, or there is nothing to fold.
    """
    import torch

    from toast_cli.model.model import get_merged_state_dict
    from toast_cli.storage.adapter import BACKBONE_METADATA_KEY, save_adapter_file
    from toast_cli.storage.pretuned import read_artifact, save_artifact_file
    from toast_cli.utils.files import write_tensors

    dtype: torch.dtype = getattr(torch, wanted.dtype)
    if wanted.part == "backbone":
        tensors = get_merged_state_dict(loaded.model)
        metadata = {"format": "pt", BACKBONE_METADATA_KEY: redact_recipe(loaded.config.recipe)["backbone"]["name"]}
        write_tensors(path, {name: _cast_floating_point(tensor, dtype) for name, tensor in tensors.items()}, metadata)
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
    model = loaded.model
    save_adapter_file(
        path,
        model,
        replace(
            redact_config(loaded.config),
            folded=wanted.fold or loaded.config.folded,
            # An adapter is a full model only if all parameters of the network were trained.
            whole=model.get_network_tensors().keys()
            <= {*model.get_trained_parameters(), *model.get_frozen_additions()},
        ),
        with_backbone=wanted.part == "full",
        with_files=_has_unnamed_backbone(loaded),
        cast=lambda tensor: _cast_floating_point(tensor, dtype),
    )


def _has_unnamed_backbone(loaded: LoadedModel) -> bool:
    """Return whether the export must include the backbone's own files, because its name does not identify it.

    This is the case if the name is a local folder and the weights are a file or random, or if the run itself was loaded
    from such an export.
    """
    from toast_cli.storage.adapter import read_backbone_files

    named = loaded.recipe.backbone
    weights_identify_it = named.weights is None or Path(named.weights).expanduser().is_dir()
    return bool(read_backbone_files(loaded.path)) or (
        get_backbone_folder(named.name) is not None and not weights_identify_it
    )


def _cast_floating_point(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def reopen_safetensors(wanted: ExportRequest, path: Path) -> ExportRunner:
    """Load the export with toast, as `--run`, `--weights` or `--init-from` does."""
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
    options = {name: value for name, value in wanted.backbone_options.items() if name != "quantize"}
    backbone = card.build(card.options(**{**options, "weights": str(path)}))
    backbone.module.float().eval()

    def run(named: dict[str, Tensor]) -> Outputs:
        return {"features": run_one_pass(backbone, to_backbone_inputs(named)).last.pooled}

    return run


FORMAT = ExportFormat(
    ".safetensors",
    ("adapter", "full", "backbone", "artifact"),
    write_safetensors,
    reopen_safetensors,
    dict.fromkeys(("float32", "float16", "bfloat16"), 1e-5),  # computes in float32, whatever the stored type
)

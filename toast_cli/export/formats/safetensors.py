"""`safetensors`: one file with the adapter, the whole model, the backbone's weights alone, or a pre-tuned artifact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from toast_cli.export.base import Format, Outputs, Runner, Wanted
from toast_cli.export.redact_paths import folder_in, for_others

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from toast_cli.storage.load_model import Loaded


def write(loaded: Loaded, wanted: Wanted, path: Path) -> None:
    """Write `adapter`, `full`, `backbone` or `artifact` in a storage type.

    `backbone` holds the network's own names, to be given to `--weights`, with low-rank factors worked into its weights;
    `artifact` is for `--init-from`; the other two load with `--run`.

    Raises:
        UsageError: what PEFT put into the backbone cannot be worked into its weights; there is nothing to fold.
    """
    import torch

    from toast_cli.model.model import folded, plain_network
    from toast_cli.storage.adapter import BACKBONE_ENTRY, save_file
    from toast_cli.storage.pretuned import read_artifact, save_artifact_file
    from toast_cli.utils.atomic import write_tensors

    dtype: torch.dtype = getattr(torch, wanted.dtype)
    if wanted.part == "backbone":
        tensors = plain_network(loaded.model)
        told = {"format": "pt", BACKBONE_ENTRY: for_others(loaded.config.recipe)["backbone"]["name"]}
        write_tensors(path, {name: _cast(tensor, dtype) for name, tensor in tensors.items()}, told)
        return
    if wanted.part == "artifact":
        lineage, _ = read_artifact(loaded.path)
        recipe = for_others(lineage.recipe)
        lineage = replace(lineage, backbone=recipe["backbone"]["name"], recipe=recipe)
        save_artifact_file(
            path, loaded.model, lineage, with_files=_nameless(loaded), cast=lambda tensor: _cast(tensor, dtype)
        )
        return
    model = folded(loaded.model) if wanted.fold else loaded.model
    save_file(
        path,
        model,
        replace(
            loaded.config,
            recipe=for_others(loaded.config.recipe),
            folded=wanted.fold or loaded.config.folded,
            # The adapter alone of a file that is whole is so no longer, unless all of it was trained.
            whole=model.network_tensors().keys() <= {*model.trained(), *model.frozen_additions()},
        ),
        with_backbone=wanted.part == "full",
        with_files=_nameless(loaded),
        cast=lambda tensor: _cast(tensor, dtype),
    )


def _nameless(loaded: Loaded) -> bool:
    """Whether readers learn nowhere else what the backbone is.

    Its name was that of a folder here, and its weights, a file or random ones, do not tell it either; or it came from a
    file that had to tell it.
    """
    from toast_cli.storage.adapter import files_in

    named = loaded.recipe.backbone
    weights_tell = named.weights is None or Path(named.weights).expanduser().is_dir()
    return bool(files_in(loaded.path)) or (folder_in(named.name) is not None and not weights_tell)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def reopen(wanted: Wanted, path: Path) -> Runner:
    """With toast: the whole model as `--run`, the backbone as `--weights`, a start as `--init-from`."""
    from toast_cli import registry
    from toast_cli.export.verification_outputs import as_inputs, outputs_of, start_of
    from toast_cli.steering.steering import one_pass
    from toast_cli.storage.load_model import load
    from toast_cli.storage.pretuned import load_artifact

    if wanted.part == "artifact":
        start = load_artifact(path, wanted.backbone_weights).model
        return lambda named: start_of(start, named)
    if wanted.part != "backbone":
        model = load(path, wanted.backbone_weights).model
        return lambda named: outputs_of(model, named)
    assert wanted.backbone_options is not None
    card = registry.backbone_card(wanted.backbone_options["name"])
    backbone = card.build(card.options(**{**wanted.backbone_options, "weights": str(path)}))
    backbone.module.float().eval()

    def run(named: dict[str, Tensor]) -> Outputs:
        return {"features": one_pass(backbone, as_inputs(named)).last.pooled}

    return run


FORMAT = Format(
    ".safetensors",
    ("adapter", "full", "backbone", "artifact"),
    write,
    reopen,
    dict.fromkeys(("float32", "float16", "bfloat16"), 1e-5),  # whatever it is stored in, float32 is computed with
)

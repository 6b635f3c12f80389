"""Tensors of a tuned model as the start of a new run: those of the method as they are, the head by its classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toast_cli.data.paths import get_dataset_label
from toast_cli.model.model import Model
from toast_cli.recipe.lookup import resolve_recorded_backbone
from toast_cli.recipe.parse import build_recipe
from toast_cli.recipe.schema import Recipe
from toast_cli.storage.adapter import AdapterConfig, read_adapter
from toast_cli.storage.load_model import check_quantization
from toast_cli.storage.pretuned import compute_fingerprint_at_size
from toast_cli.training.continuation.head_rows import (
    HEAD_PREFIX,
    HeadStart,
    initialize_head,
    list_option_differences,
)
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.names import quote_argument
from toast_cli.utils.tensor_fingerprints import copy_tensors, hash_tensors

MAX_NAMED = 3
"""Number of tensors that an error names."""


@dataclass(frozen=True)
class TunedModel:
    """A tuned model whose tensors were copied.

    Attributes:
        config: its configuration.
        recipe: its recipe, with the current name of its backbone.
        digest: the SHA-256 of its tensors.
        head: what the head took from it.
        has_method: whether the method's tensors were copied too.
        notes: sentences on what differs from it.
    """

    config: AdapterConfig
    recipe: Recipe
    digest: str
    head: HeadStart
    has_method: bool
    notes: tuple[str, ...]

    @property
    def messages(self) -> tuple[str, ...]:
        """Return the sentences for the user."""
        return (*self.notes, *self.head.messages)

    def describe_origin(self, path: str) -> dict[str, Any]:
        """Return the entry of this model, given as `path`, in the lineage of the new one."""
        recipe = self.recipe
        return {
            "from": path,
            "kind": "tuned",
            "backbone": recipe.backbone.name,
            "method": recipe.method.name,
            "dataset": recipe.dataset.name,
            "data": get_dataset_label(recipe.dataset),
            "seed": recipe.seed,
            "tensors": self.digest,
            "new": list(self.head.new),
            "dropped": list(self.head.dropped),
        }


def initialize_from_tuned_model(path: Path, model: Model, recipe: Recipe, classes: tuple[str, ...]) -> TunedModel:
    """Copy the tensors of a run, an adapter folder or an exported file to a model on the CPU.

    Raises:
        UsageError: there is no tuned model at `path`, it is folded, or it has another backbone, method or head.
        ToastError: it is damaged, or its backbone has other weights.
    """
    config, tensors = read_adapter(path)
    if config.folded:
        raise UsageError(
            f"{path} cannot be trained further: it is folded, for inference only.",
            "One matrix per level replaces its selection and feedback path, and the parts cannot be recovered.",
            "Start from its run, or from an export without --fold.",
            code="adapter.folded",
        )
    earlier = resolve_recorded_backbone(build_recipe(config.recipe, {}, origin=str(path)), config.toast_version)
    if recipe.backbone.name != earlier.backbone.name and model.backbone_fingerprint != config.backbone_fingerprint:
        raise UsageError(
            f"{path} was trained on {earlier.backbone.name}, not {recipe.backbone.name}.",
            "What a method learned fits only the backbone that it was trained on.",
            f"Leave --backbone out, or name {earlier.backbone.name}.",
            code="adapter.wrong-backbone",
        )
    places = {**model.get_trained_parameters(), **model.get_frozen_additions()}
    own = {name: place for name, place in places.items() if not name.startswith(HEAD_PREFIX)}
    found = _select_method_tensors(path, model, recipe, earlier, tensors, own)
    if found:
        check_quantization(path, config.recipe, model.backbone)
    _check_fingerprint(path, model, recipe, earlier, config, found)
    copy_tensors(found, own)
    head = initialize_head(model, recipe, classes, earlier, config.classes, tensors)
    notes = _describe_differences(recipe, earlier, bool(found), bool(own), tensors)
    return TunedModel(config, earlier, hash_tensors(tensors), head, bool(found) or not own, notes)


def _select_method_tensors(
    path: Path,
    model: Model,
    recipe: Recipe,
    earlier: Recipe,
    tensors: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return the tensors of an earlier model that the method of a new one starts from, by their names in it.

    Raises:
        UsageError: they do not fit.
    """
    network = model.get_network_tensors()
    found = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith(HEAD_PREFIX) and (name in own or name not in network)
    }
    here, there = _get_method_name(recipe), _get_method_name(earlier)
    if there == "linear" and here != there:
        return {}
    if (there, here) == ("toast", "toast-lite"):  # its factors are added to the path, and start at zero
        layers = {name.replace(".base_layer.", "."): name for name in own}
        found = {layers.get(name, name): tensor for name, tensor in found.items()}
        own = {name: place for name, place in own.items() if ".lora_" not in name}
    elif here != there:
        raise UsageError(
            f"{path} was trained with {there}, and {here} cannot start from what it learned.",
            _explain_method_change(there),
            f"Leave --method out to continue with {there}, or start {here} without --init-from."
            + _suggest_backbone_export(path, earlier),
            code="adapter.wrong-method",
        )
    missing, extra = sorted(own.keys() - found.keys()), sorted(found.keys() - own.keys())
    unlike = [name for name in own if name in found and found[name].shape != own[name].shape]
    if missing or extra or unlike or _get_levels(recipe) != _get_levels(earlier):
        named = (("missing there", missing), ("only there", extra), ("of another shape", unlike))
        reasons = [f"Tensors {word}: {', '.join(names[:MAX_NAMED])}." for word, names in named if names]
        raise UsageError(
            f"The method of this run does not fit the model in {path} that it starts from.",
            [*_list_method_differences(recipe, earlier), *reasons],
            "Leave the options of the method and the image size as they were, or start without --init-from.",
            code="adapter.wrong-method",
        )
    return found


def _check_fingerprint(
    path: Path, model: Model, recipe: Recipe, earlier: Recipe, config: AdapterConfig, found: Mapping[str, Tensor]
) -> None:
    """Check that the backbone is the one that the earlier model was trained on, unless all its weights are replaced."""
    fingerprints = {model.backbone_fingerprint}
    if config.backbone_fingerprint in fingerprints or model.get_network_tensors().keys() <= found.keys():
        return
    if config.backbone_fingerprint == compute_fingerprint_at_size(config.recipe["backbone"], recipe):
        return
    random = earlier.backbone.weights == "none" and recipe.seed != earlier.seed
    raise ToastError(
        f"{path} was trained on other weights of '{earlier.backbone.name}'.",
        f"Its backbone was random, drawn with seed {earlier.seed}; this run has seed {recipe.seed}."
        if random
        else "The fingerprint of the backbone differs from the one recorded with the model.",
        f"Use --seed {earlier.seed}." if random else "Give the file that it was trained with: --weights FILE.",
        code="weights.wrong-fingerprint",
    )


def _get_method_name(recipe: Recipe) -> str:
    kind = getattr(recipe.method, "kind", None)
    return recipe.method.name if kind is None else f"{recipe.method.name}:{kind}"


def _get_levels(recipe: Recipe) -> tuple[Any, Any]:
    """Return the options that select the steered levels: other levels may have tensors of the same names and shapes."""
    return getattr(recipe.method, "feedback", None), getattr(recipe.method, "feedback_level", None)


def _explain_method_change(there: str) -> str:
    if there == "full":
        return "It trained every weight of the backbone."
    return f"The tensors of {there} have no counterpart there."


def _suggest_backbone_export(path: Path, earlier: Recipe) -> str:
    """Return how to use a changed backbone as the weights of another method."""
    if not earlier.plugins.method.alters:
        return ""
    command = f"toast export --run {quote_argument(path)} --what backbone --out FILE"
    return f" To adapt the backbone as it was tuned, write it with '{command}' and give it as --weights FILE."


def _list_method_differences(recipe: Recipe, earlier: Recipe) -> list[str]:
    return list_option_differences("method", recipe.method.model_dump(), earlier.method.model_dump())


def _describe_differences(
    recipe: Recipe, earlier: Recipe, has_tensors: bool, needs_tensors: bool, tensors: Mapping[str, Tensor]
) -> tuple[str, ...]:
    """Return sentences on what differs between two models whose tensors fit."""
    here, there = _get_method_name(recipe), _get_method_name(earlier)
    notes = []
    if needs_tensors and not has_tensors:
        notes.append(f"Only the head starts there: {there} trained nothing else, so {here} starts fresh.")
    elif here != there:
        notes.append(f"The feedback path of {there} is the frozen path of {here}, whose factors start at zero.")
    elif differences := _list_method_differences(recipe, earlier):
        notes.append(f"Its tensors fit, but the method differs: {' '.join(differences)}")
    rounded = {tensor.dtype for tensor in tensors.values()} & {torch.float16, torch.bfloat16}
    if rounded:
        kinds = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in rounded))
        notes.append(f"Its tensors are stored in {kinds}: the run starts from rounded values.")
    return tuple(notes)

"""A cache of first passes, which do not depend on trained weights, so that each input runs through them once.

The cache holds z. Where both passes share the first levels (late feedback), it also holds the output of those levels,
and a cached input is not read again. Tensors are converted to the cache's precision before every use, including the
first, so a run gives the same result whether the cache is empty, partly filled or full.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor

from toast_cli.backbones.base import Backbone, Readout, State
from toast_cli.data.base import CACHED_KEY
from toast_cli.data.paths import get_data_dir, resolve_path
from toast_cli.model.model import Model
from toast_cli.recipe.schema import Recipe
from toast_cli.steering.steering import Steering, run_first_pass, run_steered_pass
from toast_cli.training.environment import get_package_versions
from toast_cli.training.step import StepOutput, TrainingStep
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.files import get_cache_folder
from toast_cli.utils.formatting import format_bytes
from toast_cli.utils.hashing import hash_bytes
from toast_cli.utils.tensor_cache import TensorCache
from toast_cli.utils.tensor_fingerprints import hash_module_settings

FIRST_PASS_FOLDER = "first-pass"


@dataclass
class FilledSlots:
    """The slots of a split that this run has filled or verified.

    A slot is one sample under one of `views` augmentations. The flags are in shared memory, for the data workers.
    """

    samples: int
    views: int = 1

    def __post_init__(self) -> None:
        self.slots = torch.zeros(self.samples * self.views, dtype=torch.bool).share_memory_()


class FirstPassCache:
    """The cached first passes of one split.

    Args:
        model: the model that computes them.
        cache: the cache on disk; the key of an entry is the digest of its input.
        empty: an entry of zeros, with the shapes and data type of stored tensors.
        seen: the slots that are already filled or verified.
        batches: the loader of the split.
        dtypes: the data types of the backbone's tensors, by name.
    """

    def __init__(
        self,
        model: Model,
        cache: TensorCache,
        empty: Mapping[str, Tensor],
        seen: FilledSlots,
        batches: Any,
        dtypes: Mapping[str, torch.dtype],
    ) -> None:
        self.model, self.cache, self.empty = model, cache, empty
        self.seen, self.batches, self.dtypes = seen, batches, dtypes
        self._digests: dict[int, str] = {}
        """Digests of the inputs whose entries this process has read or written, by slot number."""

    @torch.no_grad()
    def get_batch_outputs(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the first-pass tensors of a batch, `[B, ...]` by name; compute and store those that are missing."""
        numbers = (batch["index"] + batch["view"] * self.seen.samples).tolist()
        found = [self._find_known_entry(number) for number in numbers]
        if any(kept is None for kept in found):
            found = self._fill_missing(numbers, found, batch)
        return self._stack_tensors([kept for kept in found if kept is not None], batch, batch["index"].device)

    def _fill_missing(
        self, numbers: list[int], found: list[dict[str, Tensor] | None], batch: Mapping[str, Any]
    ) -> list[dict[str, Tensor] | None]:
        """Return `found` with its missing entries read from an earlier run's cache, or computed."""
        # The loader left inputs out because they were cached, and an entry has been deleted since.
        full = (
            send_to_device(self.batches.load_complete_batch(batch), batch["index"].device)
            if CACHED_KEY in batch
            else batch
        )
        inputs = self.model.objective.inputs(full)
        digests = _compute_input_digests(inputs, len(numbers))
        # A sample with an ignored label may stand for an image that cannot be read now but can be later.
        storable = [True] * len(numbers) if "label" not in batch else (batch["label"] != IGNORE_INDEX).tolist()
        slots = list(zip(numbers, digests, storable, strict=True))
        found = [
            kept or (self._read_entry(number, digest) if keep else None)
            for kept, (number, digest, keep) in zip(found, slots, strict=True)
        ]
        if any(kept is None for kept in found):
            passed = compute_first_pass_outputs(self.model, inputs)
            for row, (number, digest, keep) in enumerate(slots):
                if found[row] is None:
                    own = {name: tensor[row] for name, tensor in passed.items()}
                    found[row] = self._store_entry(number, own, digest) if keep else own
        self.seen.slots[[number for number, _, keep in slots if keep]] = True
        return found

    def _find_known_entry(self, number: int) -> dict[str, Tensor] | None:
        """Return the entry of an input that this process knows, without verifying it again; None if there is none."""
        digest = self._digests.get(number)
        return None if digest is None else self.cache.read(digest, verify=False)

    def _read_entry(self, number: int, digest: str) -> dict[str, Tensor] | None:
        kept = self.cache.read(digest)
        if kept is not None:
            self._digests[number] = digest
        return kept

    def _store_entry(self, number: int, tensors: Mapping[str, Tensor], digest: str) -> dict[str, Tensor]:
        """Store tensors, padded with zeros to the shapes of an entry, and return the entry."""
        kept = {name: zeros.clone() for name, zeros in self.empty.items()}
        for name, tensor in tensors.items():
            kept[name][: len(tensor)] = tensor
            if not kept[name].isfinite().all():
                raise ToastError(
                    f"The first pass produces values ({name}) that {kept[name].dtype} cannot represent.",
                    what_to_do="Use training.cache_dtype=float32, or training.cache=false.",
                    code="cache.value-out-of-range",
                )
        self.cache.write(digest, kept)
        self._digests[number] = digest
        return kept

    def _stack_tensors(
        self, found: list[dict[str, Tensor]], batch: Mapping[str, Any], device: torch.device
    ) -> dict[str, Tensor]:
        stacked = {
            name: torch.stack([kept[name].to(device, dtype) for kept in found]) for name, dtype in self.dtypes.items()
        }
        if "input_ids" in batch:  # entries have the length of the longest text, and batches do not
            stacked = {name: tensor[:, : batch["input_ids"].shape[1]] for name, tensor in stacked.items()}
        return stacked


class CachedStep(TrainingStep):
    """A tuning step with cached first passes, which runs the second pass only."""

    def __init__(self, model: Model, train: FirstPassCache, validation: FirstPassCache | None) -> None:
        super().__init__(model)
        self.train_passes, self.validation_passes = train, validation

    def forward(self, batch: Mapping[str, Any]) -> StepOutput:
        """Return the outputs and loss of a batch, which has no inputs if the cache replaces them."""
        passes = self.train_passes if self.model.training else self.validation_passes
        steering = self.model.adapted.steering
        assert passes is not None and isinstance(steering, Steering)
        kept, backbone, objective = passes.get_batch_outputs(batch), self.model.backbone, self.model.objective
        z = kept["z"]
        first = Readout(z=z, compared=kept.get("compared", z), pooled=z)
        with torch.no_grad():
            state = _start_second_pass(
                backbone, None if CACHED_KEY in batch else objective.inputs(batch), kept.get("hidden")
            )
        outputs = self.model.compute_outputs(run_steered_pass(backbone, steering, first, state))
        return StepOutput(outputs, objective.loss(outputs, batch))


def compute_first_pass_outputs(model: Model, inputs: Any) -> dict[str, Tensor]:
    """Return the first-pass tensors to cache.

    These are `z`, `compared` if it is another tensor than z, and `hidden` if the passes share levels.
    """
    steering = model.adapted.steering
    assert isinstance(steering, Steering)
    shared, first, _ = run_first_pass(model.backbone, steering.levels, inputs)
    kept = {"z": first.z}
    if first.compared is not first.z:
        kept["compared"] = first.compared
    if steering.levels.start:
        kept["hidden"] = shared.hidden
    return kept


def check_cache(recipe: Recipe, model: Model) -> None:
    """Check that a recipe's first passes can be cached.

    Raises:
        UsageError: the method has no feedback path, mixup or cutmix is on, the task reads the output of every level,
            or the model is sharded.
    """
    if not isinstance(model.adapted.steering, Steering):
        raise UsageError(
            f"training.cache needs a method with two passes, and '{recipe.method.name}' has one.",
            what_to_do="Leave training.cache out, or use toast or toast-lite.",
            code="training.nothing-to-cache",
        )
    if model.objective.reads_levels:
        raise UsageError(
            "training.cache supports only tasks that read the final output, and this task reads every level.",
            what_to_do="Leave training.cache out.",
            code="training.nothing-to-cache",
        )
    if recipe.training.shard:
        raise UsageError(
            "training.cache and training.shard cannot be combined.",
            what_to_do="Leave one of them out of the recipe.",
            code="training.conflicting-options",
        )
    if getattr(recipe.task, "mixup", 0) or getattr(recipe.task, "cutmix", 0):
        raise UsageError(
            "training.cache cannot be combined with mixup or cutmix, which make new images in each step.",
            what_to_do="Leave one of them out.",
            code="training.conflicting-options",
        )


def build_cached_step(
    recipe: Recipe, model: Model, splits: Mapping[str, Any], accelerator: Accelerator
) -> tuple[CachedStep, str]:
    """Return the step that caches first passes, and a message about the size and location of the cache.

    Args:
        recipe: the recipe of the run.
        model: the model, on its device.
        splits: the loaders of `train` and, if there is one, `val`; they leave out cached inputs.
        accelerator: the accelerator, which knows the run's precision.

    Raises:
        UsageError: the first pass cannot be cached; see `check_cache`.
        ToastError: the cache would exceed `training.cache_gigabytes` or the free disk space.
    """
    check_cache(recipe, model)
    options = recipe.training
    dtype = getattr(torch, options.cache_dtype)
    seen = {
        name: FilledSlots(each.samples, options.cache_views if name == "train" else 1) for name, each in splits.items()
    }
    with accelerator.autocast():
        passed = {name: _run_one_sample(model, batches) for name, batches in splits.items()}
    empty = {name: _make_empty_entry(passed[name], batches, dtype) for name, batches in splits.items()}
    entry_bytes = {name: sum(tensor.nbytes for tensor in empty[name].values()) for name in splits}
    needed = sum(len(seen[name].slots) * entry_bytes[name] for name in splits)
    if needed > options.cache_gigabytes * 1e9:
        raise ToastError(
            f"The cache of first passes needs {format_bytes(needed)}, and training.cache_gigabytes allows "
            f"{options.cache_gigabytes:g} GB.",
            what_to_do="Raise training.cache_gigabytes, lower training.cache_views, or leave training.cache out.",
            code="cache.too-small",
        )
    kept = {}
    for name, batches in splits.items():
        key = {
            **_build_cache_key(recipe, model, name, accelerator.mixed_precision),
            "shapes": {kind: list(tensor.shape) for kind, tensor in empty[name].items()},
            "dtype": str(dtype),
        }
        cache = TensorCache(FIRST_PASS_FOLDER, key, len(seen[name].slots), entry_bytes[name], "training.cache")
        dtypes = {kind: tensor.dtype for kind, tensor in passed[name].items()}
        kept[name] = FirstPassCache(model, cache, empty[name], seen[name], batches, dtypes)
        if "hidden" in empty[name] and hasattr(batches, "skip_cached_images"):
            batches.skip_cached_images(seen[name].slots)
    folder = get_cache_folder() / FIRST_PASS_FOLDER
    note = f"First passes are cached in {folder}: {format_bytes(needed)} ({options.cache_dtype})."
    if recipe.images.is_random and options.cache_views == 1:
        note += " Each image has one fixed augmentation; training.cache_views=4 gives it four, used in turn."
    return CachedStep(model, kept["train"], kept.get("val")), note


def _run_one_sample(model: Model, batches: Any) -> dict[str, Tensor]:
    """Return the first-pass tensors of one sample."""
    batch = next(iter(batches))
    device = next(model.parameters()).device
    one = send_to_device({name: tensor[:1] for name, tensor in batch.items()}, device)
    with torch.no_grad():
        return compute_first_pass_outputs(model, model.objective.inputs(one))


def _make_empty_entry(passed: Mapping[str, Tensor], batches: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return zeros with the shapes of one sample's tensors; texts are padded to the longest."""
    longest = getattr(batches, "longest", None)
    return {
        name: torch.zeros(tensor.shape[1:] if longest is None else (longest, *tensor.shape[2:]), dtype=dtype)
        for name, tensor in passed.items()
    }


def _build_cache_key(recipe: Recipe, model: Model, split: str, precision: str) -> dict[str, Any]:
    """Return the key of a split's cache: everything its entries depend on, except for the inputs.

    Each input has a digest of its own. Other versions of the packages that compute the first pass use a new cache.
    """
    steering = model.adapted.steering
    assert isinstance(steering, Steering)
    dumped = recipe.model_dump(mode="json")
    return {
        "backbone": model.backbone_fingerprint,
        "settings": hash_module_settings(model.backbone.module),
        "files": {name: hash_bytes(text.encode()).hex() for name, text in model.backbone.files().items()},
        "options": dumped["backbone"],
        "levels": [steering.levels.start, steering.levels.stop],
        "data": {"images": dumped["images"], **_describe_dataset(recipe)},
        "seed": recipe.seed if split == "train" and recipe.images.is_random else None,
        "split": split,
        "precision": precision,
        "device": next(model.parameters()).device.type,
        "versions": {name: get_package_versions()[name] for name in ("toast", "torch", "timm", "transformers")},
    }


def _describe_dataset(recipe: Recipe) -> dict[str, Any]:
    """Return the data set's options with absolute paths, so that they do not depend on the working directory."""
    given = Path(recipe.data_dir).expanduser() if recipe.data_dir else None
    dataset = recipe.dataset.model_dump(mode="json")
    if path := dataset.get("path"):
        dataset["path"] = resolve_path(path, given)
    return {"dataset": dataset, "data_dir": str(get_data_dir(given).resolve())}


def _start_second_pass(backbone: Backbone, inputs: Any, hidden: Tensor | None) -> State:
    """Return the initial state of the second pass: the embedded input, or the output of the shared levels."""
    if inputs is None:
        assert hidden is not None
        return backbone.restore(hidden)
    state = backbone.again(backbone.enter(inputs), inputs)
    return state if hidden is None else replace(state, hidden=hidden)


def _compute_input_digests(inputs: Any, count: int) -> list[str]:
    """Return a digest for each input of a batch, which does not depend on padding."""
    if isinstance(inputs, Tensor):
        return [hash_bytes(row.cpu().contiguous().numpy().tobytes()).hex() for row in inputs]
    real = inputs.get("attention_mask", inputs.get("real"))

    def parts(row: int) -> list[bytes]:
        tensors = [tensor[row].cpu() for _, tensor in sorted(inputs.items())]
        return [(each if real is None else each[real[row].bool().cpu()]).numpy().tobytes() for each in tensors]

    return [hash_bytes(*parts(row)).hex() for row in range(count)]

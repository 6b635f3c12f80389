"""Weights of timm models from files and folders: whole, or refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import timm
from timm.models import get_arch_pretrained_cfgs
from torch import nn

from toast_cli.plugin import Preprocessing, ToastError, UsageError, find_refused_code, refuse_lfs_pointers

CONFIG_FILE = "config.json"


def load_from_path(model: str, path: Path, create: Callable[..., nn.Module]) -> nn.Module:
    """Return a timm model with the weights of a file that timm reads, or of a folder in the layout of timm's hub.

    Args:
        model: timm's name of the model.
        path: File (safetensors, .pth, .pt, .bin, or .npz) or folder with `config.json`.
        create: A function that builds a model by its timm name, given further arguments of timm's `create_model`.

    Raises:
        UsageError: There is no such file, or the folder is not of timm.
        ToastError: The weights are another model's, incomplete or damaged, or hold code.
    """
    if path.is_dir():
        _require_folder_of(model, path)
        name, source = f"local-dir:{path}", {}
    elif path.is_file():
        name, source = model, {"pretrained_cfg_overlay": {"file": str(path), "custom_load": path.suffix == ".npz"}}
    else:
        what = f"{path} is not a weights file." if path.exists() else f"There is no weights file {path}."
        raise UsageError(
            what, what_to_do="Check --weights (or backbone.weights in the recipe).", code="weights.missing-file"
        )
    try:
        # timm prints a line for every bias of DINOv3's own files that it leaves out.
        with _record_state_dict_keys() as (missing, unexpected), redirect_stdout(StringIO()):
            module = create(name, pretrained=True, **source)
        _require_all_weights(module, missing, unexpected)
        return module
    except ToastError:
        raise
    except Exception as error:  # readers of a foreign or damaged file may raise anything
        refuse_lfs_pointers(path)
        if path.is_file() and (code := find_refused_code(path, error)):
            raise ToastError(
                f"{path} was not loaded: it holds more than weights.",
                f"It refers to {code}. Only tensors are read, because anything else could run code.",
                "Save only the model's state_dict, preferably as safetensors.",
                code="weights.unsafe-file",
            ) from error
        raise ToastError(
            f"{path} does not hold the weights of '{model}', or is damaged.",
            truncate(str(error), 400),
            "Give the --backbone that the file was made for, or download the file again.",
            code="weights.wrong-model",
        ) from error


def describe_normalization(model: str, weights: str | None, preprocessing: Preprocessing) -> str | None:
    """Return from where the preprocessing is known for weights from a path, unless a model has one configuration.

    A folder has it in its configuration. A file has none: if the published weights of the model disagree about mean and
    std, the sentence is a warning.
    """
    if weights in (None, "none"):
        return None
    path = Path(weights or "").expanduser()
    if path.is_dir():
        return f"Weights from {weights}. Images are prepared as its {CONFIG_FILE} says."
    configs = get_arch_pretrained_cfgs(model)
    assumed = timm.get_pretrained_cfg(model)
    if assumed is None:
        return None
    own = (tuple(assumed.mean), tuple(assumed.std))
    others = {(tuple(config.mean), tuple(config.std)): name for name, config in reversed(configs.items())}
    others.pop(own, None)
    if not others:
        return None
    alternatives = ", ".join(f"{_format_statistics(*values)} ({name})" for values, name in reversed(others.items()))
    return preprocessing.format_assumption(
        f"{weights} does not record how images are prepared",
        f", as for {assumed.architecture}{f'.{assumed.tag}' if assumed.tag else ''}. Other weights of this model need "
        f"{alternatives}",
    )


def truncate(text: str, length: int = 300) -> str:
    """Return a text on one line, cut to a length."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def _format_statistics(mean: Sequence[float], std: Sequence[float]) -> str:
    parts = (", ".join(f"{value:.3g}" for value in values) for values in (mean, std))
    return "mean ({}) and std ({})".format(*parts)


def _require_folder_of(model: str, folder: Path) -> None:
    """Check that a folder holds a model of timm by this name.

    Raises:
        UsageError: It has no configuration, or that of transformers.
        ToastError: It is of another model.
    """
    file = folder / CONFIG_FILE
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"There is no model in {folder}.",
            f"{CONFIG_FILE} is missing." if not file.is_file() else f"{CONFIG_FILE} cannot be read: {error}",
            "Give a weights file, or a folder with config.json and model.safetensors.",
            code="weights.missing-model",
        ) from error
    if not isinstance(config, dict) or "architecture" not in config:
        kind = config.get("model_type") if isinstance(config, dict) else None
        raise UsageError(
            f"{folder} does not hold a model of timm.",
            f"Its {CONFIG_FILE} {f'is of a {kind} of transformers' if kind else 'names no architecture'}.",
            f"Use --backbone hf:{folder}, without --weights." if kind else "Give a weights file.",
            code="weights.wrong-library",
        )
    architecture = str(config["architecture"])
    if architecture != model.split(".")[0]:
        raise ToastError(
            f"{folder} holds the weights of '{architecture}', not of '{model}'.",
            what_to_do=f"Use --backbone timm:{architecture}.",
            code="weights.wrong-model",
        )


@contextmanager
def _record_state_dict_keys() -> Iterator[tuple[list[str], list[str]]]:
    """Record the missing and unexpected keys of state dicts that are loaded inside the block.

    timm loads with strict=False if the classifier is left out, and does not report these keys.
    """
    missing: list[str] = []
    unexpected: list[str] = []
    stock = nn.Module.load_state_dict
    logger = logging.getLogger("timm.models._builder")  # it warns of keys that are checked here
    level = logger.level

    def load(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = stock(self, *args, **kwargs)
        missing.extend(result.missing_keys)
        unexpected.extend(result.unexpected_keys)
        return result

    nn.Module.load_state_dict = load  # type: ignore[method-assign]
    logger.setLevel(logging.ERROR)
    try:
        yield missing, unexpected
    finally:
        nn.Module.load_state_dict = stock  # type: ignore[method-assign]
        logger.setLevel(level)


def _require_all_weights(module: nn.Module, missing: Sequence[str], unexpected: Sequence[str]) -> None:
    """Check that a file sets all weights of the model and has no other weights of the model's own parts.

    Keys outside of the model's own parts belong to a classifier or another task and are ignored.

    Raises:
        ValueError: Keys are missing or unexpected.
    """
    if any(name.startswith("fc_norm.") for name in unexpected) and any(name.startswith("norm.") for name in missing):
        raise ValueError(
            "The file is of a model that pools the mean of all patches and then applies a norm (fc_norm), as MAE's "
            "fine-tuned models do. This model pools its class token after a norm, whose weights the file lacks. Use "
            "the pre-trained file of the same authors, or a model that pools in the same way."
        )
    own = {name for name, _ in module.named_children()}
    foreign = [name for name in unexpected if name.split(".")[0] in own]
    for what, names in (("lacks", missing), ("has weights that are not in the model:", foreign)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(f"The file {what} {', '.join(names[:3])}{more}.")

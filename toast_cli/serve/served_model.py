"""The models of the server: runs that share the weights of one backbone, each with its own adapter."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from toast_cli.api.adapters import Adapter, load_adapter
from toast_cli.evaluation.open_run import RunRequest, open_run
from toast_cli.model.generation import TextGenerator, choose_template
from toast_cli.model.model import Model
from toast_cli.recipe.schema import Recipe
from toast_cli.serve.cache_rows import supports_rows
from toast_cli.serve.options import ServerOptions
from toast_cli.storage.adapter import find_model_file, read_adapter_config
from toast_cli.utils.errors import ToastError, UsageError

CHANGING_ROTARY = frozenset({"dynamic", "longrope"})
"""Kinds of rotary embeddings whose frequencies change, for a whole batch, once one of its texts is long."""


@dataclass(eq=False)
class ServedModel:
    """A run that answers requests.

    Attributes:
        name: the name that requests give as `model`.
        chat: generator of answers to conversations, in the format of the run.
        raw: generator that continues texts as they are.
        tokenizer: a copy of the tokenizer for decoding, which runs beside encoding in another thread.
        lock: held while a prompt is encoded.
        common_length: number of tokens up to which texts can be generated together; None: any.
        created: time at which it was loaded, in seconds since 1970.
    """

    name: str
    chat: TextGenerator
    raw: TextGenerator
    tokenizer: Any
    lock: Lock
    common_length: int | None = None
    created: int = field(default_factory=lambda: int(time.time()))


def name_runs(runs: Sequence[Path]) -> list[str]:
    """Return the name of each run: that of its folder or file, with folders before it if several have that name.

    Raises:
        UsageError: A run is given twice.
    """
    parts = [run.absolute().with_suffix("" if run.suffix == ".safetensors" else run.suffix).parts for run in runs]
    for place, each in enumerate(parts):
        if each in parts[:place]:
            raise UsageError(
                f"{runs[place]} is given twice.", what_to_do="Give each --run once.", code="serve.duplicate-run"
            )
    names = []
    for each in parts:
        others = [other for other in parts if other != each]
        count = 1
        while any(other[-count:] == each[-count:] for other in others):
            count += 1
        names.append("/".join(each[-count:]))
    return names


def load_served_models(options: ServerOptions, report: Callable[[str], object]) -> dict[str, ServedModel]:
    """Load every run; those with the same backbone share its weights.

    Raises:
        UsageError: A path is not a run, a run is not one of a language model, or the device is not available.
        ToastError: A run is damaged, or its backbone has no tokenizer.
    """
    served: dict[str, ServedModel] = {}
    bases: list[tuple[Adapter, ServedModel]] = []
    for path, name in zip(options.runs, name_runs(options.runs), strict=True):
        shared = None if options.weights else _share_backbone(path, bases)
        if shared is None:
            opened = open_run(RunRequest(path, weights=options.weights, device=options.device, interrupted=True))
            model, recipe = opened.model, opened.recipe
            if bases:
                report(f"{name} has a backbone of its own, which is loaded beside the others.")
        else:
            base, first = shared
            model, recipe = base.model, base.build_recipe()
        one = _build_served_model(name, model, recipe, None if shared is None else first)
        if not supports_rows(one.chat.plan_decoding([0]).cache):
            report(f"{name} generates one answer at a time: its cache has states that cannot be joined in a batch.")
        served[name] = one
        if shared is None:
            adapter = Adapter(model, (), recipe.images, one.chat.template, recipe.model_dump(mode="json"))
            bases.append((adapter, one))
    return served


def _share_backbone(path: Path, bases: Sequence[tuple[Adapter, ServedModel]]) -> tuple[Adapter, ServedModel] | None:
    """Load the adapter of a run for a backbone that is loaded already; None if it needs another one."""
    if not bases:
        return None
    try:
        config = read_adapter_config(find_model_file(path))
    except ToastError:
        return None  # loading it by itself reports what is wrong, or takes a checkpoint
    for base, served in bases:
        known = base.model.backbone_fingerprint == config.backbone_fingerprint
        if known and not config.whole and not base.model.trains_backbone:
            device = next(base.model.parameters()).device
            try:
                adapter = load_adapter(base, path)
            except UsageError as error:
                if error.code not in ("adapter.own-backbone", "adapter.other-backbone"):
                    raise
                return None
            adapter.model.to(device).eval()
            return adapter, served
    return None


def _build_served_model(name: str, model: Model, recipe: Recipe, beside: ServedModel | None) -> ServedModel:
    template = choose_template(recipe, model.backbone.tokenizer)
    chat = TextGenerator(model, template, _ignore)
    raw = chat if template is None else TextGenerator(model, None, _ignore)
    tokenizer = deepcopy(chat.tokenizer) if beside is None else beside.tokenizer
    lock = Lock() if beside is None else beside.lock
    return ServedModel(name, chat, raw, tokenizer, lock, _find_common_length(model.backbone.module))


def _ignore(notice: str) -> None:
    """Ignore the notice that an answer is limited by the window: `finish_reason` says so."""


def _find_common_length(module: Any) -> int | None:
    """Return the number of tokens up to which the rotary embedding of a model treats every text alike."""
    config = module.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    lengths = [
        each.get("original_max_position_embeddings") or config.max_position_embeddings
        for each in kinds
        if each.get("rope_type") in CHANGING_ROTARY
    ]
    return min(lengths, default=None)

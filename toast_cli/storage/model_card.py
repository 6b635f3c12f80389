"""Model cards: the README.md of adapters, artifacts, imported checkpoints and exports."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from toast_cli.storage.card_metadata import CardMetadata, format_front_matter
from toast_cli.storage.card_usage import (
    EXAMPLE_QUESTION,
    EXAMPLE_TEXT,
    PromptFormat,
    format_merged_usage,
    format_two_pass_usage,
)
from toast_cli.storage.checksums import read_checksummed_json
from toast_cli.storage.lineage import describe_chain
from toast_cli.utils.names import escape_markdown, quote_argument

if TYPE_CHECKING:
    from toast_cli.storage.adapter import AdapterConfig
    from toast_cli.storage.load_model import LoadedModel

_DIGEST = re.compile(r"\b[0-9a-f]{16}…")
"""A shortened digest, which a card shows as code."""
METHOD_SUMMARY = """\
A frozen backbone with two passes: TOAST (Shi, Gai, Darrell and Wang, arXiv:2305.15542) selects the features that
matter for the task in the first pass and feeds them back into every layer of the second.

"""
_MERGED_SUMMARY = """\
A causal language model of transformers with the weights that tuning gave it. It needs no code of toast.

"""
_PEFT_SUMMARY = """\
An adapter in the format of PEFT, for the backbone below. It needs no code of toast.

"""


def format_adapter_card(config: AdapterConfig, results: Mapping[str, Any], warnings: Sequence[str] = ()) -> str:
    """Return the card of a run's adapter: method, backbone, data, start, metrics and the command that evaluates it."""
    recipe = config.recipe
    chosen = ", selected on the validation split" if results["validation"] else ", the last one"
    return _format_card(
        f"{recipe['method']['name']} adapter for {recipe['backbone']['name']} on {recipe['dataset']['name']}",
        [
            f"Trained parameters: {config.trained_parameters:,}",
            f"Backbone fingerprint: {_format_digest(config.backbone_fingerprint)}",
            *_format_quantization(recipe),
            *_format_classes(config),
            f"Seed: {recipe['seed']}; epoch {results['selected_epoch']} was kept{chosen}",
            *_format_start(config),
            *warnings,
            *_format_metrics(results),
            *_format_test_evaluations(results),
        ],
        "Evaluate it again:\n\n```\ntoast eval --run PATH_OF_THIS_FOLDER\n```\n",
    )


def format_saved_card(config: AdapterConfig) -> str:
    """Return the card of an adapter that a program has saved: method, backbone, and how to evaluate it."""
    recipe = config.recipe
    return _format_card(
        f"{recipe['method']['name']} adapter for {recipe['backbone']['name']}",
        [
            f"Trained parameters: {config.trained_parameters:,}",
            f"Backbone fingerprint: {_format_digest(config.backbone_fingerprint)}",
            *_format_quantization(recipe),
            *([f"Classes: {len(config.classes)}"] if config.classes else []),
            "Saved in Python; how it was trained is not recorded",
        ],
        "```\ntoast eval --run PATH_OF_THIS_FOLDER --dataset DATA\n```\n",
    )


def format_artifact_card(backbone: str, fingerprint: str, recipe: Mapping[str, Any]) -> str:
    """Return the card of a pre-tuned artifact, made with `recipe` for the backbone with this fingerprint."""
    return _format_card(
        f"Feedback path for {backbone}, pre-tuned on {recipe['dataset']['name']}",
        [
            f"Backbone fingerprint: {_format_digest(fingerprint)}",
            *_format_quantization(recipe),
            f"Seed: {recipe['seed']}",
        ],
        f"```\ntoast tune --backbone {quote_argument(backbone)} --dataset DATA --init-from PATH_OF_THIS_FOLDER\n```\n",
    )


def format_import_card(method: str, backbone: str, account: Mapping[str, Any]) -> str:
    """Return the card of an adapter imported from a checkpoint of the authors, from the report of its import."""
    return _format_card(
        f"{method} adapter for {backbone}, imported",
        [
            f"From: {_format_origin(account)}",
            f"Computed as there: {_format_departures(account)}",
            "The checkpoint does not record its training data and accuracy",
        ],
        "```\ntoast eval --run PATH_OF_THIS_FOLDER --dataset DATA\n```\n",
    )


def format_transformers_card(
    loaded: LoadedModel,
    published: AdapterConfig,
    dtype: str,
    prompt: PromptFormat | None = None,
    base: str | None = None,
) -> str:
    """Return the card of a folder that transformers loads after `toast_cli.register()`.

    It has task, method, training, metrics and usage.

    Args:
        loaded: The exported model.
        published: Its configuration in the form that is published, without local paths.
        dtype: The data type of the stored weights.
        prompt: Format of the prompts of a language model.
        base: The hub's id of the backbone, if it has one.
    """
    model = loaded.model
    language = model.backbone.preprocessing is None
    auto, pipeline = "AutoModelForImageClassification", "image-classification"
    if language:
        auto, pipeline = "AutoModelForCausalLM", "text-generation"
    elif model.objective.dense:
        auto, pipeline = "AutoModelForSemanticSegmentation", "image-segmentation"
    usage = format_two_pass_usage(auto, prompt, has_maps=model.backbone.has_attention and not language)
    steered = model.adapted.steering is not None
    metadata = CardMetadata("transformers", pipeline, base)  # the hub's widgets run no code of toast
    return format_export_card(loaded, published, dtype, metadata, usage, METHOD_SUMMARY if steered else "")


def format_merged_card(
    loaded: LoadedModel, published: AdapterConfig, dtype: str, prompt: PromptFormat, base: str | None
) -> str:
    """Return the card of a plain folder of transformers; the arguments are those of `format_transformers_card`."""
    example = EXAMPLE_TEXT if prompt.example is None else EXAMPLE_QUESTION
    metadata = CardMetadata("transformers", "text-generation", base, "finetune", example, has_widget=True)
    return format_export_card(loaded, published, dtype, metadata, format_merged_usage(prompt), _MERGED_SUMMARY)


def format_peft_card(loaded: LoadedModel, published: AdapterConfig, dtype: str, usage: str, base: str | None) -> str:
    """Return the card of an adapter in the format of PEFT.

    `usage` tells how to load it; the other arguments are those of `format_transformers_card`.
    """
    language = loaded.model.backbone.preprocessing is None
    metadata = CardMetadata("peft", "text-generation" if language else "image-classification", base, "adapter")
    return format_export_card(loaded, published, dtype, metadata, usage, _PEFT_SUMMARY)


def format_export_card(
    loaded: LoadedModel, published: AdapterConfig, dtype: str, metadata: CardMetadata, usage: str, summary: str = ""
) -> str:
    """Return a card with the front matter of the hub, what the run was, its metrics, and how to use the export."""
    config, model, recipe = published, loaded.model, published.recipe
    licence = model.backbone.licence
    file = loaded.path / "results.json"
    results = read_checksummed_json(file) if file.is_file() else {}
    method = {name: value for name, value in recipe["method"].items() if name not in ("start", "start_images")}
    facts = [
        f"Task: {recipe['task']['name']}",
        *_format_classes(config),
        f"Method: {_format_section(method)}",
        f"Trained parameters: {config.trained_parameters:,}",
        f"Weights: {dtype}" + (", folded: for inference only" if config.folded else ""),
        f"Data: {_format_section(recipe['dataset'])}",
        f"Backbone: {recipe['backbone']['name']}, fingerprint {_format_digest(config.backbone_fingerprint)}",
        *_format_quantization(recipe),
        *_format_lineage(results, recipe, published),
        f"Licence of the backbone: {licence or 'not recorded; see the source of its weights'}",
        *_format_metrics(results),
    ]
    if config.classes:
        names = map(escape_markdown, config.classes)
        usage += "\n## Classes\n\n" + "".join(f"{index}. {name}\n" for index, name in enumerate(names))
    title = f"{recipe['method']['name']} on {recipe['backbone']['name']} for {recipe['dataset']['name']}"
    return format_front_matter(metadata, licence, recipe) + _format_card(title, facts, usage, summary)


def _format_card(title: str, facts: Sequence[str], usage: str, summary: str = "") -> str:
    """Return a card as Markdown; title and facts are plain text, summary and usage are Markdown."""
    lines = "".join(_DIGEST.sub(r"`\g<0>`", f"- {escape_markdown(fact)}\n") for fact in facts)
    return f"# {escape_markdown(title)}\n\n{summary}{lines}\n{usage}"


def _format_classes(config: AdapterConfig) -> list[str]:
    """Return a line with the number of classes or labels, or the names of numbers."""
    if not config.classes:
        return []
    if config.recipe["task"]["name"] == "regression":
        return [f"Numbers, in the units of the data: {', '.join(config.classes)}"]
    noun = "Labels" if config.recipe["task"]["name"] == "multilabel" else "Classes"
    return [f"{noun}: {len(config.classes)}"]


def _format_quantization(recipe: Mapping[str, Any]) -> list[str]:
    """Return the format of the backbone's linear layers, if they are quantized."""
    kind = recipe["backbone"].get("quantize")
    return [] if kind is None else [f"Backbone quantization: {kind}"]


def _format_digest(digest: str) -> str:
    return f"{digest[:16]}…"


def _format_metrics(results: Mapping[str, Any]) -> list[str]:
    """Return the final metrics of the run, one line per split."""
    lines = []
    for split in ("validation", "test"):
        metrics = (results.get(split) or {}).items()
        numbers = [f"{name} {value:.4g}" for name, value in metrics if isinstance(value, int | float)]
        lines += [f"{split.capitalize()}: {', '.join(numbers)}"] if numbers else []
    return lines


def _format_start(config: AdapterConfig) -> list[str]:
    """Return the models that the training started from, and the classes that changed at each step."""
    if not config.lineage:
        return []
    lines = [f"Start: {describe_chain(config.lineage)}"]
    for step in config.lineage:
        lines += [
            f"Classes that are {word} after {step['from']}: {', '.join(step[word])}"
            for word in ("new", "dropped")
            if step[word]
        ]
    return lines


def _format_test_evaluations(results: Mapping[str, Any]) -> list[str]:
    count = results.get("test_evaluations", 1)
    return [f"The test split was evaluated {count} times: the run was extended after its test"] if count > 1 else []


def _format_lineage(results: Mapping[str, Any], recipe: Mapping[str, Any], config: AdapterConfig) -> list[str]:
    """Return the origin of the trained tensors: an imported checkpoint, or the initial feedback path."""
    if "imported_from" not in results:
        start = recipe["init_from"] or recipe["method"].get("start")
        origin = _format_start(config) or ([f"Feedback path from: {start}"] if start else [])
        return [*origin, f"Seed: {recipe['seed']}"]
    return [
        f"Imported from: {_format_origin(results)}",
        "The checkpoint does not record how it was trained",
        f"Computed as there: {_format_departures(results)}",
    ]


def _format_origin(account: Mapping[str, Any]) -> str:
    return f"{account['imported_from']} (SHA-256 {_format_digest(account['file_sha256'])}), of the authors' code"


def _format_departures(account: Mapping[str, Any]) -> str:
    departures = (account.get("departures") or {}).items()
    return ", ".join(f"backbone.{name}={value}" for name, value in departures) or "no departure from the paper"


def _format_section(section: Mapping[str, Any]) -> str:
    """Return a recipe's section in one line."""
    fields = ", ".join(f"{name}={value}" for name, value in section.items() if name != "name" and value is not None)
    return f"{section['name']} ({fields})" if fields else section["name"]

"""The front matter of a model card: what the Hugging Face hub shows, finds and runs a repository by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from toast_cli.utils.hub import REPOSITORY_ID, is_repository_id

LICENCES = frozenset(
    (
        *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "unlicense", "openrail", "gemma"),
        *("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
        *("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3"),
    )
)
"""Names of licences that the hub knows, of those that backbones have. Any other is `other`, with its name beside it."""


@dataclass(frozen=True)
class CardMetadata:
    """What the hub has to know of an artifact.

    Args:
        library: `library_name`: the software that opens it.
        pipeline: `pipeline_tag`: the task; None for an artifact that is no model by itself.
        base: The hub's id of the backbone, if it has one.
        relation: How the artifact relates to it: `adapter`, `finetune` or `quantized`; None leaves it to the hub.
        example: The text that the widget of a language model begins with.
        has_widget: Whether the hub's widget can run the artifact, which needs a stock library.
    """

    library: str
    pipeline: str | None
    base: str | None = None
    relation: str | None = None
    example: str | None = None
    has_widget: bool = False


def format_front_matter(metadata: CardMetadata, licence: str | None, recipe: Mapping[str, Any]) -> str:
    """Return the YAML between the dashes at the head of a card.

    Args:
        metadata: What the artifact is.
        licence: The licence of the backbone's weights, if it is recorded.
        recipe: The recipe of the run, without local paths.
    """
    named = (licence or "").lower()
    entries: dict[str, Any] = {
        "library_name": metadata.library,
        "pipeline_tag": metadata.pipeline,
        "base_model": metadata.base,
        "base_model_relation": metadata.relation if metadata.base else None,
        "license": named if named in LICENCES else "other" if named else None,
        "license_name": licence if named and named not in LICENCES else None,
        "datasets": find_hub_datasets(recipe),
        "tags": ["toast", str(recipe["method"]["name"])],
    }
    if not metadata.has_widget:
        entries["inference"] = False
    elif metadata.example is not None:
        entries["widget"] = [{"text": metadata.example}]
    filled = {name: value for name, value in entries.items() if value or value is False}
    head = yaml.safe_dump(filled, sort_keys=False, allow_unicode=True, default_flow_style=None, width=1000)
    return f"---\n{head}---\n\n"


def find_hub_datasets(recipe: Mapping[str, Any]) -> list[str]:
    """Return the ids of the hub's data sets that a run was trained on; files of a user have none."""
    dataset = recipe["dataset"]
    path = str(dataset.get("path") or "")
    from_hub = dataset["name"] in ("hf", "text") and REPOSITORY_ID.fullmatch(path) and is_repository_id(path)
    return [path] if from_hub else []

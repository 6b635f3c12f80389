"""Model cards of exports that need no code of toast, and of the files that are uploaded without a card of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toast_cli.storage.card_metadata import CardMetadata
from toast_cli.storage.model_card import METHOD_SUMMARY, format_export_card

if TYPE_CHECKING:
    from toast_cli.storage.adapter import AdapterConfig
    from toast_cli.storage.load_model import LoadedModel

TOAST_LIBRARY = "toast-tune"
PLACEHOLDER = "THIS_FOLDER"
"""What stands for the folder or the repository in the usage of a card."""

GRAPH_LIBRARIES = {"onnx": "onnx", "openvino": "openvino", "torch-export": "pytorch"}
"""The hub's name of the library that opens a graph, by the name of the format."""

_INSTALL = "```\npip install toast-tune\n```\n\n"


def format_timm_card(loaded: LoadedModel, published: AdapterConfig, dtype: str, base: str | None) -> str:
    """Return the card of a folder that timm opens. The arguments are those of `format_transformers_card`."""
    usage = (
        "```python\nimport timm\n\n"
        f'model = timm.create_model("local-dir:{PLACEHOLDER}", pretrained=True).eval()\n'
        "config = timm.data.resolve_model_data_config(model)\n"
        "transform = timm.data.create_transform(**config, is_training=False)\n"
        "logits = model(transform(image.convert('RGB'))[None])  # [1, classes]; names: label_names in config.json\n"
        "```\n\n"
        "`infer.py` classifies files: `python infer.py IMAGES`. It needs timm and Pillow.\n"
    )
    metadata = CardMetadata("timm", "image-classification", base, "finetune", has_widget=True)
    summary = "A model of timm with the weights that tuning gave it. It needs no code of toast.\n\n"
    return format_export_card(loaded, published, dtype, metadata, usage, summary)


def format_graph_card(
    loaded: LoadedModel, published: AdapterConfig, dtype: str, base: str | None, form: str, file: str
) -> str:
    """Return the card of a graph, for an upload.

    Args:
        loaded: The exported model.
        published: Its configuration in the form that is published, without local paths.
        dtype: The data type of the stored weights.
        base: The hub's id of the backbone, if it has one.
        form: Name of the format.
        file: Name of the graph's file.
    """
    language = loaded.model.backbone.preprocessing is None
    pipeline = "text-generation" if language else find_image_pipeline(loaded)
    usage = f"`{file}` holds the whole model. Labels and preprocessing are in its metadata.\n"
    if loaded.model.objective.target in ("class", "labels", "number") and form in ("onnx", "openvino"):
        runtime = {"onnx": "onnxruntime", "openvino": "openvino"}[form]
        usage += f"\n```\npip install numpy pillow {runtime}\npython infer.py IMAGES --model {file}\n```\n"
    metadata = CardMetadata(GRAPH_LIBRARIES.get(form, TOAST_LIBRARY), pipeline, base, "finetune")
    return format_export_card(loaded, published, dtype, metadata, usage, _summarize(loaded))


def format_weights_card(
    loaded: LoadedModel, published: AdapterConfig, dtype: str, base: str | None, part: str, file: str
) -> str:
    """Return the card of a safetensors file of toast, for an upload.

    `part` is that of `ExportRequest`; the other arguments are those of `format_graph_card`.
    """
    language = loaded.model.backbone.preprocessing is None
    backbone = published.recipe["backbone"]["name"]
    pipeline: str | None = "text-generation" if language else find_image_pipeline(loaded)
    relation = "adapter" if part in ("adapter", "artifact") else "finetune"
    if part == "artifact":
        pipeline = None
        usage = f"{_INSTALL}```\ntoast tune --backbone {backbone} --dataset DATA --init-from {PLACEHOLDER}\n```\n"
    elif part == "backbone":
        pipeline = None if language else "image-feature-extraction"
        usage = f"{_INSTALL}```\ntoast tune --backbone {backbone} --weights {PLACEHOLDER} --dataset DATA\n```\n"
        usage += f"\n`{file}` has the parameter names of the backbone's own library.\n"
    else:
        call = 'model.generate("Name three birds.")' if language else 'model.predict("image.jpg")'
        command = "generate PROMPT" if language else "predict IMAGES"
        usage = (
            f'{_INSTALL}```python\nimport toast_cli\n\nmodel = toast_cli.load("{PLACEHOLDER}")\n{call}\n```\n\n'
            f"```\ntoast {command} --run {PLACEHOLDER}\n```\n"
        )
    metadata = CardMetadata(TOAST_LIBRARY, pipeline, base, relation)
    return format_export_card(loaded, published, dtype, metadata, usage, _summarize(loaded))


def find_image_pipeline(loaded: LoadedModel) -> str | None:
    """Return the hub's name of the task of an image model; None for numbers, which it has no name for."""
    if loaded.model.objective.dense:
        return "image-segmentation"
    return None if loaded.model.objective.target == "number" else "image-classification"


def _summarize(loaded: LoadedModel) -> str:
    return METHOD_SUMMARY if loaded.model.adapted.steering is not None else ""

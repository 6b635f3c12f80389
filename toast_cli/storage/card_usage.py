"""How to use an export, as Markdown for its model card: loading, prompting and serving."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toast_cli.backbones.base import Preprocessing

EXAMPLE_QUESTION = "Name three birds."
"""The question whose prompt is shown on the cards of language models."""
EXAMPLE_TEXT = "The first bird of spring"
"""The beginning of a document, for models that were trained on documents."""

_READ_ANSWER = 'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))\n'


@dataclass(frozen=True)
class PromptFormat:
    """How a language model is prompted.

    Args:
        example: The prompt of `EXAMPLE_QUESTION`, as text; None if the model was trained on documents.
        has_stop_text: Whether an answer ends with a text instead of a token.
    """

    example: str | None
    has_stop_text: bool


def format_two_pass_usage(auto: str, prompt: PromptFormat | None, has_maps: bool) -> str:
    """Return how to use a folder that transformers loads after `toast_cli.register()`.

    Args:
        auto: transformers' Auto class.
        prompt: Format of the prompts of a language model; None for images.
        has_maps: Whether the model has attention maps of images.
    """
    names = f"{auto}, AutoTokenizer" if prompt else auto
    usage = (
        f"```python\nimport toast_cli\nfrom transformers import {names}\n\n"
        f'toast_cli.register()\nmodel = {auto}.from_pretrained("THIS_FOLDER")\n'
    )
    if prompt is not None:
        usage += 'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")\n'
        usage += _format_generation(prompt, "") + "```\n" + _format_example(prompt)
        usage += (
            "\n## Serve\n\n"
            "The model runs two passes for every token: what the first one selects depends on the text, and is fed\n"
            "into the layers of the second. No weights of a model with one pass are equal to that. Servers such as\n"
            "vLLM and llama.cpp run one pass, so they do not open this folder. `toast serve` runs both passes behind\n"
            "OpenAI's API:\n\n```\npip install toast-tune fastapi uvicorn\ntoast serve --run THIS_FOLDER\n```\n"
        )
    else:
        usage += "```\n"
    if has_maps:
        usage += (
            "\nAttention maps of the first and the last pass, `[B, rows, columns]` each:\n\n```python\n"
            'maps = toast_cli.load("THIS_FOLDER").attention("image.jpg")  # .first, .last, .similarity\n```\n'
        )
    return usage


def format_merged_usage(prompt: PromptFormat) -> str:
    """Return how to use a plain folder of transformers."""
    return (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")\n'
        'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")\n'
        + _format_generation(prompt, "")
        + "```\n"
        + _format_example(prompt)
        + "\nEverything that was trained is part of the weights, so the folder needs no library besides transformers.\n"
        "vLLM and `convert_hf_to_gguf.py` of llama.cpp read such folders if they know the model:\n\n"
        "```\nvllm serve THIS_FOLDER\npython convert_hf_to_gguf.py THIS_FOLDER\n```\n"
    )


def format_peft_text_usage(base_model: str, prompt: PromptFormat) -> str:
    """Return how to use an adapter in the format of PEFT on the language model `base_model`."""
    return (
        "```python\nfrom peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{base_model}")\n'
        'model = PeftModel.from_pretrained(model, "THIS_FOLDER")\n'
        'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")\n'
        'settings = GenerationConfig.from_pretrained("THIS_FOLDER")  # it stops where answers end\n'
        + _format_generation(prompt, ", generation_config=settings")
        + "```\n"
        + _format_example(prompt)
    )


def format_peft_image_usage(model: str, classes: int, arguments: str, preprocessing: Preprocessing) -> str:
    """Return how to use an adapter in the format of PEFT on an image classifier of timm.

    Args:
        model: timm's name of the model.
        classes: Number of classes.
        arguments: Further arguments of `timm.create_model`, as Python code.
        preprocessing: How images are prepared.
    """
    height, width = preprocessing.image_size
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (preprocessing.mean, preprocessing.std))
    return (
        "```python\nimport timm\nfrom peft import PeftModel\n\n"
        f'model = timm.create_model("{model}", num_classes={classes}{arguments})\n'
        'model = PeftModel.from_pretrained(model, "THIS_FOLDER").eval()\n'
        "logits = model(images)  # [B, classes]; the classifier is part of the adapter\n```\n\n"
        f"Images are {height} × {width} pixels in 0..1, normalized by the mean {mean} and the deviation {std}.\n"
    )


def _format_generation(prompt: PromptFormat, settings: str) -> str:
    """Return the lines that generate an answer, with further `settings` of `generate`."""
    if prompt.has_stop_text:
        settings += ", tokenizer=tokenizer"
    if prompt.example is None:
        encode = (
            f'text = (tokenizer.bos_token or "") + "{EXAMPLE_TEXT}"\n'
            'inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")\n'
        )
    else:
        encode = (
            f'messages = [{{"role": "user", "content": "{EXAMPLE_QUESTION}"}}]\n'
            "inputs = tokenizer.apply_chat_template(\n"
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"\n)\n'
        )
    return f"\n{encode}answer = model.generate(**inputs, max_new_tokens=256, do_sample=False{settings})\n{_READ_ANSWER}"


def _format_example(prompt: PromptFormat) -> str:
    """Return what the model reads, in a fence that the prompt cannot end."""
    if prompt.example is None:
        return "\nThe model was trained on documents: it continues a text, and knows no questions and answers.\n"
    fence = "```"
    while fence in prompt.example:
        fence += "`"
    return f"\nThe chat template has the format that the model was trained on:\n\n{fence}\n{prompt.example}\n{fence}\n"

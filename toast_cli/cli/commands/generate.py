"""`toast generate`: generate text with a tuned language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toast_cli.cli import options

if TYPE_CHECKING:
    from toast_cli.data.text.prompts import Prompt


def generate(
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="Prompt to answer.")] = None,
    interactive: Annotated[
        bool,
        typer.Option("--interactive", help="Chat in the terminal, one turn per line. An empty line or Ctrl-D quits."),
    ] = False,
    prompts: Annotated[
        Path | None,
        typer.Option(help="File of prompts, answered in batches: one per line, or .json or .jsonl with 'prompt'."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="With --prompts: batch size.")] = 8,
    run: options.RunOption = None,
    backbone: options.BackboneOption = None,
    weights: options.WeightsOption = None,
    raw: options.RawOption = False,
    max_new_tokens: options.MaxNewTokensOption = 256,
    temperature: options.TemperatureOption = 0.0,
    top_p: options.TopPOption = 1.0,
    beams: Annotated[int, typer.Option(min=1, help="Number of beams. Beam search does not stream the answer.")] = 1,
    seed: options.SamplingSeedOption = 0,
    device: options.DeviceOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Generate text with a tuned language model.

    Uses the newest run, unless --run selects another one or --backbone an untuned model.
    """
    from toast_cli.utils.errors import UsageError

    if (prompt is not None) + interactive + (prompts is not None) != 1:
        raise UsageError("Expected exactly one of PROMPT, --prompts and --interactive.", code="cli.choose-one")
    if prompt is not None and not prompt.strip():
        raise UsageError("The prompt is empty.", what_to_do="Pass a text to answer.", code="text.empty-prompt")
    if interactive and (as_json or raw):
        raise UsageError("--interactive cannot be combined with --json or --raw.", code="cli.conflicting-options")
    if run is not None and backbone is not None:
        raise UsageError(
            "--run and --backbone cannot be combined: a run has its own backbone.", code="cli.conflicting-options"
        )

    import torch

    from toast_cli.cli.output.console import print_answer, print_json
    from toast_cli.data.text.turns import Turn
    from toast_cli.model.generation import make_generation_settings

    asked = None if prompts is None else _read_prompts(prompts)
    writer = _make_writer(run, backbone, weights, raw, device)
    settings = make_generation_settings(max_new_tokens, temperature, top_p, beams)
    torch.manual_seed(seed)

    if asked is not None:
        texts = writer.answer_all([one.turns for one in asked], batch_size, **settings)
        pairs = [{"prompt": one.text, "answer": text} for one, text in zip(asked, texts, strict=True)]
        if as_json:
            print_json(pairs)
        for pair in () if as_json else pairs:
            print_answer(f"> {pair['prompt']}\n{pair['answer']}\n")
        return

    def print_text(text: str) -> None:
        print_answer(text, end="")

    def answer(turns: list[Turn]) -> str:
        streamed = beams == 1 and not as_json
        text = writer.answer(turns, print_text if streamed else None, **settings)
        if not as_json:
            print_answer("" if streamed else text)
        return text

    if prompt is not None:
        text = answer([Turn("user", prompt)])
        if as_json:
            print_json({"prompt": prompt, "answer": text})
        return
    turns: list[Turn] = []
    while line := _read_input_line():
        turns.append(Turn("user", line))
        turns.append(Turn("assistant", answer(turns)))


def _read_prompts(path: Path) -> list[Prompt]:
    """Return the prompts of a file.

    Raises:
        ToastError: The file cannot be read, has no prompt, or has an entry that is no prompt.
    """
    from toast_cli.data.text.prompts import read_prompts
    from toast_cli.utils.errors import ToastError

    prompts = read_prompts(path)
    for prompt in prompts:
        if prompt.error is not None:
            raise ToastError(f"{prompt.name} is not a prompt.", prompt.error, code="text.not-a-prompt")
    return prompts


def _read_input_line() -> str:
    typer.echo("> ", nl=False, err=True)  # stdout has only the answers
    try:
        return input().strip()
    except EOFError:
        return ""


def _make_writer(run: Path | None, backbone: str | None, weights: str | None, raw: bool, device: str | None) -> Any:
    from toast_cli.cli.find_run import load_writer, print_message, resolve_run_path
    from toast_cli.model.generation import TextGenerator, choose_template
    from toast_cli.training.distributed.devices import make_accelerator
    from toast_cli.training.session import build_plain_model

    if backbone is None:
        return load_writer(resolve_run_path(run), weights, device, raw)
    model, recipe = build_plain_model(backbone, weights, device)
    template = None if raw else choose_template(recipe, model.backbone.tokenizer)
    return TextGenerator(model.to(make_accelerator(recipe.device, recipe.precision).device), template, print_message)

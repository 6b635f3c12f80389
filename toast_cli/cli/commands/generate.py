"""`toast generate`: let a tuned language model answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from toast_cli.cli import options


def generate(
    prompt: Annotated[str | None, typer.Argument(help="What to answer.")] = None,
    interactive: Annotated[
        bool, typer.Option("--interactive", help="Talk: every line is a turn; an empty one or Ctrl-D ends.")
    ] = False,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Answer every line of this text file, several at a time."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="--prompts: how many are answered at a time.")] = 8,
    run: options.RunOption = None,
    backbone: options.BackboneOption = None,
    weights: options.WeightsOption = None,
    raw: Annotated[bool, typer.Option("--raw", help="Give the prompt as it is, unmarked, to be continued.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token; higher is freer.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Draw from the likeliest tokens of this mass.")] = 1.0,
    beams: Annotated[int, typer.Option(min=1, help="Search this many beams; nothing is streamed then.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    device: options.DeviceOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Answer prompts with a tuned language model (the newest run unless one is named), or with a plain one."""
    from toast_cli.utils.errors import UsageError

    if (prompt is not None) + interactive + (prompts is not None) != 1:
        raise UsageError("Give one of a prompt, --prompts and --interactive.", code="cli.choose-one")
    if prompt is not None and not prompt.strip():
        raise UsageError("The prompt is empty.", what_to_do="Say something to be answered.", code="text.empty-prompt")
    if interactive and (as_json or raw):
        raise UsageError("--interactive goes with neither --json nor --raw.", code="cli.conflicting-options")
    if run is not None and backbone is not None:
        raise UsageError(
            "--run and --backbone exclude each other: a run brings its own backbone.", code="cli.conflicting-options"
        )

    import torch

    from toast_cli.cli.output.console import print_answer, print_json
    from toast_cli.data.text.conversations import Turn

    lines = None if prompts is None else _read_prompts(prompts)
    writer = _make_writer(run, backbone, weights, raw, device)
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "num_beams": beams, "do_sample": temperature > 0}
    if temperature > 0:
        settings |= {"temperature": temperature, "top_p": top_p}
    torch.manual_seed(seed)

    if lines is not None:
        texts = writer.answer_all([[Turn("user", line)] for line in lines], batch_size, **settings)
        found = [{"prompt": line, "answer": text} for line, text in zip(lines, texts, strict=True)]
        if as_json:
            print_json(found)
        for pair in () if as_json else found:
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


def _read_prompts(path: Path) -> list[str]:
    """Return the prompts in a text file, blank lines left out.

    Raises:
        ToastError: it cannot be read, is no text, or holds none.
    """
    from toast_cli.data.images.files import read_text_file
    from toast_cli.utils.errors import ToastError

    try:
        found = [line for line in read_text_file(path).splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ToastError(f"{path} is no UTF-8 text.", code="data.unreadable-file") from error
    except OSError as error:
        raise ToastError(
            f"{path} cannot be read.", error.strerror or str(error), code="data.unreadable-file"
        ) from error
    if not found:
        raise ToastError(f"{path} holds no prompt.", what_to_do="Write one a line.", code="text.no-prompts")
    return found


def _read_input_line() -> str:
    typer.echo("> ", nl=False, err=True)  # stdout has the answers alone
    try:
        return input().strip()
    except EOFError:
        return ""


def _make_writer(run: Path | None, backbone: str | None, weights: str | None, raw: bool, device: str | None) -> Any:
    from toast_cli.cli.find_run import load_writer, print_message, resolve_run_path
    from toast_cli.model.generation import TextGenerator
    from toast_cli.training.distributed.devices import make_accelerator
    from toast_cli.training.session import build_plain_model

    if backbone is None:
        return load_writer(resolve_run_path(run), weights, device, raw)
    model, recipe = build_plain_model(backbone, weights, device)
    template = None if raw or not getattr(model.backbone.tokenizer, "chat_template", None) else "chat"
    return TextGenerator(model.to(make_accelerator(recipe.device, recipe.precision).device), template, print_message)

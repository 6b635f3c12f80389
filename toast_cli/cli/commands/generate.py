"""`toast generate`: generate text with a tuned language model."""

from __future__ import annotations

from collections.abc import Sequence
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
        typer.Option(
            "--interactive",
            help='Chat in the terminal, one turn per line, or several lines between """ and """. /save [FILE] saves '
            "the conversation; an empty line or Ctrl-D quits.",
        ),
    ] = False,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="File of prompts, answered in batches: one per line, or .json or .jsonl with 'prompt', 'messages' or "
            "another format of conversations."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="With --prompts: batch size.")] = 8,
    out: Annotated[
        Path | None,
        typer.Option(
            help="With --prompts: write the answers to this JSON Lines file, each entry of the file of prompts with "
            "its 'answer'."
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(help="System message before every conversation that has none of its own."),
    ] = None,
    emphasize: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="Set ξ from the tokens of this text of the prompt, wherever it occurs (an experiment): pass two then "
            "selects tokens that are similar to them. Can be given several times; for runs of toast and toast-lite.",
        ),
    ] = None,
    alpha: options.AlphaOption = None,
    run: options.RunOption = None,
    backbone: options.BackboneOption = None,
    weights: options.WeightsOption = None,
    raw: options.RawOption = False,
    max_new_tokens: options.MaxNewTokensOption = 256,
    temperature: options.TemperatureOption = 0.0,
    top_p: options.TopPOption = 1.0,
    top_k: options.TopKOption = None,
    repetition_penalty: options.RepetitionPenaltyOption = None,
    beams: Annotated[int, typer.Option(min=1, help="Number of beams. Beam search does not stream the answer.")] = 1,
    seed: options.SamplingSeedOption = 0,
    device: options.DeviceOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Generate text with a tuned language model.

    Uses the newest finished run, unless --run selects another one or --backbone an untuned model. A run of --run that
    has not finished answers with its last checkpoint.
    """
    from toast_cli.utils.errors import UsageError

    if (prompt is not None) + interactive + (prompts is not None) != 1:
        raise UsageError("Expected exactly one of PROMPT, --prompts and --interactive.", code="cli.choose-one")
    if prompt is not None and not prompt.strip():
        raise UsageError("The prompt is empty.", what_to_do="Pass a text to answer.", code="text.empty-prompt")
    if interactive and (as_json or raw):
        raise UsageError("--interactive cannot be combined with --json or --raw.", code="cli.conflicting-options")
    if system is not None and (raw or not system.strip()):
        raise UsageError(
            "--system cannot be combined with --raw." if raw else "The system message is empty.",
            what_to_do="Leave one of them out." if raw else "Pass a text, or leave --system out.",
            code="cli.conflicting-options" if raw else "text.empty-prompt",
        )
    if top_k is not None and temperature == 0:
        raise UsageError(
            "--top-k needs --temperature.",
            "Without it, the most likely token is always chosen.",
            "Add --temperature 1, for example.",
            code="cli.missing-option",
        )
    if out is not None and (prompts is None or as_json):
        raise UsageError(
            "--out needs --prompts, and cannot be combined with --json.",
            "It writes the answers to a file of prompts.",
            code="cli.missing-option",
        )
    if out is not None and out.exists():
        raise UsageError(f"{out} exists already.", what_to_do="Choose another name.", code="disk.already-exists")
    if run is not None and backbone is not None:
        raise UsageError(
            "--run and --backbone cannot be combined: a run has its own backbone.", code="cli.conflicting-options"
        )

    from toast_cli.utils.lazy_imports import collect_garbage_less_often

    collect_garbage_less_often()

    import torch

    from toast_cli.cli.chat import ChatSession
    from toast_cli.cli.output.console import err, print_answer, print_json, print_line
    from toast_cli.data.text.chat_templates import encode_prompt
    from toast_cli.data.text.turn_formats import describe_template
    from toast_cli.data.text.turns import Turn, add_system_turn
    from toast_cli.model.generation import make_generation_settings
    from toast_cli.utils.files import write_text
    from toast_cli.utils.names import format_json

    asked = None if prompts is None else _read_prompts(prompts)
    writer = _make_writer(run, backbone, weights, raw, device, alpha)
    if system is not None and writer.template is None:
        raise UsageError(
            "--system cannot be used with this model.",
            "It continues texts: it was trained on documents, or has no chat template.",
            "Write the instruction into the prompt.",
            code="text.no-chat-template",
        )
    if writer.template is not None:
        print_line(describe_template(writer.tokenizer, writer.template), err)
    elif not raw:
        print_line("Prompts are continued as they are: the model has no format of turns.", err)
    settings = make_generation_settings(max_new_tokens, temperature, top_p, beams, top_k, repetition_penalty)
    torch.manual_seed(seed)

    def report_cut(answers: int = 1) -> None:
        if (cut := writer.cut_answers) > 0:
            what = "The answer was" if answers == 1 else f"{cut:,} of {answers:,} answers were"
            print_line(f"{what} cut at the limit of new tokens (--max-new-tokens {max_new_tokens}).", err)

    if asked is not None:
        conversations = [add_system_turn(one.turns, system) for one in asked]
        marked = [emphasize] * len(conversations) if emphasize else None
        texts = writer.answer_all(conversations, batch_size, marked, **settings)
        report_cut(len(asked))
        if out is not None:
            lines = ({**one.entry, "answer": text} for one, text in zip(asked, texts, strict=True))
            write_text(out, "".join(f"{format_json(line)}\n" for line in lines))
            print_line(f"{len(asked):,} answers: {out}")
            return
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
        text = writer.answer(turns, print_text if streamed else None, emphasize or (), **settings)
        if not as_json:
            print_answer("" if streamed else text)
        report_cut()
        return text

    if prompt is not None:
        text = answer(add_system_turn([Turn("user", prompt)], system))
        if as_json:
            print_json({"prompt": prompt, "answer": text})
        return

    def count_tokens(turns: Sequence[Turn]) -> int:
        return len(encode_prompt(turns, writer.tokenizer, writer.template))

    ChatSession(answer, count_tokens, writer.limits.window, max_new_tokens, system).run()


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


def _make_writer(
    run: Path | None, backbone: str | None, weights: str | None, raw: bool, device: str | None, alpha: float | None
) -> Any:
    from toast_cli.cli.find_run import load_writer, print_message, resolve_run_path
    from toast_cli.evaluation.open_run import set_feedback_strength
    from toast_cli.model.generation import TextGenerator, choose_template
    from toast_cli.storage.load_model import build_plain_model
    from toast_cli.training.distributed.devices import make_accelerator

    if backbone is None:
        return load_writer(resolve_run_path(run), weights, device, raw, interrupted=True, alpha=alpha)
    model, recipe = build_plain_model(backbone, weights, device)
    set_feedback_strength(model, alpha)
    template = None if raw else choose_template(recipe, model.backbone.tokenizer)
    return TextGenerator(model.to(make_accelerator(recipe.device, recipe.precision).device), template, print_message)

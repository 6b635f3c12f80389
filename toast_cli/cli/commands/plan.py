"""`toast plan`: estimate the cost of each tuning method, and which ones fit into memory."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toast_cli.cli import options

if TYPE_CHECKING:
    from toast_cli.recipe.schema import Recipe
    from toast_cli.training.plan.text_lengths import TextLengths

UNREAD_TEXTS = "alpaca:texts.json"
"""Data set of a plan for texts of a given length: it chooses the recipe, and its file is not read."""
ALIKE = 0.9
"""Ratio of the typical length of texts to the longest from which one table is printed, for the longest."""


def run_plan(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Recipe fields to override, e.g. training.batch_size=64."),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Device memory to plan for, e.g. 24GB. [default: free memory of the device]")
    ] = None,
    backbone: options.BackboneOption = None,
    weights: options.WeightsOption = None,
    dataset: options.DatasetOption = None,
    data_dir: options.DataDirOption = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=2, help="Language models: plan for texts of this length. No data and no tokenizer is read."),
    ] = None,
    time: Annotated[
        bool | None,
        typer.Option(
            "--time/--no-time",
            help="Build every model that fits, and measure the time of an epoch. [default: for images]",
        ),
    ] = None,
    device: options.DeviceOption = None,
    precision: options.PrecisionOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Estimate the cost of each method before training.

    Reports trained parameters, FLOPs and memory per batch size, and which methods fit into memory.
    Language models are planned from their configuration: no weights are loaded and no memory is allocated.
    """
    from toast_cli.recipe.lookup import resolve_recipe
    from toast_cli.training.plan.method_costs import parse_memory

    memory_option = None if memory is None else parse_memory(memory)

    def resolve(method: str, fields: tuple[str, ...], weights: str | None) -> Any:
        return resolve_recipe(
            backbone=backbone,
            weights=weights,
            dataset=UNREAD_TEXTS if dataset is None and tokens is not None else dataset,
            data_dir=data_dir,
            method=method,
            device=device,
            precision=precision,
            overrides=[*fields, *(overrides or [])],
        ).recipe

    from toast_cli.cli.output.console import print_json
    from toast_cli.cli.output.progress import TerminalReporter
    from toast_cli.training.distributed.devices import make_accelerator
    from toast_cli.training.plan.memory import get_free_memory
    from toast_cli.training.plan.method_costs import (
        estimate_method_costs,
        estimate_text_method_costs,
        list_variants,
    )
    from toast_cli.utils.errors import UsageError

    recipe = resolve("toast", (), weights)
    takes_texts = recipe.plugins.backbone.outline is not None
    _check_options(recipe, takes_texts, tokens, time)
    timed = not takes_texts if time is None else time

    def recipe_of(method: str, fields: tuple[str, ...]) -> Any:
        return resolve(method, fields, weights if takes_texts else weights or "none")

    accelerator = make_accelerator(recipe.device, recipe.precision)
    limit = memory_option or get_free_memory(accelerator.device)
    if limit is None:
        raise UsageError(
            f"Cannot query the free memory of the device '{accelerator.device.type}'.",
            what_to_do="Pass it, e.g. --memory 24GB.",
            code="device.unknown-memory",
        )
    others = _list_other_methods()
    lengths = None
    with TerminalReporter() as reporter:
        if takes_texts:
            from toast_cli.training.plan.outline import build_outline
            from toast_cli.training.plan.text_lengths import give_text_length, measure_text_lengths

            outline, messages = build_outline(recipe), tuple[str, ...]()
            if tokens is not None:
                lengths = give_text_length(tokens, outline.backbone)
            else:
                lengths, messages = measure_text_lengths(recipe, outline.backbone)
            for message in messages:
                reporter.report_message(message)
            costs = estimate_text_method_costs(
                recipe_of, outline, lengths, limit, reporter.report_message, others, timed
            )
        else:
            costs = estimate_method_costs(recipe_of, limit, reporter.report_message, others, timed)
        found = list(reporter.track_progress(costs, len(list_variants(others, timed, texts=takes_texts)), "measuring"))
    if as_json:
        plan = {"memory": limit, "device": str(accelerator.device), "ways": [asdict(each) for each in found]}
        print_json(plan if lengths is None else {**plan, "texts": asdict(lengths)})
        return
    mixed = accelerator.mixed_precision
    if lengths is not None:
        _print_precision("fp32" if mixed == "no" else mixed)
    _print_plan(found, limit, recipe, lengths, str(accelerator.device) if timed else None)


def _check_options(recipe: Recipe, takes_texts: bool, tokens: int | None, time: bool | None) -> None:
    """Check that the options fit the backbone, before anything is measured.

    Raises:
        UsageError: They do not.
    """
    from toast_cli.utils.errors import UsageError

    name = recipe.backbone.name
    if tokens is not None and not takes_texts:
        raise UsageError(f"--tokens is the length of texts, and {name} takes images.", code="cli.conflicting-options")
    if tokens is not None and time:
        raise UsageError(
            "--time needs texts to train on, which --tokens stands for.",
            what_to_do="Give a data set instead: --dataset alpaca:FILE.",
            code="cli.conflicting-options",
        )


def _list_other_methods() -> list[str]:
    """Return the methods of plugins."""
    from toast_cli import registry
    from toast_cli.utils.constants import OWN_PACKAGE

    names = registry.list_names(registry.METHODS)
    return [name for name in names if registry.find_package(registry.METHODS, name) != OWN_PACKAGE]


def _print_plan(found: list[Any], limit: int, recipe: Recipe, lengths: TextLengths | None, device: str | None) -> None:
    from toast_cli.cli.output.console import print_line
    from toast_cli.training.plan.method_costs import METHOD_VARIANTS, MethodCost
    from toast_cli.utils.formatting import format_bytes

    offered = [each for each in found if isinstance(each, MethodCost)]
    title = f"{recipe.dataset.name} on {recipe.backbone.name}"
    if lengths is None:
        _print_costs(title, [(each, each.memory, each.largest) for each in offered], device is not None)
    else:
        title = f"{recipe.backbone.name}, texts of"
        longest, typical = lengths.longest.tokens, lengths.typical.tokens
        alike = typical >= ALIKE * longest
        if not alike:
            shorter = [(each, each.typical_memory or {}, each.typical_largest or 0) for each in offered]
            _print_costs(f"{title} {typical:,} tokens (typical)", shorter, device is not None)
        rows = [(each, each.memory, each.largest) for each in offered]
        _print_costs(f"{title} {longest:,} tokens{' (the longest)' * (not alike)}", rows, device is not None)
        print_line(lengths.note)
    size = offered[0].batch_size
    whole = "; ".join(each.way for each in offered if each.largest >= size)
    print_line(f"Fits into {format_bytes(limit)} with the recipe's batch size of {size}: {whole or 'none'}.")
    for each in offered:
        if each.fits and each.largest < size:
            _, fields = METHOD_VARIANTS.get(each.way, ("", ()))
            batch = (f"training.batch_size={each.largest}", f"training.accumulate={each.accumulate}")
            print_line(
                f"{each.way} fits with a smaller batch and about as many samples a step: {' '.join((*fields, *batch))}"
            )
    for each in offered:
        if not each.fits:
            print_line(f"{each.way} does not fit: one sample needs {format_bytes(each.memory[1])}.")
    for each in found:
        if not isinstance(each, MethodCost):
            print_line(f"{each.way}: {each.why}")
    if device is not None:
        print_line(f"Times were measured on {device} over a few steps, with random weights unless --weights was given.")
    print_line("Memory is an estimate and excludes temporary kernel workspace. peft:KIND is not measured.")


def _print_costs(title: str, rows: list[tuple[Any, dict[int, int], int]], timed: bool) -> None:
    """Print a table of methods, each with its memory by batch size and the largest batch size that fits."""
    from rich import box
    from rich.table import Table

    from toast_cli.cli.output.console import print_table
    from toast_cli.training.plan.method_costs import MEMORY_BATCH_SIZES
    from toast_cli.utils.formatting import format_bytes

    sizes = [f"batch {size}" for size in MEMORY_BATCH_SIZES]
    heads = ("", "trained", "FLOPs", "weights", *sizes, "largest batch", *(["time per epoch"] if timed else []))
    table = Table(*heads, title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for each, memory, largest in rows:
        seconds = "–" if each.seconds_per_epoch is None else f"{each.seconds_per_epoch:.3g} s"
        table.add_row(
            each.way,
            f"{each.trained:,}",
            f"{each.flops / each.flops_plain:.2f} ×",
            format_bytes(each.weights),
            *(format_bytes(memory[size]) for size in MEMORY_BATCH_SIZES),
            f"{largest:,}" if largest else "none",
            *([seconds] if timed else []),
        )
    print_table(table)


def _print_precision(precision: str) -> None:
    from toast_cli.cli.output.console import print_line

    other = " For a GPU, add --precision bf16: it needs much less memory." if precision == "fp32" else ""
    print_line(f"No weights were loaded. Planned for precision {precision}.{other}")

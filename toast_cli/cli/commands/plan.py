"""`toast plan`: what fits into a memory, and what it costs, before anything is tuned."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from toast_cli.cli import options


def run_plan(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Any field of the recipe: training.batch_size=64."),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory of the device, such as 24GB. [default: what is free on this one]")
    ] = None,
    backbone: options.BackboneOption = None,
    weights: options.WeightsOption = None,
    dataset: options.DatasetOption = None,
    data_dir: options.DataDirOption = None,
    device: options.DeviceOption = None,
    precision: options.PrecisionOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Compare ways of adapting before a run: parameters, FLOPs, memory by batch size, time, and which of them fit."""
    from toast_cli.recipe.resolve import resolve_recipe
    from toast_cli.training.plan.method_costs import parse_memory

    wanted = None if memory is None else parse_memory(memory)

    def recipe_of(method: str, fields: tuple[str, ...]) -> Any:
        return resolve_recipe(
            backbone=backbone,
            weights=weights or "none",
            dataset=dataset,
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
    from toast_cli.training.plan.method_costs import METHOD_VARIANTS, estimate_method_costs

    recipe = recipe_of("toast", ())
    found_on = make_accelerator(recipe.device, recipe.precision).device
    limit = wanted or get_free_memory(found_on)
    if limit is None:
        from toast_cli.utils.errors import UsageError

        raise UsageError(
            f"How much memory is free on {found_on.type} cannot be asked.",
            what_to_do="Add --memory 24GB.",
            code="device.unknown-memory",
        )
    with TerminalReporter() as reporter:
        found = list(
            reporter.track(estimate_method_costs(recipe_of, limit, reporter.message), len(METHOD_VARIANTS), "measuring")
        )
    if as_json:
        print_json({"memory": limit, "device": str(found_on), "ways": [asdict(each) for each in found]})
        return
    _print_plan(found, limit, str(found_on), f"{recipe.dataset.name} on {recipe.backbone.name}")


def _print_plan(found: list[Any], limit: int, device: str, title: str) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from toast_cli.cli.output.console import print_line, print_table
    from toast_cli.training.plan.method_costs import MEMORY_BATCH_SIZES, MethodCost
    from toast_cli.utils.formatting import format_bytes

    heads = (
        "",
        "trained",
        "FLOPs",
        *(f"batch {size}" for size in MEMORY_BATCH_SIZES),
        "largest that fits",
        "an epoch here",
    )
    table = Table(*heads, title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for each in found:
        if not isinstance(each, MethodCost):
            table.add_row(escape(each.way), "–")
            continue
        fits = "none" if not each.fits else f"{each.largest:,}"
        memory = [format_bytes(each.memory[size]) for size in MEMORY_BATCH_SIZES]
        seconds = "–" if each.seconds_per_epoch is None else f"{each.seconds_per_epoch:.3g} s"
        flops = f"{each.flops / each.flops_plain:.2f} ×"
        table.add_row(escape(each.way), f"{each.trained:,}", flops, *memory, fits, seconds)
    print_table(table)
    offered = [each for each in found if isinstance(each, MethodCost)]
    fitting = [each for each in offered if each.fits]
    names = "; ".join(each.way + _format_accumulation(each) for each in fitting)
    print_line(
        f"Into {format_bytes(limit)} fit, with the recipe's batch of {offered[0].batch_size}: {names or 'none'}."
    )
    for each in offered:
        if not each.fits:
            print_line(f"{each.way} does not fit: one sample needs {format_bytes(each.memory[1])}.")
    for each in found:
        if not isinstance(each, MethodCost):
            print_line(f"{each.way}: {each.why}")
    print_line(
        f"Times are those of {device}, from a few steps, with random weights where none were given; "
        "memory is counted, without what kernels need for a moment."
    )


def _format_accumulation(offer: Any) -> str:
    """What to write where the recipe's batch fits only a part at a time."""
    if offer.accumulate == 1:
        return ""
    return f" (training.batch_size={offer.largest} training.accumulate={offer.accumulate})"

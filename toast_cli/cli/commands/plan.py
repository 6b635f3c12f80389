"""`toast plan`: estimate the cost of each tuning method, and which ones fit into memory."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from toast_cli.cli import options


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
    device: options.DeviceOption = None,
    precision: options.PrecisionOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Estimate the cost of each method before training.

    Reports trained parameters, FLOPs, memory per batch size and time per epoch, and which methods fit into memory.
    """
    from toast_cli.recipe.lookup import resolve_recipe
    from toast_cli.training.plan.method_costs import parse_memory

    memory_option = None if memory is None else parse_memory(memory)

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
    used_device = make_accelerator(recipe.device, recipe.precision).device
    limit = memory_option or get_free_memory(used_device)
    if limit is None:
        from toast_cli.utils.errors import UsageError

        raise UsageError(
            f"Cannot query the free memory of the device '{used_device.type}'.",
            what_to_do="Pass it, e.g. --memory 24GB.",
            code="device.unknown-memory",
        )
    others = _list_other_methods()
    with TerminalReporter() as reporter:
        costs = estimate_method_costs(recipe_of, limit, reporter.report_message, others)
        found = list(reporter.track_progress(costs, len(METHOD_VARIANTS) + len(others), "measuring"))
    if as_json:
        print_json({"memory": limit, "device": str(used_device), "ways": [asdict(each) for each in found]})
        return
    _print_plan(found, limit, str(used_device), f"{recipe.dataset.name} on {recipe.backbone.name}")


def _list_other_methods() -> list[str]:
    """Return the methods of plugins."""
    from toast_cli import registry
    from toast_cli.utils.constants import OWN_PACKAGE

    names = registry.list_names(registry.METHODS)
    return [name for name in names if registry.find_package(registry.METHODS, name) != OWN_PACKAGE]


def _print_plan(found: list[Any], limit: int, device: str, title: str) -> None:
    from rich import box
    from rich.table import Table

    from toast_cli.cli.output.console import print_line, print_table
    from toast_cli.training.plan.method_costs import MEMORY_BATCH_SIZES, MethodCost
    from toast_cli.utils.formatting import format_bytes

    heads = (
        "",
        "trained",
        "FLOPs",
        *(f"batch {size}" for size in MEMORY_BATCH_SIZES),
        "largest batch",
        "time per epoch",
    )
    table = Table(*heads, title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for each in found:
        if not isinstance(each, MethodCost):
            table.add_row(each.way, "–")
            continue
        fits = "none" if not each.fits else f"{each.largest:,}"
        memory = [format_bytes(each.memory[size]) for size in MEMORY_BATCH_SIZES]
        seconds = "–" if each.seconds_per_epoch is None else f"{each.seconds_per_epoch:.3g} s"
        flops = f"{each.flops / each.flops_plain:.2f} ×"
        table.add_row(each.way, f"{each.trained:,}", flops, *memory, fits, seconds)
    print_table(table)
    offered = [each for each in found if isinstance(each, MethodCost)]
    fitting = [each for each in offered if each.fits]
    names = "; ".join(each.way + _format_accumulation(each) for each in fitting)
    print_line(
        f"Fits into {format_bytes(limit)} with the recipe's batch size of {offered[0].batch_size}: {names or 'none'}."
    )
    for each in offered:
        if not each.fits:
            print_line(f"{each.way} does not fit: one sample needs {format_bytes(each.memory[1])}.")
    for each in found:
        if not isinstance(each, MethodCost):
            print_line(f"{each.way}: {each.why}")
    print_line(
        f"Times were measured on {device} over a few steps, with random weights unless --weights was given. "
        "Memory is an estimate and excludes temporary kernel workspace. peft:KIND is not measured."
    )


def _format_accumulation(offer: Any) -> str:
    """Return the overrides that make the recipe's batch fit by gradient accumulation; empty if it fits as it is."""
    if offer.accumulate == 1:
        return ""
    return f" (training.batch_size={offer.largest} training.accumulate={offer.accumulate})"

"""`toast data`: list data sources, check a data set, and preview the images as a model sees them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toast_cli.cli import options
from toast_cli.cli.options import CommandGroup
from toast_cli.utils.errors import RUNTIME_FAILURE

if TYPE_CHECKING:
    from toast_cli.data.base import DataSet

app = typer.Typer(cls=CommandGroup, invoke_without_command=True, rich_markup_mode=None)

SourceArgument = Annotated[
    str | None, typer.Argument(metavar="SOURCE", help="Data set, e.g. cub or folder:PATH; or give it as --dataset.")
]


def choose_source(source: str | None, dataset: str | None, overrides: list[str] | None) -> tuple[str, list[str]]:
    """Return the data set, given as an argument or as `--dataset`, and the overrides.

    Raises:
        UsageError: It is given in both ways, or in none.
    """
    from toast_cli.utils.errors import UsageError

    if dataset is not None and source is not None and "=" in source:  # the first override, in the place of SOURCE
        return dataset, [source, *(overrides or [])]
    if (source is None) == (dataset is None):
        raise UsageError(
            "There is no data set." if source is None else f"There are two data sets: {source} and {dataset}.",
            what_to_do="Name one: 'toast data ls' lists all sources.",
            code="cli.missing-option" if source is None else "cli.conflicting-options",
        )
    return source or dataset or "", overrides or []


@app.callback()
def data(context: typer.Context) -> None:
    """List, check and preview data sets."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("ls")
def print_sources(as_json: options.JsonOption = False) -> None:
    """List the data sources, the files they need and their home pages."""
    from toast_cli import registry
    from toast_cli.cli.output.console import err, print_json, print_line, print_table
    from toast_cli.utils.errors import ToastError

    rows, failures = [], []
    for name, claims in sorted(registry.list_entries(registry.SOURCES).items()):
        try:
            source = registry.load_entry(registry.SOURCES, name)
        except ToastError as error:
            failures.append({"name": name, "reason": " ".join(part for part in (error.what, error.why) if part)})
            continue
        about = {"task": source.task, "needs": source.needs, "home": source.home}
        rows.append({"name": name, **about, "package": claims[0].package})
    if as_json:
        print_json({"sources": rows, "failures": failures})
        return

    from rich import box
    from rich.table import Table

    table = Table("name", "task", "needs", "home", "package", box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*row.values())
    print_table(table)
    for failure in failures:
        print_line(f"{failure['name']}: {failure['reason']}", err)


@app.command("check")
def run_data_check(
    source: SourceArgument = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="dataset.KEY=VALUE", help="Options of the data source to override.")
    ] = None,
    dataset: options.DatasetOption = None,
    data_dir: options.DataDirOption = None,
    backbone: Annotated[
        str | None, typer.Option(help="For texts: language model whose tokenizer and limits they are checked against.")
    ] = None,
    weights: options.WeightsOption = None,
    out: Annotated[Path | None, typer.Option(help="Also write the full report to this JSON file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    as_json: options.JsonOption = False,
) -> None:
    """Check a data set for unreadable images or texts and duplicates.

    Reads every image once and also reports class balance and image sizes. Of texts, it reports lengths, and with
    --backbone whether the model can be trained on them. Exits with code 1 if there is a problem that would invalidate a
    run.
    """
    from toast_cli import registry
    from toast_cli.cli.output.console import print_json, print_line
    from toast_cli.cli.output.progress import TerminalReporter
    from toast_cli.data.audit.check import check_dataset
    from toast_cli.data.audit.check_texts import check_texts
    from toast_cli.data.images.files import MissingFilesError
    from toast_cli.data.images.folder_scan import to_printable_name
    from toast_cli.data.open_source import open_source
    from toast_cli.recipe.parse import build_dataset_options
    from toast_cli.utils.files import write_json

    source, overrides = choose_source(source, dataset, overrides)
    _require_free_output(out, ".json", force)
    chosen = build_dataset_options(source, overrides=overrides)
    folder = Path(data_dir).expanduser() if data_dir else None
    report: dict[str, Any] = {"source": source}
    try:
        opened = open_source(registry.load_entry(registry.SOURCES, chosen.name), chosen, folder)
    except MissingFilesError as error:  # nothing else can be checked yet, but all missing files can be listed
        missing = [to_printable_name(name) for name in error.names]
        problems = [error.what.removesuffix("."), *(sentence.removesuffix(".") for sentence in error.known)]
        report |= {"missing": missing, "problems": problems, "what_to_do": error.what_to_do}
    else:
        _require_outside_data(out, chosen, folder, opened)
        model = None if backbone is None else _build_text_backbone(opened, backbone, weights)
        with TerminalReporter() as reporter:
            report |= (
                check_dataset(opened, reporter.track_progress)
                if opened.classes
                else check_texts(opened, reporter.track_progress, model)
            )
    if out is not None:
        write_json(out, report)
    if as_json:
        print_json(report)
    else:
        printer = _print_missing if "missing" in report else _print_report if report["classes"] else _print_text_report
        printer(report)
        if out is not None:
            print_line(f"Report: {out}")
    if report["problems"]:
        raise typer.Exit(RUNTIME_FAILURE)


@app.command("show")
def show_dataset(
    source: SourceArgument = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Recipe fields to override, e.g. images.augment=crop-flip."),
    ] = None,
    dataset: options.DatasetOption = None,
    backbone: Annotated[
        str, typer.Option(help="Backbone to prepare the images for. Its weights are not loaded.")
    ] = "vit_b16",
    recipe: Annotated[
        str | None, typer.Option(help="Built-in recipe or YAML file. Its data set is replaced by SOURCE.")
    ] = None,
    split: Annotated[str, typer.Option(help="Data split: train (with training augmentation), val or test.")] = "train",
    images: Annotated[
        int | None, typer.Option(min=1, max=400, help="Number of images. [default: 25, or 6 with --augmented]")
    ] = None,
    augmented: Annotated[
        bool,
        typer.Option(
            "--augmented",
            help="Show each training image as in evaluation and, beside it, as in the first epochs of a run.",
        ),
    ] = False,
    views: Annotated[int, typer.Option(min=1, max=20, help="With --augmented: number of epochs.")] = 6,
    seed: Annotated[int | None, typer.Option(help="Random seed for selection and augmentation.")] = None,
    data_dir: options.DataDirOption = None,
    out: Annotated[Path, typer.Option(help="Output image (PNG).")] = Path("contact-sheet.png"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a contact sheet of images as the model sees them.

    The images are resized, cropped, and augmented if the split is train. With --augmented, each image has a row of
    views that shows what the augmentation of the recipe does.
    """
    from toast_cli.cli.output.console import err, print_line
    from toast_cli.data.base import get_image_splits
    from toast_cli.data.open_source import open_source
    from toast_cli.recipe.lookup import resolve_recipe
    from toast_cli.utils.errors import UsageError

    if augmented and split != "train":
        raise UsageError(
            f"--augmented cannot be combined with --split {split}: only training images are augmented.",
            what_to_do="Leave one of them out.",
            code="cli.conflicting-options",
        )
    source, overrides = choose_source(source, dataset, overrides)
    _require_free_output(out, ".png", force)
    resolved = resolve_recipe(
        recipe=recipe,
        backbone=backbone,
        dataset=source,
        weights="none",
        data_dir=data_dir,
        seed=seed,
        overrides=overrides,
    )
    if recipe is not None:  # otherwise the recipe only serves to fill in the fields that the preview does not use
        for message in [resolved.source, *resolved.messages]:
            print_line(message, err)
    chosen = resolved.recipe
    folder = Path(chosen.data_dir).expanduser() if chosen.data_dir else None
    opened = open_source(chosen.plugins.dataset, chosen.dataset, folder)
    splits = get_image_splits(opened, source)
    _require_outside_data(out, chosen.dataset, folder, opened)
    if split not in splits:
        raise UsageError(
            f"Data set '{source}' has no split '{split}'.",
            what_to_do=f"Available splits: {', '.join(splits)}.",
            code="data.unknown-split",
        )

    from toast_cli.visualize.data_preview import draw_augmentation_sheet, draw_contact_sheet
    from toast_cli.visualize.figure_output import save_figure

    network = chosen.plugins.backbone.build(chosen.backbone)
    sheet = (
        draw_augmentation_sheet(opened, chosen, network, images or 6, views)
        if augmented
        else draw_contact_sheet(opened, split, chosen, network, images or 25, augment=split == "train")
    )
    save_figure(sheet, out, dpi=140)
    for note in opened.messages:
        print_line(note, err)
    print_line(f"Contact sheet: {out}")


def _require_free_output(out: Path | None, ending: str, force: bool) -> None:
    """Check that `out` has the suffix `ending` and does not overwrite a file, which may be part of the data.

    Raises:
        UsageError: The suffix differs, or the file exists and `force` is false.
    """
    from toast_cli.utils.errors import UsageError

    if out is not None and out.suffix.lower() != ending:
        kind = ending[1:].upper()
        raise UsageError(
            f"The output is a {kind} file, got --out {out}.",
            what_to_do=f"Use a name that ends in {ending}.",
            code="cli.wrong-suffix",
        )
    if out is not None and out.exists() and not force:
        raise UsageError(
            f"{out} already exists.",
            what_to_do="Choose another --out, or add --force to overwrite it.",
            code="disk.already-exists",
        )


def _require_outside_data(out: Path | None, chosen: Any, data_dir: Path | None, opened: DataSet) -> None:
    """Check that `out` is outside the data set's folders, where it would be read as data.

    Raises:
        UsageError: `out` is in a folder that the data set is read from.
    """
    from toast_cli.data.base import get_image_folders
    from toast_cli.data.paths import list_candidate_paths
    from toast_cli.utils.errors import UsageError

    named = list_candidate_paths(chosen.path, data_dir) if getattr(chosen, "path", None) else []
    folders = [place for place in named if place.is_dir()]
    if not any(place.is_file() for place in named):  # a table can be anywhere; it lists the files to read
        folders += sorted(folder for split in opened.splits.values() for folder in get_image_folders(split))
    for folder in folders:
        if out is not None and out.resolve().is_relative_to(folder.resolve()):
            raise UsageError(
                f"--out {out} is inside the data folder {folder}.",
                what_to_do="Choose an --out outside it.",
                code="data.output-inside-data",
            )


def _print_report(report: dict[str, Any]) -> None:
    from rich.table import Table

    from toast_cli.cli.output.console import print_line, print_table
    from toast_cli.data.splits import CLASS_NOUNS
    from toast_cli.utils.names import escape_newlines

    one, several = CLASS_NOUNS[report["target"]]
    count = f"{report['classes']} {one if report['classes'] == 1 else several}"
    table = Table(title=f"{escape_newlines(report['source'])}: {count}", title_justify="left")
    table.add_column("")
    for part in report["splits"]:
        table.add_column(part, justify="right")
    rows: dict[str, Callable[[dict[str, Any]], str]] = {
        "images": lambda found: f"{found['images']:,}",
        "cannot be read": lambda found: f"{len(found['unreadable']):,}",
    }
    if report["target"] == "number":
        names = dict.fromkeys(name for found in report["splits"].values() for name in found["numbers"])
        for name in names:
            rows[f"number: {escape_newlines(name)}"] = lambda found, name=name: _format_spread(
                found["numbers"].get(name)
            )  # type: ignore[misc]
    else:
        rows[f"images per {one}"] = lambda found: _format_spread(found["images_per_class"])
    rows |= {
        "width": lambda found: _format_spread(found["width"]),
        "height": lambda found: _format_spread(found["height"]),
    }
    for name, format_cell in rows.items():
        table.add_row(name, *map(format_cell, report["splits"].values()))
    print_table(table)
    for note in report["notes"]:
        print_line(note)
    _print_sentences(report, "problems", "bold red")
    _print_sentences(report, "warnings", "yellow")
    for line in _list_examples(report):
        print_line(line)
    if any(found["unreadable"] for found in report["splits"].values()):
        print_line("Replace or remove these files, or train without them: images.on_error=skip.")
    if not report["problems"]:
        print_line("No problems found." if not report["warnings"] else "The data set has warnings, but no problems.")


def _build_text_backbone(opened: DataSet, backbone: str, weights: str | None) -> Any:
    """Build the language model to check texts against.

    Raises:
        UsageError: The data set has images, or the backbone is no language model.
    """
    from toast_cli import registry
    from toast_cli.utils.errors import UsageError

    if opened.classes:
        raise UsageError(
            "--backbone is for texts, and the data set has images.",
            what_to_do="Leave --backbone out.",
            code="cli.conflicting-options",
        )
    card = registry.load_backbone_card(backbone)
    return card.build(card.options(name=backbone, weights=weights))


def _print_text_report(report: dict[str, Any], limit: int = 5) -> None:
    from rich.markup import escape
    from rich.table import Table

    from toast_cli.cli.output.console import escape_newlines, print_line, print_table

    table = Table(title=f"{escape(escape_newlines(report['source']))}: texts", title_justify="left")
    table.add_column("")
    for part in report["splits"]:
        table.add_column(part, justify="right")
    table.add_row("texts", *(f"{found['texts']:,}" for found in report["splits"].values()))
    table.add_row("characters", *(_format_spread(found["characters"]) for found in report["splits"].values()))
    print_table(table)
    for note in report["notes"]:
        print_line(note)
    _print_sentences(report, "problems", "bold red")
    _print_sentences(report, "warnings", "yellow")
    for name, why in [*report["left_out"].items()][:limit]:
        print_line(f"  cannot be used: {name} ({why})")
    for kind, word in (
        ("copies", "identical"),
        ("nearly_across_splits", "nearly identical"),
        ("questions_across_splits", "same question"),
    ):
        for pair in report["duplicates"][kind]["pairs"][:limit]:
            print_line(f"  {word}: {pair['first']} and {pair['second']}")
    if any(len(found) > limit for found in (report["left_out"], *(_["pairs"] for _ in report["duplicates"].values()))):
        print_line("  Add --out FILE to write the full list.")
    if not report["problems"]:
        print_line("No problems found." if not report["warnings"] else "The data set has warnings, but no problems.")


def _print_missing(report: dict[str, Any], limit: int = 100) -> None:
    from toast_cli.cli.output.console import print_line

    _print_sentences(report, "problems", "bold red")
    for name in report["missing"][:limit]:
        print_line(f"  missing: {name}")
    if len(report["missing"]) > limit:
        print_line("  Add --out FILE to write the full list.")
    print_line(f"{report['what_to_do']} The images are checked once all files exist.")


def _print_sentences(report: dict[str, Any], kind: str, style: str) -> None:
    from rich.text import Text

    from toast_cli.cli.output.console import out, print_line

    for sentence in report[kind]:
        out.print(Text(f"{kind.removesuffix('s')}: ", style=style), end="")
        print_line(sentence)


def _list_examples(report: dict[str, Any], limit: int = 5) -> list[str]:
    """Return lines that name up to `limit` files for each kind of problem and warning."""
    from toast_cli.data.splits import CLASS_NOUNS

    lines = []
    for part, found in report["splits"].items():
        lines += [f"  cannot be read: {part}: {file['name']} ({file['why']})" for file in found["unreadable"][:limit]]
        lines += [f"  outside the image: {part}: {name}" for name in found["outside"][:limit]]
    words = {
        "across_splits": "identical",
        "changed_across_splits": "same picture",
        "within_a_split": "identical",
        "nearly_across_splits": "nearly identical",
    }
    for kind, word in words.items():
        for pair in report["duplicates"][kind]["pairs"][:limit]:
            mirrored = ", mirrored" if pair["mirrored"] else ""
            other = "" if pair["same_class"] else f" (different {CLASS_NOUNS[report['target']][1]})"
            lines.append(f"  {word}{mirrored}: {pair['first']} and {pair['second']}{other}")
    truncated = any(len(report["duplicates"][kind]["pairs"]) > limit for kind in words) or any(
        len(found[kind]) > limit for found in report["splits"].values() for kind in ("unreadable", "outside")
    )
    leaked = report["duplicates"]["across_splits"]["count"] + report["duplicates"]["changed_across_splits"]["count"]
    if leaked:
        lines.append("  Remove one image of each pair that is in two splits, preferably from train.")
    return [*lines, "  Add --out FILE to write the full list."] if truncated else lines


def _format_spread(values: dict[str, float] | None) -> str:
    """Format minimum, median and maximum, or one number if they are equal."""
    if values is None:
        return ""
    least, middle, most = (f"{values[key]:,g}" for key in ("least", "median", "most"))
    return least if least == most else f"{least} … {middle} … {most}"

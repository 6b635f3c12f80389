"""`toast data`: list data sources, check a data set, and preview the images as a model sees them."""

from __future__ import annotations

from collections.abc import Mapping
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
    from toast_cli.cli.output.data_report import print_image_report, print_missing
    from toast_cli.cli.output.progress import TerminalReporter
    from toast_cli.cli.output.texts import print_text_report
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
        model = None if backbone is None else _open_text_backbone(opened, backbone, weights)
        report |= {} if opened.classes else {"backbone": backbone}
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
        printer = (
            print_missing if "missing" in report else print_image_report if report["classes"] else print_text_report
        )
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
        str | None,
        typer.Option(
            help="Backbone to prepare the images for, or language model whose tokens are shown. Its weights are not "
            "loaded. [default for images: vit_b16]"
        ),
    ] = None,
    weights: options.WeightsOption = None,
    recipe: Annotated[
        str | None, typer.Option(help="Built-in recipe or YAML file. Its data set is replaced by SOURCE.")
    ] = None,
    split: Annotated[str, typer.Option(help="Data split: train (with training augmentation), val or test.")] = "train",
    images: Annotated[
        int | None, typer.Option(min=1, max=400, help="Number of images. [default: 25, or 6 with --augmented]")
    ] = None,
    texts: Annotated[int | None, typer.Option(min=1, max=400, help="Number of texts. [default: 3]")] = None,
    entry: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N",
            help="Entry of texts to show, of any split, by its number in 'toast data check'; FILE:N if several files "
            "have one. Can be repeated.",
        ),
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
    out: Annotated[
        Path | None, typer.Option(help="Output image (PNG), of images only. [default: contact-sheet.png]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    as_json: options.JsonOption = False,
) -> None:
    """Write a contact sheet of images, or print texts, as the model sees them.

    Images are resized, cropped, and augmented if the split is train. With --augmented, each image has a row of views
    that shows what the augmentation of the recipe does.

    Texts are printed as the tokens of the model of --backbone, with a bar between tokens. Lines of tokens that are
    trained begin with 'trained'; special tokens are in double angle brackets.
    """
    from toast_cli.cli.output.console import err, print_json, print_line
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
    resolved = resolve_recipe(
        recipe=recipe,
        backbone=backbone or "vit_b16",
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
    if split not in opened.splits:
        raise UsageError(
            f"Data set '{source}' has no split '{split}'.",
            what_to_do=f"Available splits: {', '.join(opened.splits)}.",
            code="data.unknown-split",
        )
    if entry and texts is not None:
        raise UsageError(
            "--entry cannot be combined with --texts, which draws texts.",
            what_to_do="Leave one of them out.",
            code="cli.conflicting-options",
        )
    image_options = {"--images": images, "--augmented": augmented or None, "--out": out}
    _refuse_options(
        image_options if not opened.classes else {"--texts": texts, "--entry": entry, "--weights": weights}, source
    )
    if not opened.classes:
        _show_texts(opened, split, backbone, weights, texts or 3, chosen.seed, entry or [], as_json)
        return
    out = out or Path("contact-sheet.png")
    _require_free_output(out, ".png", force)
    get_image_splits(opened, source)
    _require_outside_data(out, chosen.dataset, folder, opened)

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
    if as_json:
        print_json({"contact_sheet": str(out), "notes": list(opened.messages)})
    else:
        print_line(f"Contact sheet: {out}")


def _refuse_options(given: Mapping[str, Any], source: str) -> None:
    """Refuse options of the other kind of data.

    Raises:
        UsageError: one is given.
    """
    from toast_cli.utils.errors import UsageError

    for name, value in given.items():
        if value is not None:
            kinds = ("texts", "images") if name in ("--texts", "--entry", "--weights") else ("images", "texts")
            raise UsageError(
                f"{name} is for {kinds[0]}, and '{source}' has {kinds[1]}.",
                what_to_do="Leave it out.",
                code="cli.conflicting-options",
            )


def _open_text_backbone(data: DataSet, backbone: str, weights: str | None) -> Any:
    """Return a language model that takes no memory: it has no weights, unless its tokenizer comes only with them.

    Raises:
        UsageError: the data set has images.
        ToastError: there is no such model.
    """
    import torch

    from toast_cli import registry
    from toast_cli.utils.errors import UsageError

    if data.classes:
        raise UsageError(
            "--backbone is for texts, and the data set has images.",
            what_to_do="Leave --backbone out.",
            code="cli.conflicting-options",
        )
    card = registry.load_backbone_card(backbone)
    if weights is not None and Path(weights).expanduser().is_dir():
        card = registry.load_backbone_card(f"{card.family}:{Path(weights).expanduser()}")
    with torch.device("meta"):
        built = card.build(card.options(name=card.name, weights="none"))
    if built.tokenizer is None and built.tokenizer_error is None:
        built = card.build(card.options(name=backbone, weights=weights))
    return built


def _show_texts(
    opened: DataSet,
    split: str,
    backbone: str | None,
    weights: str | None,
    count: int,
    seed: int,
    entries: list[str],
    as_json: bool,
) -> None:
    """Print texts as the tokens of a model: `entries` of any split, or else `count` drawn ones of `split`.

    Raises:
        UsageError: no model is given, or there is no such entry.
    """
    from toast_cli.cli.output.console import err, print_json, print_line
    from toast_cli.cli.output.texts import describe_shown_text, print_shown_texts
    from toast_cli.data.text.token_preview import preview_entries, preview_texts
    from toast_cli.utils.errors import UsageError

    if backbone is None:
        raise UsageError(
            "Texts are shown as the tokens of a model, and none is given.",
            what_to_do="Add --backbone lm:MODEL.",
            code="cli.missing-option",
        )
    chosen: Any = opened.splits[split]
    model = _open_text_backbone(opened, backbone, weights)
    drawn = [] if entries else preview_texts(chosen, model, count, seed)
    shown = preview_entries(opened, model, entries) if entries else [(split, text) for text in drawn]
    for note in opened.messages:
        print_line(note, err)
    if as_json:
        told = [{"split": part, **describe_shown_text(text)} for part, text in shown]
        print_json({"texts": told} if entries else {"split": split, "of": len(chosen), "texts": told})
    else:
        print_shown_texts(shown)


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

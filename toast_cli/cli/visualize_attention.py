"""`toast visualize-attention`: a picture of where the model looks in each pass."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from toast_cli.cli import options

PLAIN = "vit_demo"
"""The backbone shown when there is no run and none is named."""


def visualize_attention(
    image: Annotated[Path | None, typer.Argument(help="An image file.")] = None,
    test_image: Annotated[
        int | None, typer.Option(help="Instead of a file: this image of the run's own test split.")
    ] = None,
    run: options.Run = None,
    backbone: options.Backbone = None,
    weights: options.Weights = None,
    layer: Annotated[int, typer.Option(help="Layer whose attention is shown; -1 is the last.")] = -1,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the figure. [default: attention/ in the run folder, or here without one]"),
    ] = None,
    data_dir: options.DataDir = None,
    device: options.Device = None,
    as_json: options.Json = False,
) -> None:
    """Draw image, attention in pass one, similarity to xi and attention in pass two, side by side."""
    from toast_cli.errors import UsageError

    if (image is None) == (test_image is None):
        raise UsageError("Name one image: a file, or --test-image N of a run's own test split.")
    if run is not None and backbone is not None:
        raise UsageError("--run and --backbone exclude each other: a run brings its own backbone.")

    from toast_cli.cli.console import print_json, say

    shown = _draw(image, test_image, run, backbone, weights, layer, out, data_dir, device)
    if as_json:
        print_json({name: str(value) if isinstance(value, Path) else value for name, value in vars(shown).items()})
        return
    lines = [f"Figure: {shown.path}"]
    if shown.prediction is not None:
        sure = "" if shown.confidence is None else f" ({shown.confidence:.1%})"
        lines.append(f"Prediction: {shown.prediction}{sure}")
    if shown.share_first is not None:
        second = "" if shown.share_last is None else f", {shown.share_last:.1%} in pass two"
        lines.append(f"Attention on the object: {shown.share_first:.1%} in pass one{second}")
        lines.append("One image says little; 'toast eval' gives the mean over a split.")
    for line in lines:
        say(line)


def _draw(
    image: Path | None,
    test_image: int | None,
    run: Path | None,
    backbone: str | None,
    weights: str | None,
    layer: int,
    out: Path | None,
    data_dir: str | None,
    device: str | None,
) -> Any:
    from toast_cli.attention.showing import from_file, from_test_split, picture
    from toast_cli.cli.console import err, say
    from toast_cli.cli.runs import chosen_run
    from toast_cli.errors import UsageError
    from toast_cli.storage.adapter import load
    from toast_cli.storage.run_folder import newest_run
    from toast_cli.training.devices import make_accelerator
    from toast_cli.training.measuring import changed
    from toast_cli.training.session import open_data, plain_model

    sample = from_file(image) if image is not None else None
    if backbone is None and (run is not None or newest_run() is not None or sample is None):
        path = chosen_run(run)
        loaded = load(path, weights)
        recipe = changed(loaded.recipe, data_dir=data_dir, device=device)
        model, classes = loaded.model, loaded.classes
        folder = out or (path / "attention" if path.is_dir() else Path("attention"))
    else:
        if sample is None:
            raise UsageError("--test-image needs a run.", what_to_do="Name an image file, or leave --backbone out.")
        name = backbone or PLAIN
        if backbone is None:
            say(f"There is no run here: showing the plain backbone {name}.", err)
        model, recipe = plain_model(name, weights, device)
        classes, folder = None, out or Path("attention")
    if sample is None:
        assert test_image is not None
        sample = from_test_split(open_data(recipe), test_image)
    model = model.to(make_accelerator(recipe).device)
    stem = image.stem if image is not None else f"test-{test_image}"
    stem += "" if layer == -1 else f"-layer{layer}"
    return picture(model, recipe.images, classes, sample, folder / f"{stem}.png", layer)

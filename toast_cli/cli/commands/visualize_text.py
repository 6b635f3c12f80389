"""`toast visualize-attention --prompt`: color a text by attention, in the terminal and in an HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.text import Text

from toast_cli.cli.output.console import out, print_json, print_line
from toast_cli.model.generation import choose_template
from toast_cli.utils.files import write_json, write_tensors, write_text
from toast_cli.visualize.map_color_scales import ColorScale
from toast_cli.visualize.save_figures import (
    SOURCE_DIGEST_KEY,
    compute_source_digest,
    convert_prediction,
    describe_model,
    find_free_name,
    get_comparison_name,
    get_library_versions,
)
from toast_cli.visualize.styles.captions import describe_maps
from toast_cli.visualize.texts.text_figure import (
    TEXT_MAP_DESCRIPTIONS,
    TextView,
    build_text_scales,
    choose_text_color,
    compute_text_view,
    mark_line_breaks,
)
from toast_cli.visualize.texts.text_page import (
    LEGEND_STEPS,
    describe_text_map,
    format_next_token,
    get_value_formatter,
    render_text_page,
)
from toast_cli.visualize.view import AttentionViewer


def show_text(viewers: list[AttentionViewer], prompt: str, raw: bool, folder: Path, as_json: bool) -> None:
    """Print the attention of each viewer over a text, and write `prompt.html`, the maps and a record to a folder.

    The text is formatted as the prompts of each model are, unless `raw` is true.
    """
    templates = [None if raw else _choose_template(viewer) for viewer in viewers]
    views = [compute_text_view(viewer, prompt, template) for viewer, template in zip(viewers, templates, strict=True)]
    template = templates[0]
    meaning, single = build_text_scales(views), len(views) == 1
    digest = compute_source_digest(viewers, [prompt.encode(errors="surrogatepass"), str(template).encode()])
    name = find_free_name(
        folder, f"prompt{viewers[0].file_suffix}" if single else f"prompt-{get_comparison_name(viewers)}", digest
    )
    page = folder / f"{name}.html"
    write_text(page, render_text_page(views))
    write_tensors(
        folder / f"{name}.safetensors",
        {name if single else f"{view.viewer.name}/{name}": map for view in views for name, map in view.maps.items()},
    )
    record = {
        "prompt": prompt,
        SOURCE_DIGEST_KEY: digest,
        "template": template,
        "page": str(page),
        "versions": get_library_versions(),
        "views": list(map(_build_view_record, views)),
    }
    write_json(folder / f"{name}.json", record)
    if as_json:
        print_json(record)
        return
    for view in views:
        print_line(f"{view.viewer.name}: {describe_maps(view.viewer, 'attention')}. {format_next_token(view)}")
        for name in view.maps:
            print_line("")
            print_line(TEXT_MAP_DESCRIPTIONS[name])
            out.print(color_text(view, name, meaning[name]), soft_wrap=True)
            out.print(render_legend(meaning[name], name), soft_wrap=True)
            print_line(f"  {describe_text_map(view, name)}")
    print_line("")
    print_line(f"Page: {page}")


def _choose_template(viewer: AttentionViewer) -> str | None:
    assert viewer.recipe is not None
    return choose_template(viewer.recipe, viewer.model.backbone.tokenizer)


def color_text(view: TextView, name: str, scale: ColorScale) -> Text:
    """Return the text, with the colors of one of its maps as background."""
    text = Text()
    for token, colour in zip(view.tokens, scale.to_hex(view.maps[name].numpy()), strict=True):
        text.append(mark_line_breaks(token), style=f"{choose_text_color(colour)} on {colour}")
    return text


def render_legend(scale: ColorScale, name: str) -> Text:
    """Return a one-line legend of a color scale: low, middle and high values, with colors between them."""
    text = Text(f"  {scale.label}: ")
    (low, low_text), (middle, middle_text), (high, high_text) = scale.get_ticks(get_value_formatter(name))
    for first, word, last in ((low, low_text, middle), (middle, middle_text, high), (high, high_text, None)):
        shown = [(f" {word} ", first)]
        if last is not None:
            shown += [(" ", first + (last - first) * part / LEGEND_STEPS) for part in range(1, LEGEND_STEPS)]
        for (letters, _), colour in zip(shown, scale.to_hex([value for _, value in shown]), strict=True):
            text.append(letters, style=f"{choose_text_color(colour)} on {colour}")
    return text


def _build_view_record(view: TextView) -> dict[str, Any]:
    steering = view.viewer.model.adapted.steering
    return {
        **describe_model(view.viewer, view.viewer.name),
        "layer": view.viewer.recorder.level,
        "head": view.viewer.head,
        "alpha": None if steering is None else steering.strength,
        "tokens": view.tokens,
        "checks": None if view.checks is None else view.checks.to_dict(),
        "pass_one": convert_prediction(view.first),
        "pass_two": convert_prediction(view.last),
    }

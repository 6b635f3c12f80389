"""A scale gives the same numbers the same colours, hardly depends on a few outliers, and says where it ends."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from tests.scenes import demo_model, viewer_of
from toast_cli.cli.commands.visualize_text import color_text, render_legend
from toast_cli.visualize.map_color_scales import build_diverging_scale, build_sequential_scale
from toast_cli.visualize.texts.text_figure import TextView, build_text_scales, get_top_tokens, predict_next_token
from toast_cli.visualize.texts.text_page import render_text_page
from toast_cli.visualize.view import TopPrediction

GOLDEN = Path(__file__).parent / "golden"


class TestEnds:
    def test_a_few_tokens_that_draw_everything_do_not_make_the_rest_dark(self) -> None:
        map = np.linspace(0, 1, 196)
        map[:4] = 50.0
        scale = build_sequential_scale("attention", "inferno", [map])
        assert 0.9 < scale.high <= 1.0 and scale.low == 0
        assert scale.get_ticks()[-1][1].startswith("≥ ") and "beyond the 95th percentile" in scale.label
        assert scale.to_hex([50.0]) == scale.to_hex([scale.high]) != scale.to_hex([0.5])

    def test_small_numbers_have_the_whole_of_the_colours(self) -> None:
        small, large = np.linspace(0, 0.03, 64), np.linspace(0, 0.9, 64)
        assert build_sequential_scale("similarity", "viridis", [small]).to_hex([small.max()]) == build_sequential_scale(
            "", "viridis", [large]
        ).to_hex([0.9])

    def test_what_is_shared_is_shared_by_all_maps(self) -> None:
        one, other = np.linspace(0, 1, 50), np.linspace(0, 3, 50)
        assert (
            build_sequential_scale("", "inferno", [one, other]).high > build_sequential_scale("", "inferno", [one]).high
        )

    def test_numbers_without_outliers_and_zeros_are_not_cut(self) -> None:
        even = build_sequential_scale("attention", "inferno", [np.full(9, 0.25)])
        assert (even.high, even.clipped, even.label) == (0.25, False, "attention")
        sparse = np.zeros(64)
        sparse[3] = 0.5
        assert build_sequential_scale("", "viridis", [sparse]).high == 0.5
        nothing = build_sequential_scale("similarity", "viridis", [np.zeros(64)])
        assert "zero everywhere" in nothing.label and not nothing.clipped and nothing.high > nothing.low

    def test_differences_reach_as_far_to_either_side(self) -> None:
        scale = build_diverging_scale("difference", "RdBu_r", [np.concatenate([np.linspace(-0.1, 0.2, 60), [-9.0]])])
        assert scale.low == -scale.high and scale.high < 0.3
        assert [word for _, word in scale.get_ticks()] == [f"≤ {scale.low:.3g}", "0", f"≥ {scale.high:.3g}"]


def text_view(name: str, first: list[float], second: list[float]) -> TextView:
    one, two = torch.tensor(first), torch.tensor(second)
    maps = {"similarity": torch.tensor([0.1, 0.0, 0.4]), "pass_one": one, "pass_two": two, "difference": two - one}
    return TextView(
        viewer_of(demo_model("linear"), name),
        ["<s>", "Hi ", "you"],
        maps,
        TopPrediction("!", 0.5),
        TopPrediction("?", 0.25),
        None,
    )


VIEW = text_view("a run", [0.5, 0.25, 0.25], [0.25, 0.25, 0.5])


def backgrounds(view: TextView, name: str) -> list[str]:
    """The colour of each token in the terminal."""
    return [str(span.style).split()[-1] for span in color_text(view, name, build_text_scales([view])[name]).spans]


class TestTexts:
    def test_the_same_share_of_attention_has_the_same_colour_in_both_passes(self) -> None:
        strong = text_view("a run", [0.9, 0.05, 0.05], [0.3, 0.35, 0.35])
        even = build_text_scales([strong])
        assert even["pass_one"] == even["pass_two"]
        assert backgrounds(VIEW, "pass_one") == backgrounds(VIEW, "pass_two")[::-1]
        assert backgrounds(strong, "pass_one")[0] != backgrounds(strong, "pass_two")[1]
        assert build_text_scales([VIEW, strong])["pass_one"].high > build_text_scales([VIEW])["pass_one"].high, (
            "all views share it"
        )

    def test_a_legend_says_in_numbers_what_the_colours_mean(self) -> None:
        assert render_legend(build_text_scales([VIEW])["pass_two"], "pass_two").plain.split()[-4:] == [
            "token:",
            "0%",
            "25%",
            "50%",
        ]
        assert render_legend(build_text_scales([VIEW])["difference"], "difference").plain.split()[-4:] == [
            "points:",
            "-25",
            "0",
            "+25",
        ]

    def test_a_page_looks_as_it_did_when_somebody_looked_at_it(self) -> None:
        """What is in it, tag by tag; colours are held to the golden ones with a tolerance."""
        found, golden = render_text_page([VIEW]), (GOLDEN / "prompt.html").read_text(encoding="utf-8")
        assert without_colours(found) == without_colours(golden)
        for one, other in zip(colours(found), colours(golden), strict=True):
            assert max(abs(int(one[i : i + 2], 16) - int(other[i : i + 2], 16)) for i in (1, 3, 5)) <= 4

    def test_a_line_break_is_seen_in_its_colour_and_told_from_others(self) -> None:
        view = replace(VIEW, tokens=["Hi:", "\n", "\n"])
        text = color_text(view, "pass_two", build_text_scales([view])["pass_two"])
        assert text.plain == "Hi:↵\n↵\n" and [text.plain[s.start : s.end] for s in text.spans][1:] == ["↵\n"] * 2
        assert get_top_tokens(view, "pass_two") == [
            (r"'\n' after '\n'", 0.5),
            ("'Hi:'", 0.25),
            (r"'\n' after 'Hi:'", 0.25),
        ]
        assert render_text_page([view]).count("↵") == 2 * 4

    def test_lists_quote_tokens_and_give_differences_in_points(self) -> None:
        view = replace(VIEW, tokens=["?", ":", ", "])
        page = unescape(render_text_page([view]))
        assert "Most: '?' 50%, ':' 25%, ',' 25%" in page and "Most: ',' 50%, '?' 25%, ':' 25%" in page
        assert "Most: '?' -25 points, ',' +25 points, ':' 0 points" in page

    def test_a_next_token_that_reads_as_nothing_is_named(self) -> None:
        tokenizer = SimpleNamespace(decode=lambda ids: "", convert_ids_to_tokens={0: "_", 1: "▁", 2: "_"}.get)
        assert predict_next_token(torch.tensor([[[0.0, 9.0, 0.0]]]), tokenizer).label == "▁"

    def test_every_map_of_a_page_has_its_legend(self) -> None:
        page = render_text_page([VIEW])
        assert page.count('class="legend"') == page.count('class="text"') == 4
        assert re.findall(r'class="numbers">(.*?)</div>', page)[1] == "<span>0%</span><span>25%</span><span>50%</span>"


def colours(page: str) -> list[str]:
    return re.findall(r"#[0-9a-f]{6}\b", page)


def without_colours(page: str) -> str:
    return re.sub(r"#[0-9a-f]{6}\b", "#", re.sub(r"Made by toast [^;]*;", "Made by toast;", page))

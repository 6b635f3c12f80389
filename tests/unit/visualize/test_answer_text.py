"""What an answer attends to: the rows of its tokens, the words of its tokens, and emphasis."""

from __future__ import annotations

import re
from html import unescape

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.serving import make_served
from toast_cli.attention.answer_attention import compute_answer_attention
from toast_cli.attention.maps import AttentionRecorder
from toast_cli.data.text.turns import Turn
from toast_cli.model.generation import TextGenerator
from toast_cli.utils.errors import UsageError
from toast_cli.visualize.texts.answer_text import compute_answer_view, render_answer_maps

TURNS = [Turn("user", "A <b>red</b> hat."), Turn("assistant", "Zoë"), Turn("user", "Which?")]


@pytest.fixture(scope="module")
def generator() -> TextGenerator:
    return make_served().chat


def test_the_map_is_the_mean_row_of_the_tokens_that_predict_the_answer(generator: TextGenerator) -> None:
    model = generator._model
    ids, begin = [*range(10, 22)], 9
    maps, checks = compute_answer_attention(AttentionRecorder(model, 0, 1), ids, begin)
    stock = model.backbone.module
    eager = LlamaForCausalLM(stock.config).eval()
    eager.load_state_dict(stock.state_dict())
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        attention = eager(torch.tensor([ids]), output_attentions=True).attentions[0][0, 1]
    torch.testing.assert_close(maps["pass_one"], attention[[8, 9, 10]].mean(0), rtol=1e-5, atol=1e-6)
    for name in ("pass_one", "pass_two"):
        assert float(maps[name].sum()) == pytest.approx(1, abs=1e-5) and float(maps[name][-1]) == 0
    torch.testing.assert_close(maps["difference"], maps["pass_two"] - maps["pass_one"])
    assert checks is not None and maps["similarity"].shape == (12,)


@pytest.mark.parametrize("begin", [0, 3])
def test_a_text_without_an_answer_is_refused(generator: TextGenerator, begin: int) -> None:
    with pytest.raises(UsageError) as refused:
        compute_answer_attention(AttentionRecorder(generator._model), [7, 8, 9], begin)
    assert refused.value.code == "attention.no-answer"


@pytest.mark.parametrize("template", ["plain", None])
def test_tokens_are_those_of_the_conversation_and_the_answer(generator: TextGenerator, template: str | None) -> None:
    recorder = AttentionRecorder(generator._model)
    view = compute_answer_view(recorder, TURNS, " red\n", template)
    assert all(len(map) == len(view.tokens) for map in view.maps.values())
    assert "".join(view.tokens[view.begin :]) == " red"
    text = "".join(view.tokens)
    assert ("·ë" in text and "<b>red</b>" in text) is (template is not None) and "Which?" in text
    page = render_answer_maps(view)
    assert "<b>" not in page and page.count('role="img"') == 4
    shown = re.findall(r'title="([^"]*)">', page)
    assert len(shown) == 4 * len(view.tokens) and "'W': " in unescape(" ".join(shown))


def test_the_second_pass_is_the_one_that_was_emphasized(generator: TextGenerator) -> None:
    recorder = AttentionRecorder(generator._model)
    plain, marked = (compute_answer_view(recorder, TURNS, "red", "plain", texts) for texts in ([], ["red"]))
    torch.testing.assert_close(plain.maps["pass_one"], marked.maps["pass_one"])
    assert not torch.allclose(plain.maps["pass_two"], marked.maps["pass_two"], atol=1e-4)
    place = "".join(marked.tokens).index("red")
    ends = torch.tensor([len(token) for token in marked.tokens]).cumsum(0).tolist()
    chosen = [index for index, end in enumerate(ends) if place < end <= place + 3]
    assert float(marked.maps["similarity"][chosen].min()) > float(marked.maps["similarity"].mean())

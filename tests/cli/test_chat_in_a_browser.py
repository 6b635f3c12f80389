"""The chat of a page in a browser: an answer, its colours, emphasis and errors; skipped without Chromium or Gradio."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.test_pages_in_a_browser import SIZES, browser  # noqa: F401, a fixture
from toast_cli.evaluation.open_run import RunRequest, open_run

gradio = pytest.importorskip("gradio", reason="gradio is not installed")
pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def address(shared_runs: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from toast_cli.serve.page.chat import build_chat

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        patched.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        run = open_run(RunRequest(shared_runs.get("text"), device="cpu"))
        torch.manual_seed(0)
        for parameter in run.model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)  # an answer of other letters than line breaks
        with gradio.Blocks(analytics_enabled=False) as page:
            parts = build_chat()
            page.load(lambda: parts.fill({"text": run}), None, parts.outputs)
        _, local, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", ssr_mode=False)
        yield local
        page.close()


@pytest.mark.parametrize("size", SIZES)
def test_words_of_a_chat_are_coloured_and_emphasized(
    size: str,
    browser: Any,  # noqa: F811
    address: str,
    tmp_path: Path,
) -> None:
    width, height = SIZES[size]
    tab = browser.new_page(viewport={"width": width, "height": height})
    troubles: list[str] = []
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.set_default_timeout(60_000)
    tab.goto(address)
    tab.wait_for_selector("#chat-message textarea")
    tab.wait_for_function("document.querySelector('#chat-level input[type=range]').max === '1'")
    tab.fill("#chat-message textarea", "Say yes, <b>4</b>.")
    tab.evaluate("document.querySelector('#chat-message textarea').setSelectionRange(4, 7)")
    tab.click("#chat-mark")
    tab.wait_for_function("document.querySelector('#chat-marked textarea').value === 'yes'")
    tab.click("#chat-send")
    tab.wait_for_selector("#chat-colored .text span")
    words = tab.inner_text("#chat-colored .text >> nth=0")
    assert "Say yes, <b>4</b>." in words
    titles = tab.eval_on_selector_all("#chat-colored .text span", "spans => spans.map((each) => each.title)")
    assert all(re.search(r": [-+.\de]+(%| points)$|: 0 points$", title) for title in titles)
    assert "--emphasize yes" in tab.inner_text("#chat-note")
    assert "Say yes, <b>4</b>." in tab.inner_text("#chat-history")
    assert tab.input_value("#chat-message textarea") == ""
    if os.environ.get("TOAST_SHOTS"):
        tab.screenshot(path=Path(os.environ["TOAST_SHOTS"]) / f"chat-{size}.png", full_page=True)
    before = tab.inner_html("#chat-colored")
    tab.fill("#chat-marked textarea", "no such words")
    tab.fill("#chat-message textarea", "And now?")
    tab.click("#chat-send")
    tab.wait_for_selector("#chat-note [role=alert]")
    assert "no such words" in tab.inner_text("#chat-note")
    assert tab.input_value("#chat-message textarea") == "And now?", "a message that failed can be sent again"
    assert tab.inner_html("#chat-colored") == before
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert troubles == []
    tab.close()

"""A chat with language models on a page of Gradio, whose tokens are coloured by the attention of the answer."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape, unescape
from typing import TYPE_CHECKING, Any

import gradio

from toast_cli.serve.page.page_tab import PageTab, TabContent, show_errors
from toast_cli.serve.page.run_loader import takes_images
from toast_cli.utils.errors import UsageError
from toast_cli.utils.names import quote_argument

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from toast_cli.evaluation.open_run import OpenedRun
    from toast_cli.model.generation import TextGenerator

NEW_TOKENS, MOST_NEW_TOKENS = 64, 512
"""Largest number of new tokens of an answer: at first, and at most."""
EMPTY = '<p class="hint">Ask something: the words of the conversation are coloured by what the answer attends to.</p>'
ADD_SELECTION = """(marked) => {
  const box = document.querySelector('#chat-message textarea');
  const inBox = box ? box.value.slice(box.selectionStart, box.selectionEnd) : '';
  const text = (inBox || String(window.getSelection())).trim();
  return text ? [marked, text].filter(Boolean).join('\\n') : marked;
}"""
"""A script that adds the selected text to the texts to emphasize."""


@dataclass(frozen=True)
class ChatSettings:
    """The settings of an answer: texts to emphasize, strength of the feedback, level, and number of new tokens."""

    emphasize: tuple[str, ...] = ()
    strength: float = 1.0
    level: int = -1
    new_tokens: int = NEW_TOKENS


@dataclass(frozen=True)
class ExplainedAnswer:
    """An answer, the HTML of the coloured conversation, and the command that generates the answer again."""

    text: str
    page: str
    command: str


@dataclass
class ChatSpeaker:
    """A run that answers on the page. Answers of one model are generated one after another.

    Raises:
        UsageError: The run is not one of a language model.
        ToastError: It has no tokenizer.
    """

    run: OpenedRun
    generator: TextGenerator = field(init=False)
    notices: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        from toast_cli.evaluation.open_run import make_text_generator

        self.run.model.eval()
        self.generator = make_text_generator(self.run, self.notices.append)
        self._lock = threading.Lock()

    @property
    def is_steered(self) -> bool:
        """Return whether words can be emphasized."""
        return self.run.model.adapted.steering is not None

    def answer(self, messages: Sequence[Mapping[str, str]], settings: ChatSettings) -> ExplainedAnswer:
        """Answer a conversation and explain the answer.

        Args:
            messages: `role` and `content` of each message; the last one is the user's.
            settings: The settings of the answer.

        Raises:
            UsageError: The prompt is empty or too long, or a text to emphasize does not occur.
            ToastError: A map differs from the attention that the model uses.
        """
        from toast_cli.attention.maps import AttentionRecorder
        from toast_cli.data.text.turns import Turn
        from toast_cli.visualize.texts.answer_text import compute_answer_view, render_answer_maps

        turns = [Turn("user" if one["role"] == "user" else "assistant", one["content"]) for one in messages]
        with self._lock, self._use_strength(settings.strength):
            text = self.generator.answer(
                turns, emphasize=settings.emphasize, max_new_tokens=settings.new_tokens, do_sample=False
            )
            page = '<p class="hint">There is no attention map of this model.</p>'
            if not text.strip():
                page = '<p class="hint">The answer is empty, so there is nothing to colour.</p>'
            elif self.run.model.backbone.has_attention:
                recorder = AttentionRecorder(self.run.model, settings.level)
                template = self.generator.template
                page = render_answer_maps(compute_answer_view(recorder, turns, text, template, settings.emphasize))
        return ExplainedAnswer(text, page, self._format_command(messages, settings))

    @contextmanager
    def _use_strength(self, strength: float) -> Iterator[None]:
        steering = self.run.model.adapted.steering
        if steering is None:
            yield
            return
        before, steering.strength = steering.strength, strength
        try:
            yield
        finally:
            steering.strength = before

    def _format_command(self, messages: Sequence[Mapping[str, str]], settings: ChatSettings) -> str:
        """Return the command for the answer to a first message; empty for a later one, which needs the earlier ones."""
        if len(messages) > 1:
            return ""
        words = ["toast generate --run", quote_argument(self.run.request.path)]
        words += [f"--emphasize {quote_argument(text)}" for text in settings.emphasize]
        words += [f"--alpha {settings.strength:g}"] if self.is_steered and settings.strength != 1 else []
        return " ".join([*words, f"--max-new-tokens {settings.new_tokens}", quote_argument(messages[0]["content"])])


def build_chat() -> TabContent:
    """Build the chat within Gradio's blocks. The runs of language models are passed to `fill` when they are loaded."""
    speakers: dict[str, ChatSpeaker] = {}

    def fill(loaded: Mapping[str, OpenedRun]) -> list[Any]:
        for name, run in loaded.items():
            if name not in speakers:
                speakers[name] = ChatSpeaker(run)
        steered = any(speaker.is_steered for speaker in speakers.values())
        levels = max(len(speaker.run.model.backbone.levels) for speaker in speakers.values())
        first = next(iter(speakers))
        return [
            gradio.update(choices=list(speakers), value=first, visible=len(speakers) > 1),
            gradio.update(interactive=steered),
            gradio.update(interactive=steered),
            gradio.update(maximum=max(levels - 1, 0), value=max(levels - 1, 0), interactive=levels > 1),
        ]

    with gradio.Row(equal_height=False):
        with gradio.Column(scale=2, min_width=280):
            name = gradio.Dropdown([], label="Run", visible=False, elem_id="chat-run")
            history = gradio.Chatbot(
                label="Conversation",
                height=360,
                render_markdown=False,
                feedback_options=None,
                buttons=["copy"],
                elem_id="chat-history",
            )
            message = gradio.Textbox(label="Message", lines=3, elem_id="chat-message")
            with gradio.Row():
                mark = gradio.Button("Emphasize selected words", elem_id="chat-mark", min_width=140)
                clear = gradio.Button("New conversation", elem_id="chat-clear", min_width=140)
                send = gradio.Button("Send", variant="primary", elem_id="chat-send", min_width=100)
            marked = gradio.Textbox(
                label="Emphasize (experiment)",
                info="Words of the conversation, a line each: their tokens set ξ. Select words and press the button.",
                lines=2,
                elem_id="chat-marked",
            )
            strength = gradio.Slider(0, 2, 1, step=0.05, label="Steering strength", elem_id="chat-strength")
            level = gradio.Slider(0, 1, 1, step=1, label="Layer of the map", elem_id="chat-level")
            tokens = gradio.Slider(1, MOST_NEW_TOKENS, NEW_TOKENS, step=1, label="Longest answer in tokens")
        with gradio.Column(scale=3, min_width=280):
            note = gradio.HTML("", elem_id="chat-note")
            colored = gradio.HTML(EMPTY, elem_id="chat-colored")

    @show_errors(4)
    def reply(
        name: str | None, shown: Any, message: str, marked: str, strength: float, level: float, tokens: float
    ) -> Sequence[Any]:
        messages = [*_read_history(shown), {"role": "user", "content": message}]
        settings = ChatSettings(
            tuple(line for line in (marked or "").splitlines() if line.strip()), strength, int(level), int(tokens)
        )
        speaker = speakers.get(name or next(iter(speakers), ""))
        if speaker is None:
            raise UsageError(
                "The model is not loaded yet.", what_to_do="Wait a moment, and send the message again.",
                code="serve.still-loading",
            )  # fmt: skip
        if not message.strip():
            raise UsageError("The message is empty.", what_to_do="Write something to answer.", code="text.empty-prompt")
        speaker.notices.clear()
        answered = speaker.answer(messages, settings)
        messages.append({"role": "assistant", "content": answered.text})
        safe = [{**one, "content": escape(one["content"], quote=False)} for one in messages]
        lines = [escape(notice) for notice in speaker.notices]
        if answered.command:
            lines.append(f"To generate this answer again:<br><code>{escape(answered.command)}</code>")
        report = f'<div class="note fine" role="status">{"<br>".join(lines)}</div>' if lines else ""
        return safe, "", answered.page, report

    def restart() -> Sequence[Any]:
        return [], EMPTY, "", ""

    quiet: dict[str, Any] = {"api_visibility": "private"}
    inputs, answered = [name, history, message, marked, strength, level, tokens], [history, message, colored, note]
    send.click(reply, inputs, answered, **quiet)
    clear.click(restart, None, [history, colored, note, marked], **quiet)
    mark.click(None, [marked], [marked], js=ADD_SELECTION)
    outputs = [name, marked, strength, level]
    return TabContent(outputs, fill)


def _read_history(shown: Any) -> list[dict[str, str]]:
    """Return the messages of Gradio's conversation, whose contents are escaped texts or lists of parts with a text."""
    messages = []
    for one in shown or []:
        content = one["content"]
        if not isinstance(content, str):
            content = "".join(part if isinstance(part, str) else str(part.get("text", "")) for part in content)
        messages.append({"role": one["role"], "content": unescape(content)})
    return messages


TAB = PageTab("Chat", lambda run: not takes_images(run), lambda loader: build_chat())

"""Exact answers: a language model answers the prompts of conversations, and its answers are compared with theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toast_cli.data.base import DataSet, Split
from toast_cli.data.text.conversation_split import ConversationSplit
from toast_cli.data.text.turns import Turn, to_messages
from toast_cli.evaluation.llm_judge import REASONING_END
from toast_cli.evaluation.open_run import OpenedRun, make_text_generator
from toast_cli.training.reporter import Reporter
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.statistics import compute_proportion_interval

BATCH_SIZE = 8
"""Number of answers that are generated together."""


@dataclass(frozen=True)
class ReferenceAnswer:
    """An answer of a conversation: the name of the conversation, the turns before the answer, and its text."""

    name: str
    prompt: tuple[Turn, ...]
    text: str


@dataclass(frozen=True)
class ComparedAnswer:
    """An answer of a conversation beside that of a model to the same prompt."""

    reference: ReferenceAnswer
    text: str

    @property
    def is_exact(self) -> bool:
        """Return whether the answers are equal, without reasoning and without white space around them."""
        return normalize_answer(self.text) == normalize_answer(self.reference.text)

    def to_dict(self) -> dict[str, Any]:
        """Return the prompt as messages, both answers, and whether they are equal."""
        messages, tools = to_messages(self.reference.prompt)
        own = {"name": self.reference.name, "prompt": messages, **({"tools": tools} if tools else {})}
        return {**own, "reference": self.reference.text, "answer": self.text, "exact": self.is_exact}


@dataclass(frozen=True)
class ExactAnswers:
    """The compared answers of a split.

    Attributes:
        answers: the compared answers.
        left_out: the number of answers whose prompts the model cannot read.
        reason: why the first of them was left out.
        cut: the number of answers of the model that the limit of new tokens ended.
        data: the section of the data set in the recipe.
        split: the name of the split; `all` for every split together.
        samples: the split.
        classes: empty, as texts have no classes.
    """

    answers: tuple[ComparedAnswer, ...]
    left_out: int
    reason: str | None
    cut: int
    data: Mapping[str, Any]
    split: str
    samples: Split
    classes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the number of exact answers, of all, their share with its 95% interval (Wilson), and what was cut."""
        exact, count = sum(each.is_exact for each in self.answers), len(self.answers)
        interval = list(compute_proportion_interval(exact, count))
        own = {"exact": exact, "answers": count, "share": exact / count, "interval": interval}
        return {**own, "left_out": self.left_out, "cut": self.cut}

    def list_warnings(self, new_tokens: int) -> list[str]:
        """Return warnings of answers that were left out, and of those that were cut at `new_tokens`."""
        total, warnings = len(self.answers), []
        if self.left_out:
            count = f"{self.left_out:,} {'answer was' if self.left_out == 1 else 'answers were'}"
            warnings.append(f"{count} not compared, because their prompts cannot be used: {self.reason}")
        if self.cut:
            count = f"{self.cut:,} of {total:,} answers"
            warnings.append(f"{count} reached the limit of {new_tokens:,} new tokens (--max-new-tokens).")
        return warnings


@dataclass(frozen=True)
class AnswerRequest:
    """A request to compare answers: the largest number of new tokens of each, and what receives the answers."""

    new_tokens: int
    on_answers: Callable[[ExactAnswers], None]


def normalize_answer(text: str) -> str:
    """Return an answer without reasoning before it and without white space around it."""
    return text.rpartition(REASONING_END)[2].strip()


def iterate_reference_answers(split: ConversationSplit) -> Iterator[ReferenceAnswer]:
    """Yield the answers of a split that are learned in training, except calls of tools, which are not texts."""
    for talk in split.conversations:
        for place, turn in enumerate(talk.turns):
            if turn.role == "assistant" and turn.trained and place and "tool_calls" not in turn.extra:
                yield ReferenceAnswer(talk.name, talk.turns[:place], turn.text)


def require_conversations(run: OpenedRun, data: DataSet, parts: Sequence[str]) -> list[ConversationSplit]:
    """Return the splits of `parts`, which are of conversations.

    Raises:
        UsageError: one has no conversations, or there are several processes.
    """
    splits = [each for part in parts if isinstance(each := data.splits[part], ConversationSplit)]
    if len(splits) < len(parts):
        raise UsageError(
            f"--answers compares answers with those of conversations, and {run.recipe.dataset.name} has none.",
            what_to_do="Leave --answers out, or give conversations with --dataset messages:FILE.",
            code="data.not-texts",
        )
    if run.accelerator.num_processes > 1:
        raise UsageError(
            "Answers are compared in a single process.",
            what_to_do="Start it without a launcher.",
            code="attention.several-processes",
        )
    return splits


def compare_answers(
    run: OpenedRun, data: DataSet, split: str, parts: Sequence[str], samples: Split, new_tokens: int, reporter: Reporter
) -> ExactAnswers:
    """Return the answers of a run to the prompts of conversations, beside those of the conversations.

    Answers are generated greedily, in the format of the run. A later answer of a conversation follows the earlier ones
    of the conversation, not those of the model.

    Args:
        run: the run.
        data: its data set.
        split: the name of the split; `all` for every split together.
        parts: the splits that are measured.
        samples: the samples of all parts.
        new_tokens: the largest number of new tokens of an answer.
        reporter: shows progress.

    Raises:
        UsageError: see `require_conversations`.
        ToastError: there is no answer to compare, or the model has no tokenizer.
    """
    splits = require_conversations(run, data, parts)
    writer = make_text_generator(run, reporter.report_message)
    usable: list[tuple[int, ReferenceAnswer]] = []
    reasons = []
    for each in splits:
        for reference in iterate_reference_answers(each):
            try:
                usable.append((len(writer.encode_prompt(reference.prompt)), reference))
            except ToastError as error:
                reasons.append(f"{reference.name}: {error.what}")
    if not usable:
        raise ToastError(
            f"There is no answer to compare in {split}.",
            reasons[0] if reasons else "No conversation has an answer in words.",
            "Leave --answers out.",
            code="text.no-answers",
        )
    usable.sort(key=lambda pair: pair[0])  # prompts of a batch are padded to the longest
    ordered, compared, cut = [reference for _, reference in usable], [], 0
    batches = [ordered[start : start + BATCH_SIZE] for start in range(0, len(ordered), BATCH_SIZE)]
    for batch in reporter.track_progress(batches, len(batches), f"{split}: answering"):
        prompts = [reference.prompt for reference in batch]
        texts = writer.answer_all(prompts, BATCH_SIZE, max_new_tokens=new_tokens, do_sample=False, num_beams=1)
        cut += writer.cut_answers
        compared += [ComparedAnswer(*pair) for pair in zip(batch, texts, strict=True)]
    reason = reasons[0] if reasons else None
    section = run.recipe.dataset.model_dump(mode="json")
    return ExactAnswers(tuple(compared), len(reasons), reason, cut, section, split, samples)

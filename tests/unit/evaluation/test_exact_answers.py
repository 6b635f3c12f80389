"""Exact answers: which answers of a data set are compared, what counts as equal, and the interval of their share."""

from __future__ import annotations

import pytest

from toast_cli.data.text.conversation_split import ConversationOptions, ConversationSplit
from toast_cli.data.text.turns import Conversation, Turn
from toast_cli.evaluation.texts.exact_answers import (
    ComparedAnswer,
    ExactAnswers,
    ReferenceAnswer,
    iterate_reference_answers,
)


def make_split(*turns: Turn) -> ConversationSplit:
    return ConversationSplit((Conversation(turns, "x, entry 1"),), ConversationOptions(name="messages", path="x"))


def test_learned_answers_follow_the_true_turns_before_them() -> None:
    first, second = Turn("user", "2 + 2?"), Turn("user", "And 3 + 3?")
    call = Turn("assistant", "", fields='{"tool_calls": []}')
    split = make_split(first, Turn("assistant", "4"), call, Turn("tool", "7"), second, Turn("assistant", "6"))
    found = list(iterate_reference_answers(split))
    assert [each.text for each in found] == ["4", "6"], "a call of a tool is not an answer in words"
    assert found[0].prompt == (first,) and found[1].prompt == split.conversations[0].turns[:5]
    unlearned = make_split(first, Turn("assistant", "5", trained=False), second, Turn("assistant", "6"))
    assert [each.text for each in iterate_reference_answers(unlearned)] == ["6"]


@pytest.mark.parametrize(
    ("reference", "answer", "exact"),
    [
        ("four", " four\n", True),
        ("four", "Four", False),
        ("four", "four.", False),
        ("four", "<think>2 + 2 is 4</think>\n\nfour", True),
        ("<think>so</think>four", "four", True),
        ("four", "", False),
    ],
)
def test_answers_are_equal_up_to_white_space_and_reasoning(reference: str, answer: str, exact: bool) -> None:
    assert ComparedAnswer(ReferenceAnswer("x", (), reference), answer).is_exact == exact


def test_the_share_has_its_interval_and_what_is_missing_is_said() -> None:
    answers = [ComparedAnswer(ReferenceAnswer("x", (), "a"), text) for text in "aaabb"]
    found = ExactAnswers(tuple(answers), 2, "x, entry 9: The prompt is too long", 1, {}, "test", make_split())
    told = found.to_dict()
    assert (told["exact"], told["answers"], told["share"]) == (3, 5, 0.6)
    assert told["interval"] == pytest.approx([0.2307, 0.8824], abs=1e-4)  # Wilson's, worked out by hand
    left_out, cut = found.list_warnings(16)
    assert "2 answers were not compared" in left_out and "entry 9" in left_out and "1 of 5 answers" in cut

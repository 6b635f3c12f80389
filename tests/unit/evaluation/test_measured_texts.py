"""The number of texts that an evaluation reports: those that it measured."""

from __future__ import annotations

from tests.language import make_tokenizer
from toast_cli.data.base import BatchOptions, DataSet, LoaderOptions
from toast_cli.data.text.conversation_split import ConversationOptions, ConversationSplit
from toast_cli.data.text.loader import build_conversation_loader
from toast_cli.data.text.turns import Conversation, Turn
from toast_cli.evaluation.measured_texts import describe_measured_texts


def test_texts_that_are_left_out_are_not_measured() -> None:
    talks = [Turn("user", "Hi"), Turn("assistant", "Ho")], [Turn("user", "Hi" * 50), Turn("assistant", "Ho")]
    options = ConversationOptions(name="sharegpt", path="x", max_tokens=40)
    split = ConversationSplit(tuple(Conversation(tuple(talk), "x") for talk in (*talks, talks[0])), options)
    loader = build_conversation_loader(split, make_tokenizer(), BatchOptions(2), LoaderOptions())
    found = describe_measured_texts(DataSet((), {"all": split}), "all", ("all",), {"all": loader})["measured"]
    assert (found["texts"], found["of"]) == (2, 3)
    assert any("1 of 3 texts were left out" in note for note in found["notes"])

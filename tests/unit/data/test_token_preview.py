"""Texts shown as the tokens that a model is trained on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from tests.language import instructions, make_tokenizer, write_json
from toast_cli.backbones.base import TextLimits
from toast_cli.data.base import BatchOptions, LoaderOptions
from toast_cli.data.text.documents import TextDocumentOptions, open_documents
from toast_cli.data.text.formats.alpaca import AlpacaOptions, open_alpaca
from toast_cli.data.text.loader import build_conversation_loader
from toast_cli.data.text.token_preview import NOT_USED, preview_entries, preview_texts, split_token_texts
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import ToastError, UsageError


def make_sentencepiece_tokenizer() -> Any:
    """A tokenizer in the manner of LLaMA 2: words begin with `▁`, and unknown characters are bytes."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "b"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def make_backbone(tokenizer: Any, window: int | None = None) -> Any:
    return SimpleNamespace(require_tokenizer=lambda: tokenizer, text_limits=TextLimits(window, None))


@pytest.mark.parametrize("make", [make_tokenizer, make_sentencepiece_tokenizer])
@pytest.mark.parametrize("text", ["a b", "b\n\né 😀 b", "ab</s>", "😀"])
def test_the_parts_of_all_tokens_are_the_text(make: Any, text: str) -> None:
    tokenizer = make()
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]
    parts = split_token_texts(ids, tokenizer)
    assert len(parts) == len(ids) and "".join(parts) == tokenizer.decode(ids)
    assert "\ufffd" not in "".join(parts) and parts[0].startswith("<s>")


@pytest.mark.parametrize("limit", [512, 47])
def test_what_is_shown_is_what_is_trained(tmp_path: Path, limit: int) -> None:
    path = write_json(tmp_path / "d.json", instructions(30))
    split: Any = open_alpaca(AlpacaOptions(path=str(path), max_tokens=limit), None).splits["train"]
    tokenizer = make_tokenizer()
    shown = preview_texts(split, make_backbone(tokenizer), 100, 0)
    loader = build_conversation_loader(split, tokenizer, BatchOptions(1), LoaderOptions())
    assert [[token.id for token in text.tokens] for text in shown] == [text.ids for text in loader.texts]
    assert [[token.trained for token in text.tokens] for text in shown] == [
        [label != IGNORE_INDEX for label in text.labels] for text in loader.texts
    ]
    assert [text.name for text in shown] == split.names
    whole = "".join(token.text for token in shown[0].tokens if token.trained)
    assert whole == ("yes</s>" if limit == 512 else "yes</s>"[: len(whole)])
    assert {token.text for text in shown for token in text.tokens if token.special} <= {"<s>", "</s>"}
    some = preview_texts(split, make_backbone(tokenizer), 3, 0)
    assert len(some) == 3 and some != preview_texts(split, make_backbone(tokenizer), 3, 1)


def test_texts_that_give_no_sample_are_shown_with_the_reason(tmp_path: Path) -> None:
    path = write_json(tmp_path / "d.json", [{"instruction": "a" * 100, "output": "b"}, *instructions(1)])
    options = AlpacaOptions(path=str(path), val_fraction=0, test_fraction=0, max_tokens=90)
    split: Any = open_alpaca(options, None).splits["train"]
    first, second = preview_texts(split, make_backbone(make_tokenizer()), 2, 0)
    assert first.error is not None and "90 tokens" in first.error and not first.tokens
    assert second.error is None and second.tokens and second.whole == len(second.tokens)
    tokenizer = make_tokenizer(chat=True)
    tokenizer.chat_template = "{% for %}"
    with pytest.raises(ToastError) as refused:
        preview_texts(split, make_backbone(tokenizer), 2, 0)
    assert refused.value.code == "text.damaged-chat-template"


def test_documents_are_shown_to_the_end_of_a_block(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("short\n" + "a" * 100)
    options = TextDocumentOptions(path=str(tmp_path / "d.txt"), val_fraction=0, block_tokens=16)
    split: Any = open_documents(options, None).splits["train"]
    short, long = preview_texts(split, make_backbone(make_tokenizer()), 2, 0)
    assert "".join(token.text for token in short.tokens) == "<s>short</s>" and short.name == "document 1"
    assert len(long.tokens) == 16 and long.whole == 102 and all(token.trained for token in long.tokens)


def test_a_chosen_entry_is_shown_whatever_its_split_is(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", [*instructions(30), {"instruction": "Hi", "output": ""}])
    backbone = make_backbone(make_tokenizer())
    alone = open_alpaca(AlpacaOptions(path=str(tmp_path / "a.json"), val_fraction=0.5), None)
    for number in range(1, 31):
        [(part, text)] = preview_entries(alone, backbone, [str(number)])
        assert text.name == f"a.json, entry {number}" in alone.splits[part].names  # type: ignore[union-attr]
        assert f"Say yes, {number - 1}." in "".join(token.text for token in text.tokens)
    twice = preview_entries(alone, backbone, ["a.json, entry 2", "a.json:2"])
    assert twice[0] == twice[1]
    [(part, text)] = preview_entries(alone, backbone, ["31"])
    assert part == NOT_USED and text.error is not None and "'output' is empty" in text.error
    write_json(tmp_path / "b.json", instructions(5))
    both = open_alpaca(AlpacaOptions(path=str(tmp_path / "*.json")), None)
    assert preview_entries(both, backbone, ["b.json:2"])[0][1].name == "b.json, entry 2"
    for wrong, words in (("2", "Several files"), ("99", "no entry"), ("c.json:1", "no entry"), ("x", "no entry")):
        with pytest.raises(UsageError, match=words) as refused:
            preview_entries(both, backbone, [wrong])
        assert refused.value.code == "text.no-such-entry"

"""Shares of attention on the parts of a text, against sums computed by hand."""

from __future__ import annotations

import pytest
import torch

from toast_cli.attention.text_shares import TextAttentionTable, compute_part_shares, make_uniform_weights

PARTS = ["special tokens", "system", "user 1", "answer 1", "answer 1", "user 2", "answer 2", "answer 2"]
LABELS = [-100, -100, -100, 13, 14, -100, 16, 17]


def test_shares_are_means_over_the_tokens_that_predict_an_answer() -> None:
    weights = torch.zeros(8, 8)
    weights[2, :3] = torch.tensor([0.5, 0.2, 0.3])  # predicts the first token of the first answer
    weights[3, :4] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    weights[5, :6] = torch.tensor([0.0, 0.0, 0.0, 0.5, 0.2, 0.3])  # predicts the first token of the second answer
    weights[6, :7] = torch.tensor([0.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.5])
    weights[0] = weights[1] = weights[4] = weights[7] = 99.0  # these predict nothing that is learned
    shares = compute_part_shares(weights, PARTS, LABELS)
    assert shares == pytest.approx(
        {"special tokens": 0.15, "system": 0.125, "user 1": 0.175, "answer 1": 0.225, "user 2": 0.1,
         "answer so far": 0.225},
        abs=1e-6,
    )  # fmt: skip
    assert sum(shares.values()) == pytest.approx(1)


def test_an_even_map_is_the_share_of_the_tokens() -> None:
    shares = compute_part_shares(make_uniform_weights(3), ["special tokens", "user 1", "answer 1"], [-100, -100, 5])
    assert shares == {"special tokens": 0.5, "user 1": 0.5, "answer so far": 0.0}


def test_means_count_the_texts_that_have_a_part() -> None:
    table = TextAttentionTable()
    even = make_uniform_weights(3)
    first = torch.tensor([[1.0, 0, 0], [0.2, 0.8, 0], [0, 0, 1.0]])
    table.add("a", even, first, ["system", "user 1", "answer 1"], [-100, -100, 5])
    table.add("b", even, even, ["special tokens", "user 1", "answer 1"], [-100, -100, 5])
    assert table.list_parts() == ["system", "user 1", "answer so far", "special tokens"]
    means = table.result()
    assert (means["pass_one"]["system"].mean, means["pass_one"]["system"].images) == (0.5, 1)
    assert means["pass_two"]["user 1"].mean == pytest.approx(0.65)
    assert means["gained"]["user 1"].mean == pytest.approx(0.15)
    shift = table.estimate_shift()
    assert shift is not None and shift.mean == pytest.approx(0.15)
    header, one, two = table.format_per_text().splitlines()
    assert (
        header.startswith("text,even/system,even/user 1") and one.startswith("a,0.5,0.5") and two.startswith("b,,0.5")
    )

from __future__ import annotations

from toast_cli.utils.errors import ToastError, UsageError, did_you_mean


def test_an_error_reads_as_what_why_and_what_to_do() -> None:
    assert str(ToastError("It broke.", "It was old.", "Buy another.")) == "It broke.\nIt was old.\nBuy another."
    assert str(ToastError("It broke.")) == "It broke."


def test_exit_codes_tell_failures_from_wrong_usage() -> None:
    assert ToastError("x").exit_code == 1
    assert UsageError("x").exit_code == 2


def test_the_nearest_name_is_offered_and_a_short_list_shown() -> None:
    assert did_you_mean("tost", ["toast", "linear"]) == "Did you mean 'toast'? Known: linear, toast."
    assert did_you_mean("zzz", ["toast", "linear"]) == "Known: linear, toast."
    assert did_you_mean("x", []) == "None are registered."


def test_a_long_list_is_not_shown() -> None:
    known = [f"name{number}" for number in range(50)]
    assert did_you_mean("name3", known) == "Did you mean 'name3'?"
    assert did_you_mean("zzz", known) == ""


def test_a_list_that_can_be_read_is_shown_where_no_name_is_near() -> None:
    assert did_you_mean("zzz", [f"name{number}" for number in range(20)]).startswith("Known: name0, name1, ")


def test_a_name_in_words_of_a_description_is_found_misspelt_or_not() -> None:
    described = {"lr": "learning rate at its peak", "ema": "decay of a moving average", "seed": ""}
    described |= {f"field{number}": "another thing" for number in range(50)}
    for name in ("learning_rate", "leraning_rate"):
        assert did_you_mean(name, described, described) == "Did you mean 'lr'?"
    assert did_you_mean("zzz", described, described) == ""

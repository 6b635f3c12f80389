"""Notes and warnings of runs on texts."""

from __future__ import annotations

from toast_cli.training.closing_warnings.texts import describe_endless_answers, describe_few_validation_texts


def test_few_validation_texts_are_reported_if_they_select_an_epoch() -> None:
    (said,) = describe_few_validation_texts(3, 2)
    assert "3 validation texts select which of 2 epochs" in said and "dataset.val_fraction" in said
    assert describe_few_validation_texts(30, 2) == [] == describe_few_validation_texts(3, 1)


def test_answers_that_run_on_are_warned_of() -> None:
    (said,) = describe_endless_answers("val", {"end_accuracy": 0.25, "answers": 40})
    assert "only 25% of 40 answers" in said and "task.end_tokens=trained" in said
    assert describe_endless_answers("val", {"end_accuracy": 0.5, "answers": 40}) == []
    assert describe_endless_answers("val", {"loss": 1.0}) == [] == describe_endless_answers("val", None)

"""The training loop: every epoch trains, validates, and keeps the last and the best checkpoint."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

from accelerate.utils import send_to_device

from toast_cli.data.base import BatchLoader
from toast_cli.storage.checkpoint import load_checkpoint, load_extra_tensors
from toast_cli.training.distributed.collectives import sum_across_processes
from toast_cli.training.ema import ExponentialMovingAverage
from toast_cli.training.epoch_metrics import EpochMetrics
from toast_cli.training.evaluate import evaluate_model
from toast_cli.training.optimization import count_total_steps, make_optimizer, make_scheduler
from toast_cli.training.run import Run
from toast_cli.training.state import (
    BestEpoch,
    TrainingProgress,
    pack_training_state,
    unpack_training_state,
    wrap_state_errors,
)
from toast_cli.training.step import TrainingStep
from toast_cli.utils.errors import ToastError
from toast_cli.utils.tensors import gather_full_tensors

EMA_PREFIX = "ema."
"""What the names of averaged weights begin with in a checkpoint."""


class TrainingLoop:
    """The training of one run: what it works with, and how far it has come."""

    def __init__(
        self,
        run: Run,
        step: TrainingStep,
        train: BatchLoader,
        validation: BatchLoader | None,
        validate_attention: bool = False,
    ) -> None:
        self.step, self.model, self.objective = step, step.model, step.model.objective
        self.train, self.validation, self.validate_attention = train, validation, validate_attention
        self.folder, self.reporter, self.log, self.resumed = run.folder, run.reporter, run.log, run.resumed
        self.accelerator, training = run.session.accelerator, run.session.recipe.training
        self.training = training
        self.steps_per_epoch = -(-len(train) // training.accumulate)
        optimizer = make_optimizer(self.model, training)
        self.schedule = make_scheduler(optimizer, training, self.steps_per_epoch)
        self.optimizer = self.accelerator.prepare(optimizer)
        # A divided model gathers gradients by itself.
        self.forward = step if training.shard else self.accelerator.prepare(step)
        self.average = None if training.ema is None else ExponentialMovingAverage(self.model, training.ema)
        self.at, self.best, self.stop = TrainingProgress(), BestEpoch(), InterruptHandler()
        self.tally = EpochMetrics(step)
        self.kept: TrainingProgress | None = None

    def fit(self) -> BestEpoch:
        """Train the model in place; `checkpoints/best` is the epoch that validation chose (without one: the last).

        A run that is `resumed` goes on after `checkpoints/last` as if it had never stopped.

        Raises:
            ToastError: the loss is not finite any more. The last good checkpoint stays where it is.
            KeyboardInterrupt: asked to stop, after the step that was being done; `checkpoints/last` is of that step.
        """
        if self.resumed:
            self.resume()
        with self.stop.heard():
            self.run()
        return self.best

    def resume(self) -> None:
        """Go back to where `checkpoints/last` stands."""
        state = load_checkpoint(self.folder.checkpoints, "last", self.model)
        besides = load_extra_tensors(self.folder.checkpoints, "last")
        with wrap_state_errors(self.folder.checkpoints):
            unpack_training_state(besides, state["training"], self.optimizer, self.accelerator)
            if self.average is not None:
                self.average.load(
                    {name.removeprefix(EMA_PREFIX): besides[name] for name in besides if name.startswith(EMA_PREFIX)}
                )
            self.at, self.kept = TrainingProgress(**state["at"]), TrainingProgress(**state["at"])
            self.best = BestEpoch(**state["best"])
            self.tally.restore(state["tally"], first=self.accelerator.is_main_process)

    def run(self) -> None:
        """Train until the last epoch or step is done, or validation has not got better for too long."""
        while self.at.epochs < self.training.epochs and not self._has_exhausted_patience():
            if self._has_reached_max_steps() and not self.at.batches:
                break  # an epoch that was begun is still validated and kept
            self.train_epoch()
            self.end_epoch(self.validate() if self._is_validation_due() else None)
        if self.at.epochs < self.training.epochs and not self._has_reached_max_steps():
            self.reporter.message(f"Stopped early: no better validation since epoch {self.best.epoch}.")
        self.accelerator.wait_for_everyone()  # until the checkpoints that all will read are written

    def train_epoch(self) -> None:
        """Train from where this epoch stands to its end."""
        training, at, tally = self.training, self.at, self.tally
        self.model.train()
        self.train.set_epoch(at.epochs + 1, at.batches)
        started = time.perf_counter() - tally.seconds
        for group in _group_batches(self.train, training.accumulate):
            if self._has_reached_max_steps():
                break
            stops = self.train_step(group)
            tally.seconds = time.perf_counter() - started
            at.batches += len(group)
            self.reporter.step(at.steps, count_total_steps(training, self.steps_per_epoch), tally.result())
            if stops or (training.save_every is not None and at.steps % training.save_every == 0):
                self.save()
            if stops:
                raise KeyboardInterrupt

    def train_step(self, group: list[Any]) -> bool:
        """One optimizer step over a group of batches; whether this or another process was asked to stop."""
        at, accelerator, processes = self.at, self.accelerator, self.accelerator.num_processes
        batches = [send_to_device(batch, accelerator.device, non_blocking=True) for batch in group]
        # One mean over the whole step, however its parts differ in size: images, or tokens to be learned.
        count = sum(self.objective.count(batch) for batch in batches)
        whole, stops = sum_across_processes([count, float(self.stop.asked)], accelerator)
        self.schedule.step_update(at.steps)
        at.steps += 1
        self.optimizer.zero_grad(set_to_none=True)
        value = 0.0
        for number, batch in enumerate(batches, 1):
            waits: AbstractContextManager[Any] = nullcontext()
            if number < len(batches):
                waits = accelerator.no_sync(self.forward)
            with waits:
                with accelerator.autocast():
                    stepped = self.forward(batch)
                    loss = stepped.loss / max(whole, 1)
                value += sum_across_processes([loss.item()], accelerator)[0]
                if not math.isfinite(value):
                    raise self._make_non_finite_error("training loss", value)
                # Gradients are averaged over processes; each process's loss is its part of the sum.
                accelerator.backward(loss * processes)
            self.tally.add(stepped, batch)
        if self.training.clip_grad is not None:
            accelerator.clip_grad_norm_(self.model.parameters(), self.training.clip_grad)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        self.tally.add_loss(value, whole)
        if at.steps % self.training.log_every == 0:
            lr = self.optimizer.param_groups[0]["lr"]
            self.log({"kind": "step", "step": at.steps, "epoch": at.epochs + 1, "loss": value, "lr": lr})
        return bool(stops)

    def validate(self) -> dict[str, Any] | None:
        """The validation metrics of what this epoch came to, if there is a validation split."""
        if self.validation is None:
            return None
        # Nothing changes here, so one process stops at once; several must first have met at the end.
        alone = self.accelerator.num_processes == 1
        try:
            with self.shown(), self.stop.at_once() if alone else nullcontext():
                step, looks = (None, True) if self.validate_attention else (self.step, False)
                metrics = evaluate_model(self.model, self.validation, self.accelerator, step=step, with_attention=looks)
        except KeyboardInterrupt:
            self.save()
            raise
        if not math.isfinite(metrics["loss"]):
            raise self._make_non_finite_error("validation loss", metrics["loss"])
        return metrics

    def end_epoch(self, metrics: dict[str, Any] | None) -> None:
        """Judge the epoch, log it and keep its checkpoints."""
        at, epoch = self.at, self.at.epochs + 1
        line = {"kind": "epoch", "step": at.steps, "epoch": epoch, "train": self.tally.closing()}
        is_best = self.validation is None
        if metrics is not None:
            line["validation"] = metrics
            is_best = self.best.offer(epoch, metrics, self.step.score(metrics))
        elif is_best:
            self.best.epoch = epoch
        self._check_weights()
        # The last checkpoint comes last: whatever is cut off before it is done again, from the one before.
        if is_best:
            with self.shown():
                self.folder.save_checkpoint("best", self.model, {"epoch": epoch, "step": at.steps})
        self.log({**line, "best": is_best})
        at.epochs, at.batches, self.tally = epoch, 0, EpochMetrics(self.step)
        self.save()
        self.reporter.epoch(epoch, self.training.epochs, line, is_best)

    def save(self) -> None:
        """Keep where training stands as `checkpoints/last`.

        Raises:
            ToastError: a trained weight is not finite; the checkpoint before stays.
        """
        self._check_weights()
        tensors, plain = pack_training_state(self.optimizer, self.accelerator)
        if self.average is not None:
            tensors |= {EMA_PREFIX + name: tensor for name, tensor in self.average.tensors().items()}
        state = {
            "at": asdict(self.at),
            "best": asdict(self.best),
            "tally": self.tally.state(),
            "training": plain,
            "processes": self.accelerator.num_processes,
        }
        self.folder.save_checkpoint("last", self.model, state, tensors)
        self.kept = replace(self.at)

    def shown(self) -> AbstractContextManager[None]:
        """Within, the model has the weights that are judged and kept: the trained ones, or their average."""
        return nullcontext() if self.average is None else self.average.shown()

    def _is_validation_due(self) -> bool:
        """Whether the epoch that was just trained is validated."""
        epoch = self.at.epochs + 1
        is_last = epoch == self.training.epochs or self._has_reached_max_steps()
        return is_last or epoch % self.training.validate_every == 0

    def _has_reached_max_steps(self) -> bool:
        return self.training.max_steps is not None and self.at.steps >= self.training.max_steps

    def _has_exhausted_patience(self) -> bool:
        """Whether the epoch that was just validated, and so many before it, were no better than the best one."""
        patience, validated = self.training.patience, self.at.epochs % self.training.validate_every == 0
        if patience is None or self.best.metrics is None or not validated:
            return False
        return self.at.epochs - self.best.epoch >= patience

    def _check_weights(self) -> None:
        """Refuse to keep weights that a step with a finite loss, but without a finite gradient, has ruined."""
        for name, weight in self.model.trained().items():
            if not gather_full_tensors({name: weight.isfinite().all()})[name]:
                raise self._make_non_finite_error(f"weight {name}", float("nan"))

    def _make_non_finite_error(self, what: str, value: float) -> ToastError:
        at, kept, last = self.at, self.kept, self.folder.checkpoints / "last"
        return ToastError(
            f"The {what} became {value} at step {at.steps} (epoch {at.epochs + 1}).",
            f"The last good checkpoint is kept: {last} (epoch {kept.epochs}, step {kept.steps})."
            if kept is not None
            else "Nothing had been finished, so there is no checkpoint yet.",
            "A smaller training.lr, a longer warm-up, training.clip_grad=1 or fp32 usually helps.",
            code="training.non-finite",
        )


def _group_batches(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Consecutive batches in groups of `size`, the last one perhaps smaller."""
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group


class InterruptHandler:
    """Whether SIGINT or SIGTERM has `asked` to stop. A second signal does not wait: it raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.asked = False
        self._defers_interrupt = True

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Within, the first signal only sets `asked`. In any thread but the main one nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = {number: signal.signal(number, self._handle_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within, the first signal raises KeyboardInterrupt too: for work that changes nothing and can be redone."""
        self._defers_interrupt = False
        try:
            yield
        finally:
            self._defers_interrupt = True

    def _handle_signal(self, number: int, frame: Any) -> None:
        if self.asked or not self._defers_interrupt:
            raise KeyboardInterrupt
        self.asked = True

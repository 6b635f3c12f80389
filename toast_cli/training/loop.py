"""The training loop: each epoch trains, validates, and saves the last and the best checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

from accelerate.utils import send_to_device
from torch.nn.utils import get_total_norm

from toast_cli.data.base import BatchLoader
from toast_cli.storage.checkpoint import load_checkpoint, load_extra_tensors
from toast_cli.training.callbacks import Callbacks, EpochInfo, StepInfo
from toast_cli.training.distributed.collectives import merge_dicts_across_processes, sum_across_processes
from toast_cli.training.distributed.devices import measure_device_memory
from toast_cli.training.ema import EMA_PREFIX, ExponentialMovingAverage
from toast_cli.training.epoch_metrics import EpochMetrics, Throughput
from toast_cli.training.evaluate import evaluate_model, report_unreadable_classes
from toast_cli.training.interrupts import InterruptHandler
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
from toast_cli.utils.constants import NOTHING_TO_MEASURE
from toast_cli.utils.errors import ToastError
from toast_cli.utils.tensor_fingerprints import gather_full_tensors


class TrainingLoop:
    """The training of one run, with its progress."""

    def __init__(
        self,
        run: Run,
        step: TrainingStep,
        train: BatchLoader,
        validation: BatchLoader | None,
        validate_attention: bool = False,
        callbacks: Callbacks | None = None,
    ) -> None:
        self.callbacks, self.stopped, self.loss = callbacks or Callbacks(), False, math.nan
        self.step, self.model, self.objective = step, step.model, step.model.objective
        self.train, self.validation, self.validate_attention = train, validation, validate_attention
        self.folder, self.reporter, self.log, self.resumed = run.folder, run.reporter, run.log_metrics, run.resumed
        self.data, self.record_extension = run.session.data, run.record_extension
        self.show_first_batch, self.mark_begun, self.throughput = run.show_first_batch, run.mark_begun, Throughput()
        self.accelerator, training = run.session.accelerator, run.session.recipe.training
        self.training = training
        self.steps_per_epoch = -(-len(train) // training.accumulate)
        optimizer = make_optimizer(self.model, training)
        self.schedule = make_scheduler(optimizer, training, self.steps_per_epoch)
        self.optimizer = self.accelerator.prepare(optimizer)
        # A sharded model reduces gradients by itself.
        self.forward = step if training.shard else self.accelerator.prepare(step)
        self.average = None if training.ema is None else ExponentialMovingAverage(self.model, training.ema)
        self.at, self.best, self.stop = TrainingProgress(), BestEpoch(), InterruptHandler()
        self.tally = EpochMetrics(step)
        self.meter = step.evaluation_meter()
        self.throughput_name = f"{'texts' if self.objective.target == 'text' else 'images'}_per_second"
        self.kept: TrainingProgress | None = None
        self.losses: list[float] = []
        """Training loss of each epoch of this process."""

    def fit(self) -> BestEpoch:
        """Train the model in place and return the best epoch.

        `checkpoints/best` holds the epoch that validation selects, or the last epoch if there is no validation split.
        A `resumed` run continues from `checkpoints/last` exactly as if it had not been interrupted.

        Raises:
            ToastError: the loss or a weight is not finite. The last good checkpoint is kept.
            KeyboardInterrupt: a signal asked to stop. The current step is finished and saved as `checkpoints/last`.
        """
        if self.resumed:
            self.resume()
        self.record_extension()
        with self.stop.defer_signal():
            self.run()
        return self.best

    def resume(self) -> None:
        """Restore the model, the optimizer and the progress from `checkpoints/last`."""
        state = load_checkpoint(self.folder.checkpoints, "last", self.model)
        extra = load_extra_tensors(self.folder.checkpoints, "last")
        with wrap_state_errors(self.folder.checkpoints):
            unpack_training_state(extra, state["training"], self.optimizer, self.accelerator)
            if self.average is not None:
                self.average.load_tensors(
                    {name.removeprefix(EMA_PREFIX): extra[name] for name in extra if name.startswith(EMA_PREFIX)}
                )
            self.at, self.kept = TrainingProgress(**state["at"]), TrainingProgress(**state["at"])
            self.best = BestEpoch(**state["best"])
            self.tally.restore(state["tally"], first=self.accelerator.is_main_process)

    def run(self) -> None:
        """Train until the last epoch or step, or until validation has not improved for `training.patience` epochs.

        A callback can stop it earlier.
        """
        if self.at.steps == 0 and self.objective.target == "text":
            self.log_start()
        while self.at.epochs < self.training.epochs and not (self.stopped or self._has_exhausted_patience()):
            if self._has_reached_max_steps() and not self.at.batches:
                break  # an epoch that has started is still validated and saved
            self.train_epoch()
            self.end_epoch(self.validate() if self._is_validation_due() else None)
        if self.stopped:
            self.reporter.report_message(f"Stopped by a callback after epoch {self.at.epochs}, step {self.at.steps}.")
        elif self.at.epochs < self.training.epochs and not self._has_reached_max_steps():
            self.reporter.report_message(f"Stopped early: validation has not improved since epoch {self.best.epoch}.")
        self.accelerator.wait_for_everyone()  # all of them read the checkpoints that the first one writes

    def log_start(self) -> None:
        """Log the validation metrics before the first step, which tell how far the loss has fallen at the end."""
        metrics = self.validate()
        if metrics is not None:
            self.log({"kind": "start", "step": 0, "epoch": 0, "validation": metrics})

    def train_epoch(self) -> None:
        """Train the rest of the current epoch."""
        training, at, tally = self.training, self.at, self.tally
        self.model.train()
        self.train.set_epoch(at.epochs + 1, at.batches)
        started = time.perf_counter() - tally.seconds
        self.throughput.restart()
        for group in _group_batches(self.train, training.accumulate):
            if self._has_reached_max_steps():
                break
            should_stop = self.train_step(group)
            tally.seconds = time.perf_counter() - started
            at.batches += len(group)
            total, metrics = count_total_steps(training, self.steps_per_epoch), tally.result()
            self.reporter.report_step(at.steps, total, metrics)
            if should_stop or (training.save_every is not None and at.steps % training.save_every == 0):
                self.save()
            if should_stop:
                raise KeyboardInterrupt
            lr = self.optimizer.param_groups[0]["lr"]
            progress = (at.steps, total, at.epochs + 1, training.epochs)
            step = StepInfo(self.folder.path, self.model, *progress, self.loss, lr, metrics)
            if self._call_back(self.callbacks.after_step, step):
                break

    def train_step(self, group: list[Any]) -> bool:
        """Run one optimizer step over a group of batches; return whether any process was asked to stop."""
        at, accelerator, processes = self.at, self.accelerator, self.accelerator.num_processes
        batches = [send_to_device(batch, accelerator.device, non_blocking=True) for batch in group]
        # The loss is the weighted mean over all samples (or tokens) of the step, whatever the sizes of its batches.
        weight = sum(self.objective.sum_weights(batch) for batch in batches)
        sums = [weight, sum(map(count_samples, batches)), float(self.stop.asked)]
        total, samples, stop_requests = sum_across_processes(sums, accelerator)
        self.throughput.add(samples)
        if at.steps == 0:
            self.show_first_batch(batches[0])
        self.schedule.step_update(at.steps)
        at.steps += 1
        self.optimizer.zero_grad(set_to_none=True)
        value = 0.0
        for number, batch in enumerate(batches, 1):
            sync: AbstractContextManager[Any] = nullcontext()
            if number < len(batches):
                sync = accelerator.no_sync(self.forward)
            with sync:
                with accelerator.autocast():
                    stepped = self.forward(batch)
                    loss = stepped.loss / (total or 1)
                value += sum_across_processes([loss.item()], accelerator)[0]
                if not math.isfinite(value):
                    raise self._make_non_finite_error("training loss", value)
                # Gradients are averaged over processes, and each process's loss is its share of the sum.
                accelerator.backward(loss * processes)
            self.tally.add(stepped, batch)
        is_logged = at.steps % self.training.log_every == 0
        norm = self._clip_gradients(measure=is_logged)
        self.optimizer.step()
        self.mark_begun()
        if self.average is not None:
            self.average.update()
        self.tally.add_loss(value, total)
        self.loss = value
        if is_logged:
            self.log(
                {
                    **{"kind": "step", "step": at.steps, "epoch": at.epochs + 1, "loss": value, "lr": self._get_lr()},
                    **{"grad_norm": norm, self.throughput_name: self.throughput.measure()},
                    **measure_device_memory(accelerator.device),
                }
            )
        return bool(stop_requests)

    def _clip_gradients(self, measure: bool) -> float | None:
        """Clip the gradients if the recipe says so; return their norm before that, or None if it is not to `measure`.

        This is a collective call: all processes must make it.
        """
        accelerator, limit = self.accelerator, self.training.clip_grad
        if limit is not None:
            norm = accelerator.clip_grad_norm_(self.model.parameters(), limit)
        elif measure:
            accelerator.unscale_gradients(self.optimizer)
            norm = get_total_norm([weight.grad for weight in self.model.parameters() if weight.grad is not None])
        value = float(gather_full_tensors({"norm": norm})["norm"]) if measure else math.nan
        return value if math.isfinite(value) else None  # with fp16, a step whose gradients overflow is skipped

    def _get_lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def validate(self) -> dict[str, Any] | None:
        """Return the validation metrics of the current weights, or None without a validation split.

        A validation split without a readable sample counts as none, and the user is told.
        """
        if self.validation is None:
            return None
        # Validation changes nothing, so a single process can stop at once. Several must finish it together.
        alone = self.accelerator.num_processes == 1
        try:
            with self.use_validated_weights(), self.stop.interrupt_immediately() if alone else nullcontext():
                step, attention = (None, True) if self.validate_attention else (self.step, False)
                self.meter = self.step.evaluation_meter()
                metrics = evaluate_model(
                    self.model,
                    self.validation,
                    self.accelerator,
                    step=step,
                    with_attention=attention,
                    meter=self.meter,
                )
        except KeyboardInterrupt:
            self.save()
            raise
        except ToastError as error:
            if error.code != NOTHING_TO_MEASURE:
                raise
            if self.best.metrics is None:  # every process has this error
                self.validation = None
                self.reporter.report_message(
                    f"Warning: val: not evaluated. {error.what} Training goes on as without a validation split: no "
                    "epoch is selected, and the last one is kept."
                )
                return None
            self.save()
            raise ToastError(
                f"Validation: {error.what}",
                f"An earlier epoch was validated. The training so far is saved in {self.folder.checkpoints / 'last'}.",
                "Make the files readable again as they were when the run was started, and resume the run.",
                code=error.code,
            ) from error
        if not math.isfinite(metrics["loss"]):
            raise self._make_non_finite_error("validation loss", metrics["loss"])
        return metrics

    def end_epoch(self, metrics: dict[str, Any] | None) -> None:
        """Compare the epoch with the best one, log it and save its checkpoints."""
        at, epoch = self.at, self.at.epochs + 1
        train = self.tally.compute_global_metrics()
        self.losses.append(train["loss"])
        line = {"kind": "epoch", "step": at.steps, "epoch": epoch, "lr": self._get_lr(), "train": train}
        is_best = self.validation is None
        if metrics is not None:
            line["validation"] = metrics
            counts = self.meter.class_counts()
            plain = None if counts is None else counts.to_dict()
            is_best = self.best.update(epoch, metrics, self.step.score(metrics), plain)
        elif is_best:
            self.best.epoch = epoch
        self._check_weights()
        # `last` is saved last: a run that is killed before then repeats this work from the previous checkpoint.
        if is_best:
            with self.use_validated_weights():
                self.folder.save_checkpoint("best", self.model, {"epoch": epoch, "step": at.steps})
        self.log({**line, "best": is_best})
        at.epochs, at.batches, self.tally = epoch, 0, EpochMetrics(self.step)
        self.save()
        self.reporter.report_epoch(epoch, self.training.epochs, {**line, "select": self.step.select}, is_best)
        progress = (epoch, self.training.epochs, at.steps)
        info = EpochInfo(self.folder.path, self.model, *progress, train, metrics, is_best)
        if self._call_back(self.callbacks.after_epoch, info) and metrics is None and self.validation is not None:
            self._validate_stopped_epoch(line)
        if epoch == 1:
            skipped = merge_dicts_across_processes(self.train.skipped)
            report_unreadable_classes(self.reporter, self.data, "train", skipped)

    def _validate_stopped_epoch(self, line: dict[str, Any]) -> None:
        """Validate the epoch after which a callback has stopped training, and keep it if it is the best."""
        epoch, metrics = self.at.epochs, self.validate()
        if metrics is None:
            self.best.epoch, is_best = epoch, True
        else:
            is_best = self.best.update(epoch, metrics, self.step.score(metrics))
        if is_best:
            with self.use_validated_weights():
                self.folder.save_checkpoint("best", self.model, {"epoch": epoch, "step": self.at.steps})
        self.log({**line, "validation": metrics, "best": is_best})
        self.save()

    def _call_back(self, call: Callable[[Any], bool], info: StepInfo | EpochInfo) -> bool:
        """Call a user's function; return whether that of any process, now or earlier, asked to stop.

        If it raises, the training so far is saved first, so that the run can be resumed. Several processes would wait
        for each other to save, so they resume from the last checkpoint.
        """
        try:
            asked = call(info)
        except Exception as error:
            if self.accelerator.num_processes == 1:
                self.save()
            error.add_note(f"A callback raised this in the run {self.folder.path}, which can be resumed.")
            raise
        self.stopped |= bool(sum_across_processes([float(asked)], self.accelerator)[0])
        return self.stopped

    def save(self) -> None:
        """Save the model and the training state as `checkpoints/last`.

        Raises:
            ToastError: a trained weight is not finite. The previous checkpoint is kept.
        """
        self._check_weights()
        tensors, plain = pack_training_state(self.optimizer, self.accelerator)
        if self.average is not None:
            tensors |= {EMA_PREFIX + name: tensor for name, tensor in self.average.get_tensors().items()}
        state = {
            "at": asdict(self.at),
            "best": asdict(self.best),
            "tally": self.tally.state(),
            "training": plain,
            "processes": self.accelerator.num_processes,
        }
        self.folder.save_checkpoint("last", self.model, state, tensors)
        self.kept = replace(self.at)

    def use_validated_weights(self) -> AbstractContextManager[None]:
        """Give the model, within the block, the weights that are validated and saved: trained or averaged."""
        return nullcontext() if self.average is None else self.average.apply_to_model()

    def _is_validation_due(self) -> bool:
        """Return whether to validate after the epoch that was just trained."""
        epoch = self.at.epochs + 1
        is_last = epoch == self.training.epochs or self._has_reached_max_steps() or self.stopped
        return is_last or epoch % self.training.validate_every == 0

    def _has_reached_max_steps(self) -> bool:
        return self.training.max_steps is not None and self.at.steps >= self.training.max_steps

    def _has_exhausted_patience(self) -> bool:
        """Return whether the last `training.patience` epochs, up to the one just validated, were not better."""
        patience, validated = self.training.patience, self.at.epochs % self.training.validate_every == 0
        if patience is None or self.best.metrics is None or not validated:
            return False
        return self.at.epochs - self.best.epoch >= patience

    def _check_weights(self) -> None:
        """Refuse to save weights that are not finite: a step with a finite loss can have a gradient that is not."""
        for name, weight in self.model.get_trained_parameters().items():
            if not gather_full_tensors({name: weight.isfinite().all()})[name]:
                raise self._make_non_finite_error(f"weight {name}", float("nan"))

    def _make_non_finite_error(self, what: str, value: float) -> ToastError:
        at, kept, last = self.at, self.kept, self.folder.checkpoints / "last"
        return ToastError(
            f"The {what} became {value} at step {at.steps} (epoch {at.epochs + 1}).",
            f"The last good checkpoint is kept: {last} (epoch {kept.epochs}, step {kept.steps})."
            if kept is not None
            else "No epoch had been finished, so there is no checkpoint yet.",
            "Try a lower training.lr, a longer warm-up, training.clip_grad=1 or fp32.",
            code="training.non-finite",
        )


def count_samples(batch: Mapping[str, Any]) -> int:
    """Return the number of samples in a batch."""
    return len(next(iter(batch.values())))


def _group_batches(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield consecutive batches in groups of `size`; the last group may be smaller."""
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group

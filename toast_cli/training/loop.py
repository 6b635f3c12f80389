"""The training loop: every epoch trains, validates, and keeps the last and the best checkpoint."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from accelerate import Accelerator
from accelerate.utils import send_to_device

from toast_cli.data.source import Batches
from toast_cli.errors import ToastError
from toast_cli.model import Model
from toast_cli.recipe.schema import TrainingOptions
from toast_cli.storage.checkpoint import load_besides, load_checkpoint
from toast_cli.storage.run_folder import RunFolder
from toast_cli.training.evaluation import evaluate
from toast_cli.training.optimization import make_optimizer, make_schedule
from toast_cli.training.processes import merged, summed
from toast_cli.training.reporter import Reporter
from toast_cli.training.resuming import pack, unpack
from toast_cli.training.step import Parts, Step


@dataclass
class Best:
    """The epoch that validation chose: higher is better, the lower validation loss decides a tie."""

    epoch: int = 0
    score: tuple[float, ...] = (-sys.float_info.max, -sys.float_info.max)
    metrics: dict[str, Any] | None = None

    def offer(self, epoch: int, metrics: dict[str, Any], score: float) -> bool:
        """Take this epoch if it is better than any before."""
        if (score, -metrics["loss"]) <= self.score:
            return False
        self.epoch, self.score, self.metrics = epoch, (score, -metrics["loss"]), metrics
        return True


def fit(
    step: Step,
    train: Batches,
    validation: Batches | None,
    training: TrainingOptions,
    accelerator: Accelerator,
    folder: RunFolder,
    reporter: Reporter,
    log: Callable[[dict[str, Any]], None],
    *,
    resume: bool = False,
) -> Best:
    """Train the step's model in place; `checkpoints/best` is the epoch that validation chose (without one: the last).

    With `resume`, goes on after `checkpoints/last` as if it had never stopped.

    Raises:
        ToastError: the loss is not finite any more. The last good checkpoint stays where it is.
    """
    model = step.model
    steps = -(-len(train) // training.accumulate)
    optimizer = make_optimizer(model, training)
    schedule = make_schedule(optimizer, training, steps)
    objective = model.objective
    forward, optimizer = accelerator.prepare(step, optimizer)
    processes = accelerator.num_processes
    best = Best()
    begun = done = 0
    if resume:
        state = load_checkpoint(folder.checkpoints, "last", model)
        unpack(load_besides(folder.checkpoints, "last"), state["training"], optimizer, accelerator)
        begun, done = state["epoch"], state["step"]
        best = Best(state["best"]["epoch"], tuple(state["best"]["score"]), state["best"]["metrics"])
    for epoch in range(begun + 1, training.epochs + 1):
        model.train()
        train.set_epoch(epoch)
        meter, parts = step.meter(), Parts()
        seen = loss_sum = 0.0
        started = time.perf_counter()
        for group in _groups(train, training.accumulate):
            batches = [send_to_device(batch, accelerator.device, non_blocking=True) for batch in group]
            # One mean over the whole step, however its parts differ in size: images, or tokens to be learned.
            whole = summed(sum(objective.count(batch) for batch in batches), accelerator)
            schedule.step_update(done)
            done += 1
            optimizer.zero_grad(set_to_none=True)
            value = 0.0
            for number, batch in enumerate(batches, 1):
                waits = accelerator.no_sync(forward) if number < len(batches) else nullcontext()
                with waits:
                    with accelerator.autocast():
                        stepped = forward(batch)
                        loss = stepped.loss / max(whole, 1)
                    value += summed(loss.item(), accelerator)
                    if not math.isfinite(value):
                        raise _not_finite("training loss", value, done, epoch, folder)
                    # Gradients are averaged over processes; each process's loss is its part of the sum.
                    accelerator.backward(loss * processes)
                if objective.count(batch):
                    meter.add(stepped.outputs.detach(), batch)
                    parts.add(stepped.parts, objective.count(batch))
            if training.clip_grad is not None:
                accelerator.clip_grad_norm_(model.parameters(), training.clip_grad)
            optimizer.step()

            seen, loss_sum = seen + whole, loss_sum + value * whole
            reporter.step(done, training.epochs * steps, {**meter.result(), "loss": loss_sum / max(seen, 1)})
            if done % training.log_every == 0:
                lr = optimizer.param_groups[0]["lr"]
                log({"kind": "step", "step": done, "epoch": epoch, "loss": value, "lr": lr})

        line: dict[str, Any] = {
            "kind": "epoch",
            "step": done,
            "epoch": epoch,
            "train": {
                **merged(meter).result(),
                **merged(parts).result(),
                "loss": loss_sum / max(seen, 1),
                "seconds": time.perf_counter() - started,
            },
        }
        is_best = True
        if validation is not None:
            metrics = evaluate(model, validation, accelerator, step=step)
            if not math.isfinite(metrics["loss"]):
                raise _not_finite("validation loss", metrics["loss"], done, epoch, folder)
            line["validation"] = metrics
            is_best = best.offer(epoch, metrics, step.score(metrics))
        else:
            best.epoch = epoch
        _check_weights(model, done, epoch, folder)
        # The last checkpoint comes last: whatever is cut off before it is done again, from the one before.
        if is_best:
            folder.save_checkpoint("best", model, {"epoch": epoch, "step": done})
        log({**line, "best": is_best})
        tensors, plain = pack(optimizer, accelerator)
        state = {
            "epoch": epoch,
            "step": done,
            "best": asdict(best),
            "training": plain,
            "processes": processes,
        }
        folder.save_checkpoint("last", model, state, tensors)
        reporter.epoch(epoch, training.epochs, line, is_best)
    accelerator.wait_for_everyone()  # until the checkpoints that all will read are written
    return best


def _check_weights(model: Model, step: int, epoch: int, folder: RunFolder) -> None:
    """Refuse to keep weights that a step with a finite loss, but without a finite gradient, has ruined.

    Raises:
        ToastError: a trained weight is not finite.
    """
    for name, weight in model.trained().items():
        if not weight.isfinite().all():
            raise _not_finite(f"weight {name}", float("nan"), step, epoch, folder)


def _groups(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Consecutive batches in groups of `size`, the last one perhaps smaller."""
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group


def _not_finite(what: str, value: float, step: int, epoch: int, folder: RunFolder) -> ToastError:
    kept = f"The last good checkpoint is kept: {folder.checkpoints / 'last'} (epoch {epoch - 1})." if epoch > 1 else ""
    return ToastError(
        f"The {what} became {value} at step {step} (epoch {epoch}).",
        kept or "No epoch had been finished, so there is no checkpoint yet.",
        "A smaller training.lr, a longer warm-up, training.clip_grad=1 or fp32 usually helps.",
    )

"""The training loop: every epoch trains, validates, and keeps the last and the best checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from toast_cli.data.loading import ImageLoader
from toast_cli.errors import ToastError
from toast_cli.model import Model
from toast_cli.recipe.schema import TrainingOptions
from toast_cli.storage.checkpoint import save_checkpoint
from toast_cli.storage.run_folder import RunFolder
from toast_cli.training.evaluation import evaluate
from toast_cli.training.optimization import make_optimizer, make_schedule
from toast_cli.training.reporter import Reporter


@dataclass
class Best:
    """The epoch that validation chose: higher is better, the lower validation loss decides a tie."""

    epoch: int = 0
    score: tuple[float, float] = (-math.inf, -math.inf)
    metrics: dict[str, Any] | None = None

    def offer(self, epoch: int, metrics: dict[str, Any], selected_by: str) -> bool:
        """Take this epoch if it is better than any before."""
        score = (metrics[selected_by], -metrics["loss"])
        if score <= self.score:
            return False
        self.epoch, self.score, self.metrics = epoch, score, metrics
        return True


def fit(
    model: Model,
    train: ImageLoader,
    validation: ImageLoader | None,
    training: TrainingOptions,
    accelerator: Accelerator,
    folder: RunFolder,
    reporter: Reporter,
    log: Callable[[dict[str, Any]], None],
) -> Best:
    """Train `model` in place; `checkpoints/best` is the epoch that validation chose (without validation: the last).

    Raises:
        ToastError: the loss is not finite any more. The last good checkpoint stays where it is.
    """
    optimizer = make_optimizer(model, training)
    schedule = make_schedule(optimizer, training, len(train))
    model, optimizer = accelerator.prepare(model, optimizer)
    total = training.epochs * len(train)
    best = Best()
    step = 0
    for epoch in range(1, training.epochs + 1):
        model.train()
        train.set_epoch(epoch)
        seen = right = loss_sum = 0.0
        started = time.perf_counter()
        for batch in train:
            batch = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.items()}
            schedule.step_update(step)
            with accelerator.autocast():
                logits = model(batch["image"])
                loss = model.task.loss(logits, batch)
            step += 1
            if not math.isfinite(value := loss.item()):
                raise _not_finite("training loss", value, step, epoch, folder)
            optimizer.zero_grad(set_to_none=True)
            accelerator.backward(loss)
            if training.clip_grad is not None:
                accelerator.clip_grad_norm_(model.parameters(), training.clip_grad)
            optimizer.step()

            size = len(batch["label"])
            seen, loss_sum = seen + size, loss_sum + value * size
            right += (logits.argmax(-1) == batch["label"]).sum().item()
            reporter.step(step, total, loss_sum / seen, right / seen)
            if step % training.log_every == 0:
                lr = optimizer.param_groups[0]["lr"]
                log({"kind": "step", "step": step, "epoch": epoch, "loss": value, "lr": lr})

        line: dict[str, Any] = {
            "kind": "epoch",
            "step": step,
            "epoch": epoch,
            "train": {"loss": loss_sum / seen, "accuracy": right / seen, "seconds": time.perf_counter() - started},
        }
        is_best = True
        if validation is not None:
            metrics = evaluate(model, validation, accelerator)
            if not math.isfinite(metrics["loss"]):
                raise _not_finite("validation loss", metrics["loss"], step, epoch, folder)
            line["validation"] = metrics
            is_best = best.offer(epoch, metrics, model.task.selected_by)
        else:
            best.epoch = epoch
        save_checkpoint(folder.checkpoints, "last", model, {"epoch": epoch, "step": step})
        if is_best:
            save_checkpoint(folder.checkpoints, "best", model, {"epoch": epoch, "step": step})
        log({**line, "best": is_best})
        reporter.epoch(epoch, training.epochs, line, is_best)
    return best


def _not_finite(what: str, value: float, step: int, epoch: int, folder: RunFolder) -> ToastError:
    kept = f"The last good checkpoint is kept: {folder.checkpoints / 'last'} (epoch {epoch - 1})." if epoch > 1 else ""
    return ToastError(
        f"The {what} became {value} at step {step} (epoch {epoch}).",
        kept or "No epoch had been finished, so there is no checkpoint yet.",
        "A smaller training.lr, a longer warm-up, training.clip_grad=1 or fp32 usually helps.",
    )

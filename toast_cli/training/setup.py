"""How a run begins: its folder, and the weights it starts from or goes on with."""

from __future__ import annotations

from functools import partial
from pathlib import Path, PurePath
from typing import Any

from accelerate.utils import set_seed

from toast_cli.model.model import get_method
from toast_cli.recipe.safe_yaml import to_yaml
from toast_cli.recipe.schema import Recipe
from toast_cli.storage.checkpoint import find_checkpoint, is_checkpoint_lost, load_checkpoint_state, load_extra_tensors
from toast_cli.storage.pretuned import describe_feedback_mismatch
from toast_cli.storage.run_folder import RunFolder
from toast_cli.training.distributed.collectives import share_run_folder
from toast_cli.training.environment import describe_environment
from toast_cli.training.progress_state import TrainingProgress
from toast_cli.training.reporter import Reporter
from toast_cli.training.session import Session
from toast_cli.training.state import wrap_state_errors
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.tensors import copy_tensors


def open_run_folder(session: Session, path: Path | None, name: str, resume: bool) -> RunFolder:
    """The run's folder: a new one, with recipe and environment in it, or with `resume` the one that is there.

    Raises:
        ToastError: there is something in the way, or nothing to go on with.
    """
    if resume:
        assert path is not None
        return share_run_folder(session.accelerator, partial(RunFolder.reopen, path))
    folder = share_run_folder(session.accelerator, partial(RunFolder.create, path, name))
    folder.write_recipe(to_yaml(session.recipe))
    folder.write_environment(describe_environment(session.accelerator))
    return folder


def has_checkpoint(path: Path | None) -> bool:
    """Whether a run's folder holds a checkpoint to go on from."""
    return path is not None and find_checkpoint(RunFolder(path).checkpoints, "last") is not None


def start_or_resume(session: Session, folder: RunFolder, reporter: Reporter, resume: bool) -> bool:
    """Bring the model to where training starts; whether it goes on from `checkpoints/last`.

    Raises:
        ToastError: what it should start from does not fit, or what it had come to is damaged.
    """
    if resume and is_checkpoint_lost(folder.checkpoints, "last"):
        raise ToastError(
            f"No whole checkpoint is left in {folder.checkpoints}.",
            "The last one is damaged, and so is the one before it, if there is one.",
            f"Make the run again: --recipe {folder.path / 'recipe.yaml'} --output-dir NEW.",
        )
    state = load_checkpoint_state(folder.checkpoints, "last") if resume else None
    if state is not None:
        resume_run(session, folder, state, reporter)
    else:
        folder.truncate_metrics_after(-1, -1)
        initialize_run(session, folder, reporter)
    if session.accelerator.num_processes > 1:
        set_seed(session.recipe.seed, device_specific=True)  # what is dropped out differs from process to process
    return state is not None


def initialize_run(session: Session, folder: RunFolder, reporter: Reporter) -> None:
    """Give the method its starting weights, unless it has a pre-tuned artifact's; they are kept in the run."""
    recipe, model = session.recipe, session.model
    if session.lineage is not None:
        reporter.message(f"Start: {recipe.init_from}, pre-tuned on {session.lineage.recipe['dataset']['name']}")
        if (differs := describe_feedback_mismatch(session.lineage, recipe)) is not None:
            reporter.message(differs)
    elif initialize_feedback(session, reporter):
        pass
    elif model.adapted.steering is not None and recipe.pretuning is None:
        reporter.message(
            "The feedback path starts at random. Without pre-tuning the paper falls from 86.2 to 81.9 on FGVC "
            "(table 7): 'toast pretune' and --init-from, or method.start=least-squares, give it a better start."
        )
    if model.adapted.steering is not None:
        folder.save_checkpoint("start", model, {"epoch": 0, "step": 0}, model.get_frozen_additions())


def resume_run(session: Session, folder: RunFolder, state: dict[str, Any], reporter: Reporter) -> None:
    """Put back what an interrupted run started from but does not train; `fit` puts back the rest.

    Raises:
        UsageError: it was begun with another number of processes, which would draw other random numbers.
        ToastError: its state is none that this toast writes.
    """
    processes = session.accelerator.num_processes
    with wrap_state_errors(folder.checkpoints):
        at, begun_with = TrainingProgress(**state["at"]), state["processes"]
        folder.spent = float(state.get("spent", 0.0))
    if begun_with != processes:
        raise UsageError(
            f"The run was begun with {begun_with} processes and cannot go on with {processes}.",
            what_to_do=f"Start it with {begun_with}.",
        )
    folder.truncate_metrics_after(at.steps, at.epochs)
    copy_tensors(load_extra_tensors(folder.checkpoints, "start"), session.model.state_dict())
    found = find_checkpoint(folder.checkpoints, "last")
    if found is not None and found.name != "last":
        reporter.message(f"{folder.checkpoints / 'last'} is damaged; the checkpoint before it is not, and is taken.")
    reporter.message(
        f"Going on after epoch {at.epochs} of {session.recipe.training.epochs}"
        + (f" and {at.batches} batches more." if at.batches else ".")
    )


def initialize_feedback(session: Session, reporter: Reporter) -> bool:
    """Let the method set its starting weights from a few plain training samples, if it wants to; whether it did."""
    method = get_method(session.recipe)
    wanted = method.start_images(session.recipe.method)
    if method.start is None or not wanted:
        return False
    wanted = min(wanted, len(session.data.splits["train"]))
    batches = -(-wanted // session.batch_size)
    session.model.begin(
        method.start,
        session.recipe.method,
        reporter.track(session.sample(wanted), batches, "least-squares start"),
    )
    return True


def get_default_run_name(recipe: Recipe) -> str:
    """`<data set>-<backbone>-<method>-seed<seed>`, safe as a folder name; of a backbone's path its last part alone."""
    family, colon, which = recipe.backbone.name.rpartition(":")
    backbone = f"{family}{colon}{PurePath(which).name}"
    name = f"{recipe.dataset.name}-{backbone}-{recipe.method.name}-seed{recipe.seed}"
    return "".join(character if character.isalnum() or character in "-_." else "-" for character in name)

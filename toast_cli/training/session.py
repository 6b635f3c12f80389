"""A run from recipe to results: data, model, start, training, and one look at the test split."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed

from toast_cli import registry
from toast_cli.data.source import Asked, Batches, DataSet
from toast_cli.data.split import hash_of
from toast_cli.divided import put, whole
from toast_cli.errors import UsageError
from toast_cli.model import Model, build_model, count, flops, method_of
from toast_cli.recipe.dump import to_yaml
from toast_cli.recipe.loading import build_recipe
from toast_cli.recipe.schema import Recipe
from toast_cli.storage.adapter import AdapterConfig, describe, save_folder
from toast_cli.storage.artifact import Lineage, artifact_path, other_feedback, start_from
from toast_cli.storage.card import adapter_card
from toast_cli.storage.checkpoint import find_checkpoint, load_besides, load_checkpoint, load_state
from toast_cli.storage.run_folder import RunFolder
from toast_cli.training.caching import cached_step
from toast_cli.training.devices import make_accelerator
from toast_cli.training.environment import environment
from toast_cli.training.evaluation import Answers, evaluate
from toast_cli.training.loop import fit
from toast_cli.training.memory import Memory, estimate
from toast_cli.training.optimization import check_optimizer, schedule_notes
from toast_cli.training.processes import merged, shared_folder, united
from toast_cli.training.reporter import Reporter
from toast_cli.training.sharding import check_even, check_sharding, shard
from toast_cli.training.standing import Position
from toast_cli.training.step import Step
from toast_cli.training.tensorboard import check_tensorboard, metrics_logger


@dataclass
class Session:
    """A recipe made real: the data opened, the model built, the device chosen; nothing trained or written yet.

    `lineage` is where the feedback path comes from, if the model has been given a pre-tuned one.
    """

    recipe: Recipe
    data: DataSet
    model: Model
    accelerator: Accelerator
    lineage: Lineage | None = None

    @property
    def batch_size(self) -> int:
        """Samples per forward pass where nothing is trained."""
        return self.recipe.training.eval_batch_size or self.recipe.training.batch_size

    def batches(self, split: str, *, train: bool = False, with_masks: bool = False) -> Batches:
        """A split in batches: shuffled and augmented for training, in order and plain otherwise."""
        size = self.recipe.training.batch_size if train else self.batch_size
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        views = self.recipe.training.cache_views if self.recipe.training.cache and train else None
        return self._batches(split, Asked(size, train, train, with_masks, process, processes, views))

    def sample(self, wanted: int) -> Iterator[Any]:
        """What the backbone looks at in `wanted` plain training samples that the seed draws, a batch at a time."""
        for batch in self._batches("train", Asked(self.batch_size, shuffle=True)):
            batch = {name: tensor[:wanted] for name, tensor in batch.items()}
            wanted -= len(next(iter(batch.values())))
            yield send_to_device(self.model.objective.inputs(batch), self.accelerator.device)
            if wanted <= 0:
                return

    def _batches(self, split: str, asked: Asked) -> Batches:
        return self.data.batches(self.data.splits[split], self.recipe, self.model.backbone, asked)

    def shows_attention(self, split: str) -> bool:
        """Whether attention can be held against masks on this split."""
        return self.model.backbone.has_attention and self.data.splits[split].has_masks

    def sizes(self) -> dict[str, Any]:
        """Trainable and total parameters, and counted FLOPs against the plain backbone."""
        return {
            "trained_parameters": count(self.model.trained().values()),
            "total_parameters": count(self.model.parameters()),
            **flops(self.model),
        }

    def backbone_notes(self) -> list[str]:
        """What the backbone has to say, and how images are normalised where a weights file does not say it."""
        weights, seen = self.recipe.backbone.weights, self.model.backbone.preprocessing
        if weights in (None, "none") or seen is None:
            return list(self.model.backbone.notes)
        mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (seen.mean, seen.std))
        return [
            *self.model.backbone.notes,
            f"Weights of {weights}; images are normalised by mean ({mean}) and std ({std}), as for the published "
            f"weights of {self.recipe.backbone.name}: images.normalize, or images.mean and images.std, change that.",
        ]

    def place(self) -> None:
        """Bring the model to where it is trained: divided among the processes part by part, or whole on the device."""
        if self.recipe.training.shard:
            shard(self.model, self.accelerator)
        else:
            self.model.to(self.accelerator.device)

    def memory(self, batches: Batches) -> Memory:
        """What a training step on such batches will hold in each process, worked out before the model is placed."""
        return estimate(self.model, self.recipe.training, next(iter(batches)), self.accelerator)


def open_data(recipe: Recipe) -> DataSet:
    """Open the recipe's data set.

    Raises:
        ToastError: it is not where it should be, or not what it should be.
    """
    source = registry.load(registry.SOURCES, recipe.dataset.name)
    return source.open(recipe.dataset, Path(recipe.data_dir).expanduser() if recipe.data_dir else None)


def prepare(recipe: Recipe, *, labels: bool = True, begun: bool = False, place: bool = True) -> Session:
    """Open the data and build the model; everything random after this point follows from the recipe's seed.

    A pre-tuned feedback path that the recipe names is put in here, so that a wrong one is refused before anything is
    written; not where the run has `begun` before and goes on from a checkpoint of its own. Without `place` the model
    stays on the CPU.

    Raises:
        UsageError: `labels` are to be learned, and the data has none; the pre-tuned path is none.
        ToastError: anything else that a user can mend.
    """
    check_optimizer(recipe.training)
    check_tensorboard(recipe.training.tensorboard)
    accelerator = make_accelerator(recipe)
    check_sharding(recipe.training, accelerator)
    data = open_data(recipe)
    if recipe.training.patience is not None and "val" not in data.splits:
        raise UsageError(
            "training.patience needs a validation split, and the data has none.",
            what_to_do="Leave training.patience out, or hold images out with dataset.val_fraction.",
        )
    if labels and len(data.classes) == 1:
        raise UsageError(
            "These images have no labels to learn from.",
            what_to_do="Pre-tune on them: 'toast pretune' with pretuning.target=first-pass, or with --least-squares.",
        )
    set_seed(recipe.seed)
    model = build_model(recipe, data.classes)
    check_even(recipe.training, model)
    lineage = start_from(artifact_path(recipe), model, recipe) if recipe.init_from is not None and not begun else None
    session = Session(recipe, data, model, accelerator, lineage)
    if place:
        session.place()
    return session


def plain_model(backbone: str, weights: str | None, device: str | None) -> tuple[Model, Recipe]:
    """A backbone with nothing on it but an untrained head of one class, and the recipe that stands for it."""
    raw = {
        "backbone": {"name": backbone, "weights": weights},
        "dataset": "demo",
        "method": "linear",
        "device": device or "auto",
    }
    recipe = build_recipe(raw, {}, origin="options")
    return build_model(recipe, ("none",)).eval(), recipe


def tune(
    recipe: Recipe, output_dir: Path | None, reporter: Reporter, resume: bool = False
) -> tuple[RunFolder, dict[str, Any]]:
    """Train as the recipe says and return the run folder and its results.

    With `resume`, `output_dir` is the folder of an interrupted run of this recipe, which goes on exactly: on a CPU it
    ends with the weights, bit for bit, of a run that was never interrupted.

    Selection is by validation alone; the test split is seen once, at the end, by the model that was selected; with
    `test: false` in the recipe, never.

    Raises:
        ToastError: anything a user can mend; what had been finished stays in the run folder.
    """
    started = time.perf_counter()
    if recipe.pretuning is not None:
        raise UsageError("This recipe is for pre-tuning.", what_to_do="Give it to 'toast pretune'.")
    session = prepare(recipe, begun=resume and has_begun(output_dir), place=False)
    model, accelerator, data = session.model, session.accelerator, session.data
    train = session.batches("train", train=True)
    validation = session.batches("val") if "val" in data.splits else None
    step, notes = tuning_step(session, train, validation)
    folder = open_folder(session, output_dir, default_run_name(recipe), resume)
    say_first(session, train, folder, reporter)
    for note in notes:
        reporter.message(note)
    sizes, memory = session.sizes(), session.memory(train)
    for message in filter(None, (str(memory), memory.warning(accelerator.device))):
        reporter.message(message)
    session.place()
    with told_how_to_go_on(folder, reporter, "tune"):
        goes_on = begin(session, folder, reporter, resume)
    with metrics_logger(folder, recipe.training.tensorboard) as log, told_how_to_go_on(folder, reporter, "tune"):
        best = fit(
            step,
            train,
            validation,
            recipe.training,
            accelerator,
            folder,
            reporter,
            log,
            resume=goes_on,
        )
    if best.metrics is None:
        reporter.message("There is no validation split: the last epoch is kept.")
    load_checkpoint(folder.checkpoints, "best", model)
    results: dict[str, Any] = {
        "backbone": recipe.backbone.name,
        "dataset": recipe.dataset.name,
        "method": recipe.method.name,
        "seed": recipe.seed,
        "classes": len(data.classes),
        "samples": {name: len(split) for name, split in data.splits.items()},
        "split_hashes": {name: hash_of(split) for name, split in data.splits.items()},
        **sizes,
        "attention_can_be_drawn": model.backbone.has_attention and model.backbone.preprocessing is not None,
        "selected_epoch": best.epoch,
        "validation": best.metrics,
        "test": None,
    }
    test = None
    if recipe.test and "test" in data.splits:
        shows, answers = session.shows_attention("test"), Answers()
        test = session.batches("test", with_masks=shows)
        seen = reporter.track(test, len(test), "test")
        with told_how_to_go_on(folder, reporter, "tune"):
            results["test"] = evaluate(model, seen, accelerator, with_attention=shows, answers=answers)
        if given := merged(answers).given:
            columns = zip(*((place, *given[place]) for place in sorted(given)), strict=True)
            folder.write_answers(dict(zip(("index", "label", "chosen"), columns, strict=True)))
    results["skipped"] = say_skipped(reporter, train=train, val=validation, test=test)
    results["seconds"] = time.perf_counter() - started
    config: AdapterConfig = describe(model, recipe, data.classes)
    trained, frozen = whole(model.trained()), whole(model.frozen_additions())
    if folder.writes:
        save_folder(folder.adapter, trained, frozen, config, adapter_card(config, results))
    folder.write_results(results)
    return folder, results


def tuning_step(session: Session, train: Batches, validation: Batches | None) -> tuple[Step, list[str]]:
    """What a step of tuning does, and what a user should read about it.

    Raises:
        ToastError: first passes are to be kept, and cannot be.
    """
    if not session.recipe.training.cache:
        return Step(session.model), []
    splits = {"train": train} if validation is None else {"train": train, "val": validation}
    step, note = cached_step(session.recipe, session.model, splits, session.accelerator.mixed_precision)
    return step, [note]


def open_folder(session: Session, path: Path | None, name: str, resume: bool) -> RunFolder:
    """The run's folder: a new one, with recipe and environment in it, or with `resume` the one that is there.

    Raises:
        ToastError: there is something in the way, or nothing to go on with.
    """
    if resume:
        assert path is not None
        return shared_folder(session.accelerator, partial(RunFolder.reopen, path))
    folder = shared_folder(session.accelerator, partial(RunFolder.create, path, name))
    folder.write_recipe(to_yaml(session.recipe))
    folder.write_environment(environment(session.accelerator))
    return folder


def say_first(session: Session, train: Batches, folder: RunFolder, reporter: Reporter, gradient: bool = True) -> None:
    """What a user should read before a run: its folder, its data and, with `gradient`, its steps."""
    training = session.recipe.training
    steps = schedule_notes(training, -(-len(train) // training.accumulate)) if gradient else []
    for message in (
        f"Run folder: {folder.path}",
        *session.data.notes,
        *train.notes,
        *session.backbone_notes(),
        *steps,
    ):
        reporter.message(message)


def say_skipped(reporter: Reporter, **batches: Batches | None) -> dict[str, dict[str, str]]:
    """Say how many samples of every split could not be read and were left out; returns all of them, with the reasons.

    All processes must call it.
    """
    found = {part: united(loader.skipped) for part, loader in batches.items() if loader is not None}
    for part, skipped in found.items():
        if skipped:
            named = "; ".join(f"{name} ({why})" for name, why in list(skipped.items())[:3])
            more = f"; and {len(skipped) - 3:,} more" if len(skipped) > 3 else ""
            reporter.message(f"{part}: {len(skipped):,} could not be read and were skipped: {named}{more}")
    return {part: skipped for part, skipped in found.items() if skipped}


def has_begun(path: Path | None) -> bool:
    """Whether a run's folder holds a checkpoint to go on from."""
    return path is not None and find_checkpoint(RunFolder(path).checkpoints, "last") is not None


def begin(session: Session, folder: RunFolder, reporter: Reporter, resume: bool) -> bool:
    """Bring the model to where training starts; whether it goes on from `checkpoints/last`.

    Raises:
        ToastError: what it should start from does not fit.
    """
    state = load_state(folder.checkpoints, "last") if resume else None
    if state is not None:
        go_on(session, folder, state, reporter)
    else:
        folder.forget_after(-1, -1)
        start_anew(session, folder, reporter)
    if session.accelerator.num_processes > 1:
        set_seed(session.recipe.seed, device_specific=True)  # what is dropped out differs from process to process
    return state is not None


def start_anew(session: Session, folder: RunFolder, reporter: Reporter) -> None:
    """Give the method its starting weights, unless it has a pre-tuned artifact's; they are kept in the run."""
    recipe, model = session.recipe, session.model
    if session.lineage is not None:
        reporter.message(f"Start: {recipe.init_from}, pre-tuned on {session.lineage.recipe['dataset']['name']}")
        if (differs := other_feedback(session.lineage, recipe)) is not None:
            reporter.message(differs)
    elif start_feedback(session, reporter):
        pass
    elif model.adapted.steering is not None and recipe.pretuning is None:
        reporter.message(
            "The feedback path starts at random. Without pre-tuning the paper falls from 86.2 to 81.9 on FGVC "
            "(table 7): 'toast pretune' and --init-from, or method.start=least-squares, give it a better start."
        )
    if model.adapted.steering is not None:
        folder.save_checkpoint("start", model, {"epoch": 0, "step": 0}, model.frozen_additions())


@contextmanager
def told_how_to_go_on(folder: RunFolder, reporter: Reporter, command: str) -> Iterator[None]:
    """Whoever interrupts a run reads how it goes on."""
    try:
        yield
    except KeyboardInterrupt:
        reporter.message(f"Stopped, and kept what was done. It goes on with: toast {command} --resume {folder.path}")
        raise


def go_on(session: Session, folder: RunFolder, state: dict[str, Any], reporter: Reporter) -> None:
    """Put back what an interrupted run started from but does not train; `fit` puts back the rest.

    Raises:
        UsageError: it was begun with another number of processes, which would draw other random numbers.
    """
    processes = session.accelerator.num_processes
    if state["processes"] != processes:
        raise UsageError(
            f"The run was begun with {state['processes']} processes and cannot go on with {processes}.",
            what_to_do=f"Start it with {state['processes']}.",
        )
    at = Position(**state["at"])
    folder.forget_after(at.steps, at.epochs)
    put(load_besides(folder.checkpoints, "start"), session.model.state_dict())
    found = find_checkpoint(folder.checkpoints, "last")
    if found is not None and found.name != "last":
        reporter.message(f"{folder.checkpoints / 'last'} is damaged; the checkpoint before it is not.")
    reporter.message(
        f"Going on after epoch {at.epochs} of {session.recipe.training.epochs}"
        + (f" and {at.batches} batches more." if at.batches else ".")
    )


def start_feedback(session: Session, reporter: Reporter) -> bool:
    """Let the method set its starting weights from a few plain training samples, if it wants to; whether it did."""
    method = method_of(session.recipe)
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


def default_run_name(recipe: Recipe) -> str:
    """`<data set>-<backbone>-<method>-seed<seed>`, safe as a folder name; of a backbone's path its last part alone."""
    family, colon, which = recipe.backbone.name.rpartition(":")
    backbone = f"{family}{colon}{PurePath(which).name}"
    name = f"{recipe.dataset.name}-{backbone}-{recipe.method.name}-seed{recipe.seed}"
    return "".join(character if character.isalnum() or character in "-_." else "-" for character in name)

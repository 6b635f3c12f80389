"""A training run: its session, folder, messages and initial or resumed weights."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path, PurePath
from typing import Any

from accelerate.utils import set_seed

from toast_cli.data.audit.leaks import describe_leaks
from toast_cli.data.base import BatchLoader
from toast_cli.data.identity import DataIdentity, identify_data
from toast_cli.data.paths import get_dataset_label
from toast_cli.recipe.lookup import resolve_recorded_backbone
from toast_cli.recipe.safe_yaml import to_yaml
from toast_cli.recipe.schema import Recipe
from toast_cli.storage.checkpoint import (
    check_checkpoint_shapes,
    find_checkpoint,
    is_checkpoint_lost,
    load_checkpoint_state,
    load_extra_tensors,
)
from toast_cli.storage.lineage import RunLineage, describe_extension, read_lineage
from toast_cli.storage.run_folder import RunFolder
from toast_cli.training.continuation.earlier_data import describe_start_leaks
from toast_cli.training.continuation.extension import Extension, describe_extension_schedule, prepare_extension
from toast_cli.training.data.image_files import check_image_files
from toast_cli.training.data.recorded_paths import find_recorded_paths
from toast_cli.training.data.run_data import check_resumed_data
from toast_cli.training.distributed.collectives import call_in_first_process, share_run_folder
from toast_cli.training.environment import describe_environment
from toast_cli.training.evaluate import SplitAnswers
from toast_cli.training.reporter import Reporter
from toast_cli.training.session import Session, prepare_session
from toast_cli.training.state import TrainingProgress, wrap_state_errors
from toast_cli.training.tracking.figures import RunFigures
from toast_cli.training.tracking.trackers import Trackers
from toast_cli.utils.constants import PYTHON_DATA, UNREADABLE_IMAGE
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.names import quote_argument, to_folder_name
from toast_cli.utils.tensor_fingerprints import copy_tensors


@dataclass(frozen=True)
class AutomaticSettings:
    """The numbers that toast chose for settings that were `auto` or `recommended`, and the range test as CSV."""

    numbers: Mapping[str, int | float] = field(default_factory=dict)
    lr_range: str | None = None


@dataclass
class Run:
    """A run in progress.

    `folder` is set by `open`. `resume` is True if the user asked to resume an interrupted run, and `resumed` is True if
    there was a checkpoint to resume from. `begun` tells whether an optimizer step was done. `extension` has the changes
    of its recipe, and `lineage` the models that it starts from. `automatic` holds the settings that were `auto` or
    `recommended`. `trackers` also receive the metrics, and the pictures that `figures` draws.
    """

    session: Session
    reporter: Reporter
    output_dir: Path | None = None
    resume: bool = False
    started: float = field(default_factory=time.perf_counter)
    extension: Extension | None = None
    lineage: RunLineage = field(default_factory=RunLineage)
    automatic: AutomaticSettings = field(default_factory=AutomaticSettings)
    folder: RunFolder = field(init=False)
    resumed: bool = field(default=False, init=False)
    begun: bool = field(default=False, init=False)
    figures: RunFigures = field(default_factory=RunFigures, init=False)
    trackers: Trackers = field(init=False)

    def __post_init__(self) -> None:
        self.trackers = Trackers(self.reporter)

    @classmethod
    def prepare(
        cls,
        recipe: Recipe,
        output_dir: Path | None,
        reporter: Reporter,
        resume: bool,
        *,
        overrides: Sequence[str] = (),
        labels: bool = True,
        automatic: AutomaticSettings | None = None,
    ) -> Run:
        """Build the run of a recipe, with its model on the CPU. Nothing is written.

        `overrides` change the recipe of a run that is resumed.

        Raises:
            ToastError: see `prepare_session` and `prepare_extension`; or the run to resume was started with other data
                or another model; or image files cannot be read.
        """
        started, begun, extension, lineage = time.perf_counter(), False, None, RunLineage()
        if resume and output_dir is not None:
            folder = RunFolder(output_dir)
            recipe = find_recorded_paths(resolve_recorded_backbone(recipe, folder.read_toast_version()), output_dir)
            begun = find_checkpoint(folder.checkpoints, "last") is not None
            extension = prepare_extension(folder, recipe, overrides)
            recipe, lineage = (
                (recipe, read_lineage(output_dir)) if extension is None else (extension.recipe, extension.lineage)
            )
        session = prepare_session(recipe, labels=labels, begun=begun, place=False)
        if session.start is not None:
            lineage = replace(lineage, start=session.start.lineage)
        chosen = automatic or AutomaticSettings()
        if session.rate is not None:
            chosen = replace(chosen, numbers={**chosen.numbers, "lr": session.rate.rate.lr})
        run = cls(session, reporter, output_dir, resume, started, extension, lineage, chosen)
        if resume and output_dir is not None:
            if not check_resumed_data(output_dir, run.identity):
                reporter.report_message(
                    f"{output_dir} has no record of its data, so it was not compared with the data now."
                )
            check_checkpoint_shapes(folder.checkpoints, "last", session.model)
        elif session.start is not None:
            warnings = describe_start_leaks(session.start, run.identity)
            run.lineage = replace(lineage, warnings=tuple(warnings))
        check_image_files(session, reporter, run.command if resume else None)
        return run

    @contextmanager
    def open(self) -> Iterator[RunFolder]:
        """Create the run folder, with recipe and environment, or open the one to resume; yield it, locked.

        On interruption, report the command that resumes the run. If an error ends a new run before its first step, its
        folder is removed, as there is nothing to resume; unless the user can resume it without unreadable images.

        Raises:
            ToastError: the folder already exists, there is nothing to resume, or another process has locked the run.
        """
        self.folder = folder = self._open_folder()
        try:
            with folder.lock(), self._close_at_end():
                yield folder
        except KeyboardInterrupt:
            self.reporter.report_interruption(self.command)
            raise
        except Exception as error:
            if isinstance(error, ToastError) and error.code == UNREADABLE_IMAGE:
                self.reporter.report_message(
                    f"To go on without images that cannot be read: {self.command} images.on_error=skip"
                )
            elif not (self.begun or self.resume):
                self._remove_folder()
            elif isinstance(error.__cause__, OSError) and find_checkpoint(folder.checkpoints, "last") is not None:
                self.reporter.report_message(f"After fixing this, resume with: {self.command}")
            raise

    def mark_begun(self) -> None:
        """Record that an optimizer step was done, so that the folder stays if the run fails."""
        self.begun = True

    def _remove_folder(self) -> None:
        """Remove the folder of a run that failed before its first step."""
        try:
            self.folder.remove()
        except OSError as error:  # it must not hide why the run failed
            self.reporter.report_message(f"{self.folder.path} could not be removed: {error.strerror or error}")
        else:
            self.reporter.report_message(f"Nothing was trained, so {self.folder.path} was removed.")

    @cached_property
    def identity(self) -> DataIdentity:
        """Return the identity of the data, which the run folder records."""
        return identify_data(self.session.data)

    @property
    def split_hashes(self) -> dict[str, str | None]:
        """Return the hash of the names and labels of each split."""
        return {name: split.hash for name, split in self.identity.splits.items()}

    @property
    def split_contents(self) -> dict[str, str | None]:
        """Return the hash of the names, labels and content of each split, in order."""
        return {name: split.order for name, split in self.identity.splits.items()}

    @property
    def command(self) -> str:
        """Return the command line, or the call in Python, that resumes the run."""
        path = self.output_dir if self.resume else self.folder.path
        if self.session.recipe.dataset.name == PYTHON_DATA:
            return f"toast_cli.tune(dataset=DATA, resume={str(path)!r})"
        verb = "tune" if self.session.recipe.pretuning is None else "pretune"
        return f"toast {verb} --resume {quote_argument(path)}"

    @property
    def seconds(self) -> float:
        """Return the seconds that the run has taken, including those before it was resumed."""
        return self.folder.spent + time.perf_counter() - self.started

    def report_start(self, train: BatchLoader, notes: Iterable[str] = ()) -> None:
        """Report the run folder and the notes on data, backbone and training."""
        session = self.session
        texts = [*session.data.messages, *train.notes, *session.describe_choices(), *notes]
        texts += [] if session.start is None else session.start.messages
        if self.extension is not None:
            texts += describe_extension_schedule(self.extension, len(train))
        for text in (f"Run folder: {self.folder.path}", *texts, *self.lineage.warnings):
            self.reporter.report_message(text)

    def report_leaks(self) -> None:
        """Search for pictures that are in two splits, and report them; not in a run that is resumed."""
        if self.session.accelerator.is_main_process and not self.resume:
            for message in describe_leaks(self.session.data, self.reporter.track_progress):
                self.reporter.report_message(message)

    def describe_history(self) -> dict[str, Any]:
        """Return what the results tell of the run's history: the number of its extensions, if there are any."""
        return {"extensions": len(self.lineage.extensions)} if self.lineage.extensions else {}

    def count_test_evaluations(self) -> int:
        """Return how often the test split was evaluated, now included; report it if it was evaluated before."""
        count = self.lineage.tests + 1
        if count > 1:
            self.reporter.report_message(
                f"The test split was evaluated {count} times: the run was extended after its test. Choose the number "
                "of epochs by validation alone; if the test had a part in the choice, its numbers are too good."
            )
        return count

    def log_metrics(self, line: dict[str, Any]) -> None:
        """Append a line to the metrics file, and send it to the trackers."""
        self.folder.append_metrics(line)
        self.trackers.log(line, line["step"])

    def show_first_batch(self, batch: Mapping[str, Any]) -> None:
        """Send pictures of the first batch of training to the trackers."""
        self.trackers.log_pictures(lambda: self.figures.draw_first_batch(self.session, batch))

    def show_results(self, results: Mapping[str, Any], split: str, answers: SplitAnswers | None) -> None:
        """Send the numbers of the selected model, and its pictures of a split, to the trackers."""
        self.trackers.log({name: results[name] for name in ("test", "selected_epoch") if results[name] is not None})
        self.trackers.log_pictures(lambda: self.figures.draw_results(self.session, split, answers))

    def start(self) -> None:
        """Initialize the model with the method's initial weights, or prepare it to resume from `checkpoints/last`.

        Raises:
            ToastError: the initial weights do not fit, or the checkpoint is damaged.
        """
        session, folder = self.session, self.folder
        if self.resume and is_checkpoint_lost(folder.checkpoints, "last"):
            raise ToastError(
                f"Cannot resume: no intact checkpoint in {folder.checkpoints}.",
                "The last checkpoint and the one before it, if there is one, are damaged.",
                f"Start the run again: --recipe {quote_argument(folder.path / 'recipe.yaml')} --output-dir NEW.",
                code="checkpoint.damaged",
            )
        state = load_checkpoint_state(folder.checkpoints, "last") if self.resume else None
        self.resumed = state is not None
        if state is not None:
            self._restore_start(state)
            self._start_trackers(int(state["at"]["steps"]))
        else:
            self._start_trackers()
            folder.truncate_metrics_after(-1, -1)
            self._initialize()
        if session.accelerator.num_processes > 1:
            set_seed(session.recipe.seed, device_specific=True)  # so that dropout differs between processes

    def _initialize(self) -> None:
        """Initialize the method, unless an earlier model did, and save the result as `checkpoints/start`."""
        session, reporter = self.session, self.reporter
        recipe, model = session.recipe, session.model
        started = session.start is not None and session.start.has_method
        if started or initialize_feedback(session, reporter):
            pass
        elif model.adapted.steering is not None and recipe.pretuning is None:
            reporter.report_message(
                "The feedback path starts at random. In the paper, accuracy on FGVC drops from 86.2 to 81.9 without "
                "pre-tuning (table 7). Use 'toast pretune' and --init-from, or method.start=least-squares."
            )
        if model.adapted.steering is not None:
            self.folder.save_checkpoint("start", model, {"epoch": 0, "step": 0}, model.get_frozen_additions())

    def _restore_start(self, state: dict[str, Any]) -> None:
        """Restore the frozen weights that an interrupted run started from; `TrainingLoop.fit` restores the rest.

        Raises:
            UsageError: the run was started with another number of processes, whose random numbers would differ.
            ToastError: another version of toast wrote the state.
        """
        session, folder = self.session, self.folder
        processes = session.accelerator.num_processes
        with wrap_state_errors(folder.checkpoints):
            at, original_processes = TrainingProgress(**state["at"]), state["processes"]
            folder.spent = float(state.get("spent", 0.0))
        if original_processes != processes:
            raise UsageError(
                f"Cannot resume with {processes} processes: the run was started with {original_processes} processes.",
                what_to_do=f"Resume it with {original_processes}.",
                code="resume.wrong-process-count",
            )
        folder.truncate_metrics_after(at.steps, at.epochs)
        copy_tensors(load_extra_tensors(folder.checkpoints, "start"), session.model.state_dict())
        found = find_checkpoint(folder.checkpoints, "last")
        if found is not None and found.name != "last":
            self.reporter.report_message(
                f"{folder.checkpoints / 'last'} is damaged; resuming from the checkpoint before it."
            )
        self.reporter.report_message(
            f"Resuming after epoch {at.epochs} of {session.recipe.training.epochs}"
            + (f" and {at.batches} more batches." if at.batches else ".")
        )

    def _open_folder(self) -> RunFolder:
        accelerator, path = self.session.accelerator, self.output_dir
        if self.resume:
            assert path is not None
            return share_run_folder(accelerator, partial(RunFolder.reopen, path, self.extension is not None))
        _ = self.identity  # before the folder is there: it may take time
        make = partial(RunFolder.create, path, get_default_run_name(self.session.recipe))
        self.folder = share_run_folder(accelerator, make)
        try:
            self._write_records()
        except Exception:
            self._remove_folder()
            raise
        return self.folder

    def _write_records(self) -> None:
        """Write what the run folder records before the run starts."""
        recipe, folder, chosen = self.session.recipe, self.folder, self.automatic
        note = "".join(f"# training.{name} was chosen automatically.\n" for name in chosen.numbers if name != "workers")
        folder.write_recipe(note + to_yaml(recipe))
        environment = describe_environment(self.session.accelerator, recipe)
        folder.write_environment({**environment, "automatic": dict(chosen.numbers)})
        if chosen.lr_range is not None:
            folder.write_lr_range(chosen.lr_range)
        folder.write_data(self.identity.dump())
        if self.lineage.start:
            folder.write_lineage(self.lineage)

    def record_extension(self) -> None:
        """Write the changed recipe of a resumed run, and before it what changed; call when its state is restored."""
        if self.extension is None:
            return
        *earlier, last = self.lineage.extensions
        if not last["environment"]:
            last = {**last, "environment": describe_environment(self.session.accelerator, self.session.recipe)}
        self.lineage = replace(self.lineage, extensions=(*earlier, last))
        self.folder.write_lineage(self.lineage)
        self.folder.write_recipe(to_yaml(self.session.recipe))
        self.reporter.report_message(f"The run is extended: {describe_extension(last)}.")

    def _start_trackers(self, step: int = 0) -> None:
        """Start the trackers in the first process.

        Raises:
            ToastError: a tracker cannot be started. Every process raises the same error.
        """
        recipe, accelerator, folder = self.session.recipe, self.session.accelerator, self.folder
        names = recipe.training.trackers
        if names:
            values = recipe.model_dump(mode="json")
            start = partial(self.trackers.start, names, accelerator, folder.path, values, step)
            call_in_first_process(accelerator, start)
            self.reporter.report_message(f"Trackers: {', '.join(names)}")

    @contextmanager
    def _close_at_end(self) -> Iterator[None]:
        """Draw the curves and end the trackers, however the run ends."""
        try:
            yield
        finally:
            if self.folder.writes:
                try:
                    self.figures.write_curves(self.folder.path)
                except Exception as error:  # it must not hide how the run ended
                    self.reporter.report_message(f"The curves were not drawn: {type(error).__name__}: {error}")
            self.trackers.finish()


def initialize_feedback(session: Session, reporter: Reporter) -> bool:
    """Let the method compute its initial weights from training samples without augmentation; return whether it did."""
    method, options = session.recipe.plugins.method, session.recipe.method
    count = method.start_images(options)
    if method.start is None or not count:
        return False
    count = min(count, len(session.data.splits["train"]))
    batches = -(-count // session.batch_size)
    session.model.initialize_method(
        method.start,
        options,
        reporter.track_progress(session.iterate_training_inputs(count), batches, "least-squares start"),
    )
    return True


def get_default_run_name(recipe: Recipe) -> str:
    """Return `<data set>-<backbone>-<method>-seed<seed>`, with the characters allowed in a folder name.

    Paths of data and backbone are shortened to their last part. The name of a pre-tuning run begins with `pretune-`.
    """
    family, colon, which = recipe.backbone.name.rpartition(":")
    backbone = f"{family}{colon}{PurePath(which).name}"
    name = f"{get_dataset_label(recipe.dataset)}-{backbone}-{recipe.method.name}-seed{recipe.seed}"
    return to_folder_name(name if recipe.pretuning is None else f"pretune-{name}")

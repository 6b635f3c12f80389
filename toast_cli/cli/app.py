"""The `toast` application: its commands, and the handler that turns errors into messages and exit codes.

The commands import heavy packages (torch, pydantic, rich) inside their functions, so that `--help` is fast.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

from toast_cli.cli.commands import bench, data, recipes, runs
from toast_cli.cli.commands.app import run_app
from toast_cli.cli.commands.backbones import print_backbones
from toast_cli.cli.commands.compare import run_compare
from toast_cli.cli.commands.demo import run_demo
from toast_cli.cli.commands.doctor import run_doctor
from toast_cli.cli.commands.eval import run_eval
from toast_cli.cli.commands.export import run_export
from toast_cli.cli.commands.generate import generate
from toast_cli.cli.commands.import_checkpoint import run_import
from toast_cli.cli.commands.plan import run_plan
from toast_cli.cli.commands.predict import run_predict
from toast_cli.cli.commands.pretune import run_pretune
from toast_cli.cli.commands.serve import run_serve
from toast_cli.cli.commands.tune import run_tune
from toast_cli.cli.commands.visualize_attention import visualize_attention
from toast_cli.cli.options import CommandGroup, JsonOutput
from toast_cli.utils.errors import INTERRUPTED, RUNTIME_FAILURE, ToastError, UsageError

_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]
"""Typer's error for invalid options and arguments. Typer does not export it."""


class ConsoleHandler(logging.Handler):
    """A log handler that prints each warning of toast as one line on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message of a record."""
        from toast_cli.cli.output.console import err, print_line

        print_line(record.getMessage(), err)


WARNING_HANDLER = ConsoleHandler(logging.WARNING)

NOISY_LOGGERS = ("bitsandbytes", "torch.utils._pytree")
"""Loggers that warn whenever transformers or PEFT import a library for quantization: of kernels that are not used, and
of calls of another library."""


def is_error(record: logging.LogRecord) -> bool:
    """Return whether a record is an error. A filter stays on a logger whose level torch resets when it is imported."""
    return record.levelno >= logging.ERROR


class ToastGroup(CommandGroup):
    """The root command group, which handles the errors of every command."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command, print errors on stderr, and exit with the code of the error."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # names may have letters that the encoding lacks
                stream.reconfigure(errors="backslashreplace")
        logging.getLogger("toast_cli").addHandler(WARNING_HANDLER)  # adding it again has no effect
        for name in NOISY_LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)  # that of its children too
            logging.getLogger(name).addFilter(is_error)
        arguments = args[0] if args else extra.get("args")
        as_json = "--json" in (sys.argv[1:] if arguments is None else arguments)
        sys.exit(_run_for_exit_code(super().main, as_json, *args, **{**extra, "standalone_mode": False}))


def _format_examples(*commands: str) -> str:
    """Return the end of a help text: examples, one per line."""
    return "\b\nExamples:\n" + "\n".join(f"  {command}" for command in commands)


app = typer.Typer(
    name="toast",
    cls=ToastGroup,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(run_demo)
app.command("pretune")(run_pretune)
for name in ("tune", "train", "fit"):
    app.command(
        name,
        hidden=name != "tune",
        short_help="Adapt a frozen backbone to a data set (other names: train, fit).",
        epilog=_format_examples(
            "toast tune --backbone vit_b16 --dataset folder:pets",
            "toast tune --init-from runs/pets-vit_b16-toast-seed0 --dataset folder:more-pets --lr 0.0005",
        ),
    )(run_tune)
app.command("plan")(run_plan)
app.command(
    "eval",
    epilog=_format_examples(
        "toast eval --report",
        "toast eval --run runs/pets-vit_b16-toast-seed0 --dataset folder:other-pets --split all",
    ),
)(run_eval)
app.command(
    "predict",
    short_help="Label new images, or answer prompts.",
    epilog=_format_examples(
        "toast predict new-photos --out labels.csv",
        'toast predict "inbox/*.jpg" --run runs/pets-vit_b16-toast-seed0 --out labels.csv --resume',
    ),
)(run_predict)
app.command("compare")(run_compare)
app.command("generate")(generate)
app.command(
    "serve",
    epilog=_format_examples(
        "toast serve --run runs/birds",
        "toast serve --run runs/birds --run runs/trees --port 9000",
    ),
)(run_serve)
app.command("visualize-attention")(visualize_attention)
app.command(
    "app",
    epilog=_format_examples(
        "toast app --open",
        "toast app --run runs/birds-toast --run runs/birds-linear",
    ),
)(run_app)
app.command("export", epilog=_format_examples("toast export --format onnx --out pets/model.onnx"))(run_export)
app.command("import")(run_import)
app.command("backbones")(print_backbones)
app.add_typer(bench.app, name="bench")
app.add_typer(data.app, name="data")
app.add_typer(recipes.app, name="recipes")
app.add_typer(runs.app, name="runs")
app.command("doctor")(run_doctor)


@app.command("help")
def print_help(
    context: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(metavar="COMMAND", help="A command, e.g. tune or bench.")] = None,
) -> None:
    """Show the help of toast or of a command."""
    here: Any = context.parent
    for name in names or ():
        if not isinstance(here.command, CommandGroup):
            raise UsageError(
                f"'{here.command_path}' has no command '{name}'.",
                what_to_do=f"Run '{here.command_path} --help'.",
                code="cli.unknown-command",
            )
        _, command, _ = here.command.resolve_command(here, [name])
        here = typer.Context(command, info_name=name, parent=here)
    typer.echo(here.get_help())


@app.callback()
def toast(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """TOAST: transfer learning via attention steering.

    Adapt a frozen backbone to a task, and visualize what it attends to.
    """
    if version:
        from toast_cli.utils.version import __version__

        typer.echo(f"toast {__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the `toast` command."""
    get_command(app)(prog_name="toast")


def _run_for_exit_code(run: Any, as_json: bool, *args: Any, **extra: Any) -> int:
    JsonOutput.printed = False
    try:
        code = run(*args, **extra)
        sys.stdout.flush()  # raises BrokenPipeError here, where it is handled, and not at interpreter exit
    except ToastError as error:
        return _report_error(error, as_json)
    except _USAGE_ERROR as error:
        command = error.ctx.command_path if error.ctx is not None else "toast"
        what_to_do = f"Run '{command} --help' to list the options."
        return _report_error(UsageError(error.format_message(), what_to_do=what_to_do, code="cli.usage"), as_json)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader closed the pipe. Redirect stdout, so that closing it does not raise.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return RUNTIME_FAILURE
    except Exception as error:
        return _report_error(_make_internal_error(error), as_json)
    if code == INTERRUPTED:
        typer.echo("Interrupted.", err=True)
    return code if isinstance(code, int) else 0


def _report_error(error: ToastError, as_json: bool) -> int:
    """Print an error on stderr and return its exit code.

    With TOAST_DEBUG set, the message includes the error's code. `as_json` also prints the error as JSON on stdout,
    unless the command has printed a result there: stdout holds one JSON document.
    """
    from toast_cli.cli.output.console import print_error, print_json

    if _is_debugging():
        traceback.print_exc()
    print_error(error, with_code=_is_debugging())
    if as_json and not JsonOutput.printed:
        fields = {"code": error.code, "what": error.what, "why": error.why, "what_to_do": error.what_to_do}
        print_json({"error": fields})
    return error.exit_code


def _make_internal_error(error: Exception) -> ToastError:
    """Wrap an unexpected exception in an error that names the line that raised it, and the plugin if it raised it."""
    from toast_cli.registry import find_faulty_package

    last = traceback.extract_tb(error.__traceback__)[-1]
    if (package := find_faulty_package(error.__traceback__)) is not None:
        return ToastError(
            f"The plugin {package} failed: {type(error).__name__}: {error}",
            f"At {Path(last.filename)}:{last.lineno}.",
            f"Please report it to the authors of {package}."
            + ("" if _is_debugging() else " Set TOAST_DEBUG=1 to see the full traceback."),
            code="plugin.fault",
        )
    return ToastError(
        f"Internal error in toast: {type(error).__name__}: {error}",
        f"At {Path(last.filename)}:{last.lineno}.",
        "Please report it." if _is_debugging() else "Please report it. Set TOAST_DEBUG=1 to see the full traceback.",
        code="toast.fault",
    )


def _is_debugging() -> bool:
    return os.environ.get("TOAST_DEBUG", "") not in ("", "0")

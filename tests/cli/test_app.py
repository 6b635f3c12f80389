from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from toast_cli.cli.app import ToastGroup, app
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.version import __version__

ROOT = Path(__file__).parent.parent.parent
HEAVY = ("torch", "numpy", "timm", "transformers", "torchvision", "matplotlib")


def toast(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout, result.stderr


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "plugins"), os.environ.get("PYTHONPATH", "")])
    variables = {**os.environ, "PYTHONPATH": paths, **environment}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=variables, timeout=60)


@pytest.fixture
def verb_that_raises() -> typer.Typer:
    """A command line of its own whose one verb raises what it is asked to, inside the real error boundary."""
    own = typer.Typer(cls=ToastGroup, add_completion=False, rich_markup_mode=None)
    faults = {
        "usage": UsageError("Wrong [bold]file[/bold].", "Because.", "Do this."),
        "runtime": ToastError("It broke."),
        "fault": ZeroDivisionError("by [zero]"),
        "interrupt": KeyboardInterrupt(),
        "abort": typer.Abort(),
        "exit": typer.Exit(7),
        "pipe": BrokenPipeError(32, "Broken pipe"),
    }

    @own.command("raise")
    def raise_(kind: str) -> None:
        raise faults[kind]

    @own.callback()
    def top() -> None:
        pass

    return own


@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [
        ("usage", 2, "Error: Wrong [bold]file[/bold].\nBecause.\nDo this.\n"),
        ("runtime", 1, "Error: It broke.\n"),
        ("fault", 1, "Error: Internal error in toast: ZeroDivisionError: by [zero]\nAt "),
        ("interrupt", 130, "Interrupted.\n"),
        ("abort", 130, "Interrupted.\n"),
        ("exit", 7, ""),
    ],
)
def test_whatever_ends_a_command_has_its_message_and_exit_code(
    verb_that_raises: typer.Typer, kind: str, code: int, words: str
) -> None:
    result = CliRunner().invoke(verb_that_raises, ["raise", kind])
    assert result.exit_code == code
    assert result.stderr.startswith(words)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_a_closed_pipe_is_quiet(verb_that_raises: typer.Typer) -> None:
    result = CliRunner().invoke(verb_that_raises, ["raise", "pipe"])
    assert (result.exit_code, result.stderr) == (1, "")


def test_a_fault_shows_its_traceback_when_asked(verb_that_raises: typer.Typer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOAST_DEBUG", "1")
    result = CliRunner().invoke(verb_that_raises, ["raise", "fault"])
    assert "Traceback (most recent call last)" in result.stderr


def test_a_long_path_in_an_error_is_not_broken(capsys: pytest.CaptureFixture[str]) -> None:
    from toast_cli.cli.output.console import print_error

    path = "/" + "/".join(["a very long folder name [1]"] * 20)
    print_error(ToastError(f"{path} is gone."))
    assert path in capsys.readouterr().err


def test_an_unknown_command_is_answered_with_the_nearest() -> None:
    code, _, err = toast("tuen")
    assert code == 2
    assert "Unknown command" in err
    assert "Did you mean 'tune'?" in err


def test_a_name_unlike_all_commands_gets_no_suggestion() -> None:
    code, _, err = toast("hail")
    assert code == 2 and "Did you mean" not in err and "tune" in err and " fit" not in err


def test_help_is_a_command_too() -> None:
    assert toast("help")[:2] == toast("--help")[:2]
    assert toast("help", "tune")[:2] == toast("tune", "--help")[:2]
    assert toast("help", "recipes", "ls")[:2] == toast("recipes", "ls", "--help")[:2]
    assert toast("help", "tuen")[0] == toast("help", "tune", "ls")[0] == 2


@pytest.mark.parametrize("alias", ["train", "fit"])
def test_tune_has_aliases_that_the_list_leaves_out(alias: str) -> None:
    assert toast(alias, "--help")[1].split()[3:] == toast("tune", "--help")[1].split()[3:]
    assert f"\n  {alias} " not in toast("--help")[1]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (("ru",), ["runs"]),
        (("tune", "--method", "toast-"), ["toast-lite"]),
        (("tune", "--recipe", "demo/toast-"), ["demo/toast-lite"]),
        (("tune", "--backbone", "vit_demo_"), ["vit_demo_3"]),
        (("tune", "--dataset", "demo-seg"), ["demo-segmentation"]),
        (("runs", "rm", "old"), ["older"]),
    ],
)
def test_the_shell_completes_names(
    typed: tuple[str, ...], offered: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "older").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    asked = {"_TOAST_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(("toast", *typed))}
    result = CliRunner().invoke(app, [], env={**asked, "COMP_CWORD": str(len(typed))}, prog_name="toast")
    assert result.stdout.split() == offered


def test_an_unknown_option_is_wrong_usage() -> None:
    code, out, err = toast("tune", "--recip", "x")
    assert (code, out) == (2, "")
    assert "--recip" in err
    assert "--help" in err


def test_without_arguments_help_is_shown() -> None:
    assert toast()[:2] == toast("--help")[:2]


def test_the_help_lists_every_verb() -> None:
    code, out, _ = toast("--help")
    assert code == 0
    for verb in ("tune", "eval", "visualize-attention", "export", "backbones", "recipes", "doctor"):
        assert f"\n  {verb} " in out


@pytest.mark.parametrize("verb", ["tune", "eval", "visualize-attention", "export", "backbones", "recipes", "doctor"])
def test_every_verb_explains_itself(verb: str) -> None:
    code, out, _ = toast(verb, "--help")
    assert code == 0
    assert out.startswith("Usage: ")


def test_the_version_is_told() -> None:
    assert toast("--version")[:2] == (0, f"toast {__version__}\n")


def test_tune_takes_dotted_overrides_and_traces_them() -> None:
    code, _, err = toast("tune", "--recipe", "general/toast", "--seed", "3", "training.lrr=1e-3")
    assert code == 2
    assert "training.lrr = 0.001 (from training.lrr=1e-3)" in err
    assert "Did you mean 'lr'?" in err


@pytest.mark.parametrize(
    ("arguments", "also_absent"),
    [
        (("--help",), ("pydantic", "yaml", "rich")),
        (("tune", "--help"), ("yaml",)),
        (("recipes", "validate", "general/toast", "fgvc/cub-vit_b16-toast"), ()),
        (("recipes", "ls"), ()),
        (("backbones",), ()),
        (("runs", "ls"), ()),
        (("help", "runs", "ls"), ("yaml",)),
    ],
)
def test_nothing_heavy_is_imported(arguments: tuple[str, ...], also_absent: tuple[str, ...]) -> None:
    script = (
        "import sys\n"
        "from toast_cli.cli.app import main\n"
        f"sys.argv = ['toast', *{arguments!r}]\n"
        "try:\n    main()\n"
        "except SystemExit as ended:\n    assert not ended.code, ended.code\n"
        f"found = sorted(set({(*HEAVY, *also_absent)!r}) & set(sys.modules))\n"
        "assert not found, found\n"
    )
    ended = python("-c", script)
    assert ended.returncode == 0, ended.stderr


def test_the_module_runs_as_the_command() -> None:
    ended = python("-m", "toast_cli", "--version")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"toast {__version__}\n", "")


def test_messages_go_to_stderr_and_carry_no_colour_when_none_is_wanted() -> None:
    ended = python("-m", "toast_cli", "tune", "--recipe", "demo/tost", NO_COLOR="1", FORCE_COLOR="1")
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "Did you mean 'demo/toast'?" in ended.stderr
    assert "\x1b[31m" not in ended.stderr


def test_an_errors_code_is_shown_for_debugging_and_to_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = toast("tune", "--no-such-option")
    assert code == 2 and "No such option" in err and "cli.usage" not in err
    assert json.loads(toast("backbones", "--no-such-option", "--json")[1])["error"]["code"] == "cli.usage"
    monkeypatch.setenv("TOAST_DEBUG", "1")
    assert "Error [cli.usage]: No such option" in " ".join(toast("tune", "--no-such-option")[2].split())

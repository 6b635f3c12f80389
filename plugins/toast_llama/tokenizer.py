"""Loading of tokenizers, with the true cause if one cannot be loaded."""

from __future__ import annotations

import base64
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.utils import cached_file, logging

from toast_cli.plugin import ToastError, refuse_lfs_pointers

FAST_FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"
VOCABULARY_PATTERNS = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "*.tiktoken")
"""Files with the tokens of a tokenizer."""
SETTINGS_FILES = (CONFIG_FILE, "special_tokens_map.json", "added_tokens.json")
"""Files that belong to a tokenizer and hold no vocabulary."""


def load_tokenizer(place: str, download: bool = True) -> tuple[Any, ToastError | None]:
    """Return the tokenizer stored with a model, or None and the reason why there is none.

    Random weights need no tokenizer, so that is not an error here. The reason is None if the place is unknown. Without
    `download`, only the folder and the cache of the hub are searched.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its warnings name the last thing that was tried, not the cause
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, local_files_only=not download)
        if len(tokenizer.get_vocab()) > len(tokenizer.added_tokens_decoder):
            return tokenizer, None
        error: Exception = ValueError("Its vocabulary is empty.")
    except Exception as raised:  # code that needs the tokenizer reports it
        error = raised
    finally:
        logging.set_verbosity(verbosity)
    return None, _explain_failure(_find_folder(place), error)


def _find_folder(place: str) -> Path | None:
    """Return the folder that holds the files of a model, on disk or in the cache of the hub."""
    if Path(place).is_dir():
        return Path(place)
    try:
        found = cached_file(place, "config.json", local_files_only=True)
    except OSError:
        return None
    return None if found is None else Path(found).parent


def _explain_failure(folder: Path | None, error: Exception) -> ToastError | None:
    """Return the error that names the cause of a failure; None if the folder is unknown."""
    if folder is None:
        return None
    vocabularies = sorted(file for pattern in VOCABULARY_PATTERNS for file in folder.glob(pattern))
    settings = [folder / name for name in SETTINGS_FILES if (folder / name).is_file()]
    if not vocabularies and not settings:
        return ToastError(
            f"There is no tokenizer in {folder}.",
            what_to_do=f"Copy the tokenizer's files of the model into it, such as {FAST_FILE} and {CONFIG_FILE}.",
            code="backbone.no-tokenizer",
        )

    def report(why: str, what_to_do: str = "Download all of its files again.", code: str = "") -> ToastError:
        what = f"The tokenizer in {folder} cannot be loaded."
        return ToastError(what, why, what_to_do, code=code or "backbone.damaged-tokenizer")

    for file in (*vocabularies, *settings):
        try:
            refuse_lfs_pointers(file)
        except ToastError as pointer:
            return report(pointer.why, pointer.what_to_do)
        if damage := _describe_damage(file):
            return report(damage)
    if not vocabularies:
        return report(f"It has no vocabulary: there is neither {FAST_FILE} nor tokenizer.model.")
    if not (folder / FAST_FILE).is_file() and (missing := _find_missing_package(vocabularies)):
        return report(
            f"Reading {vocabularies[0].name} needs the package {missing}, which is not installed.",
            f"Run pip install {missing}, or add {FAST_FILE} to the folder.",
            "cli.missing-package",
        )
    if "trust_remote_code" in str(error):
        return report("It needs code of its own, which is not run.", f"Use a tokenizer with {FAST_FILE}.")
    reason = " ".join(str(error).split())[:300]
    return report(reason if isinstance(error, ValueError) else f"{type(error).__name__}: {reason}")


def _describe_damage(file: Path) -> str:
    """Return what is wrong with a file of a tokenizer; empty if it can be read."""
    try:
        content = file.read_bytes()
    except OSError as error:
        return f"{file.name} cannot be read: {error.strerror or error}."
    if not content.strip():
        return f"{file.name} is empty."
    if file.suffix != ".json":
        return ""
    try:
        value = json.loads(content)
    except ValueError as error:  # also text that is not UTF-8
        return f"{file.name} is not valid JSON, so it is damaged or cut off: {error}."
    if not isinstance(value, dict):
        return f"{file.name} is not a JSON object."
    if file.name == FAST_FILE and not (isinstance(value.get("model"), dict) and value["model"].get("vocab")):
        return f"The vocabulary in {file.name} is empty."
    return f"The vocabulary in {file.name} is empty." if file.name == "vocab.json" and not value else ""


def _find_missing_package(vocabularies: list[Path]) -> str | None:
    """Return the first package that is needed to read vocabularies other than tokenizer.json, and not installed."""
    models = [file for file in vocabularies if file.suffix == ".model"]
    if any(file.suffix == ".tiktoken" or _is_tiktoken(file) for file in vocabularies):
        return None if find_spec("tiktoken") else "tiktoken"
    if models and not find_spec("sentencepiece"):
        return "sentencepiece"
    return "protobuf" if models and not _is_installed("google.protobuf") else None


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False


def _is_tiktoken(file: Path) -> bool:
    """Return whether a file has the format of tiktoken: a token in base64 and its number on every line."""
    with file.open("rb") as opened:
        token, _, number = opened.readline(10_000).partition(b" ")
    try:
        return bool(base64.b64decode(token, validate=True)) and number.strip().isdigit()
    except ValueError:
        return False

"""The database of a ledger: open it, and detect damaged records."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL, make_url

from toast_cli.storage.checksums import add_checksum, parse_checksummed_json
from toast_cli.utils.errors import ToastError

MAX_OPEN_ATTEMPTS, RETRY_DELAY_SECONDS = 4, 0.5
"""Attempts to open a database, and the seconds between two attempts."""
OBJECTIVE_KEY = "value"
"""Key of the trial's value in a checksummed record."""


def make_sqlite_url(file: Path) -> str:
    """Return the URL of an SQLite file; characters that a URL gives a meaning, such as `?` and `%`, are quoted."""
    return URL.create("sqlite", database=str(file)).render_as_string()


def open_storage(url: str) -> Any:
    """Return the Optuna storage of a ledger's URL.

    Raises:
        ToastError: the storage cannot be opened.
    """
    kind, _, place = url.partition(":")
    if kind == "memory":
        return optuna.storages.InMemoryStorage()
    try:
        if kind == "journal":
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend

            Path(place).parent.mkdir(parents=True, exist_ok=True)
            return JournalStorage(JournalFileBackend(place))
        check_database_file(url)
        # SQLite allows one writer at a time. The timeout makes the others wait instead of fail.
        wait = {"connect_args": {"timeout": 120}} if kind.startswith("sqlite") else {}
        for left in reversed(range(MAX_OPEN_ATTEMPTS)):
            try:
                return optuna.storages.RDBStorage(url, engine_kwargs={**wait, "pool_pre_ping": True})
            except Exception as error:
                # If two workers open an empty database at once, one sees the incomplete tables of the other.
                if not left or isinstance(error, ImportError):
                    raise
                time.sleep(RETRY_DELAY_SECONDS)
    except ToastError:
        raise
    except Exception as error:  # the type depends on the database driver
        raise ToastError(
            f"Cannot open the ledger {mask_password(url)}.",
            f"{type(error).__name__}: {error}".partition("\n")[0],
            "Use sqlite:///FILE, journal:FILE, or the URL of a database whose driver is installed.",
            code="bench.ledger-not-opened",
        ) from error


def check_database_file(url: str) -> None:
    """Run SQLite's integrity check on the file of a ledger, if it is an existing SQLite file.

    Raises:
        ToastError: the file is damaged.
    """
    if not url.startswith("sqlite:///"):
        return
    file = Path(make_url(url).database or "")
    if not file.is_file():
        return
    with convert_read_errors(url), contextlib.closing(sqlite3.connect(file, timeout=120)) as database:
        problems = [row[0] for row in database.execute("PRAGMA quick_check")]
        if problems != ["ok"]:
            raise sqlite3.DatabaseError(problems[0])


@contextlib.contextmanager
def convert_read_errors(url: str) -> Iterator[None]:
    """Convert any exception of the block, which reads the ledger, to a `ToastError`.

    Raises:
        ToastError: the ledger cannot be read.
    """
    try:
        yield
    except (ToastError, DuplicatedStudyError):
        raise
    except Exception as error:  # a driver may raise any type for damaged bytes
        raise _make_ledger_error(url, f"{type(error).__name__}: {error}".partition("\n")[0]) from error


def make_checksummed_record(record: Mapping[str, Any], value: float | None) -> dict[str, Any]:
    """Return the record of a run with its value and a checksum, in the form that the ledger stores."""
    return add_checksum({**record, OBJECTIVE_KEY: value})


def read_trial_record(trial: FrozenTrial, url: str) -> dict[str, Any]:
    """Return the record of a trial's run. A record of an earlier version has no checksum and is not verified.

    Raises:
        ToastError: the record or its value differs from what was written.
    """
    with convert_read_errors(url):
        record = parse_checksummed_json(json.dumps(trial.user_attrs["record"]))
        # Optuna sets the value of a pruned trial to the last reported one, which is not used.
        if record.pop(OBJECTIVE_KEY, trial.value) != trial.value and trial.state == TrialState.COMPLETE:
            raise ValueError("the value of a run differs from the one in its record")
        return record


def mask_password(url: str) -> str:
    """Return a database URL without its password."""
    server, at, rest = url.rpartition("@")
    scheme, slashes, user = server.partition("://")
    return f"{scheme}{slashes}{user.partition(':')[0]}{at}{rest}"


def _make_ledger_error(url: str, why: str) -> ToastError:
    return ToastError(
        f"The ledger {mask_password(url)} is damaged or unreachable.",
        why,
        "Move it away and run the command again: results of finished runs are read from their folders.",
        code="bench.ledger-unreadable",
    )

"""The database of a ledger: how it is opened, and that damage is found out, so that no number is a wrong one."""

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

from toast_cli.storage.checksums import add_checksum, parse_checksummed_json
from toast_cli.utils.errors import ToastError

MAX_OPEN_ATTEMPTS, RETRY_DELAY_SECONDS = 4, 0.5
"""How often a database is tried to be opened, and the seconds in between."""
OBJECTIVE_KEY = "value"
"""What the number that decides is called within a sealed record."""


def open_storage(url: str) -> Any:
    """The Optuna storage that a ledger's URL means.

    Raises:
        ToastError: it cannot be opened.
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
        # SQLite lets one process write at a time; the others wait for it rather than fail.
        wait = {"connect_args": {"timeout": 120}} if kind.startswith("sqlite") else {}
        for left in reversed(range(MAX_OPEN_ATTEMPTS)):
            try:
                return optuna.storages.RDBStorage(url, engine_kwargs={**wait, "pool_pre_ping": True})
            except Exception as error:
                # Of two workers that meet an empty database, one finds the other's half-made tables.
                if not left or isinstance(error, ImportError):
                    raise
                time.sleep(RETRY_DELAY_SECONDS)
    except ToastError:
        raise
    except Exception as error:  # whatever the database's driver raises
        raise ToastError(
            f"The ledger {mask_password(url)} could not be opened.",
            f"{type(error).__name__}: {error}".partition("\n")[0],
            "Give sqlite:///FILE, journal:FILE, or the URL of a database whose driver is installed.",
            code="bench.ledger-not-opened",
        ) from error


def check_database_file(url: str) -> None:
    """Have SQLite look through a ledger's file, where it is one that is there.

    Raises:
        ToastError: it is damaged.
    """
    file = Path(url.removeprefix("sqlite:///"))
    if not url.startswith("sqlite:///") or not file.is_file():
        return
    with convert_read_errors(url), contextlib.closing(sqlite3.connect(file, timeout=120)) as database:
        found = [row[0] for row in database.execute("PRAGMA quick_check")]
        if found != ["ok"]:
            raise sqlite3.DatabaseError(found[0])


@contextlib.contextmanager
def convert_read_errors(url: str) -> Iterator[None]:
    """Within the block, a ledger is read; what goes wrong is told as what it is.

    Raises:
        ToastError: it cannot be read.
    """
    try:
        yield
    except (ToastError, DuplicatedStudyError):
        raise
    except Exception as error:  # whatever the database's driver makes of bytes that nobody wrote
        raise _make_ledger_error(url, f"{type(error).__name__}: {error}".partition("\n")[0]) from error


def make_checksummed_record(record: Mapping[str, Any], value: float | None) -> dict[str, Any]:
    """What a run left, as a ledger keeps it: sealed, with the number that decides."""
    return add_checksum({**record, OBJECTIVE_KEY: value})


def read_trial_record(trial: FrozenTrial, url: str) -> dict[str, Any]:
    """What the run of a trial left; one of an older toast has no seal and is taken as it is.

    Raises:
        ToastError: it is not what was written.
    """
    with convert_read_errors(url):
        record = parse_checksummed_json(json.dumps(trial.user_attrs["record"]))
        # Optuna gives a pruned trial the last value that was reported; nothing is decided by it.
        if record.pop(OBJECTIVE_KEY, trial.value) != trial.value and trial.state == TrialState.COMPLETE:
            raise ValueError("a run's number is not the one in its record")
        return record


def mask_password(url: str) -> str:
    """A database's URL as it may be shown."""
    server, at, rest = url.rpartition("@")
    scheme, slashes, user = server.partition("://")
    return f"{scheme}{slashes}{user.partition(':')[0]}{at}{rest}"


def _make_ledger_error(url: str, why: str) -> ToastError:
    return ToastError(
        f"The ledger {mask_password(url)} is damaged or cannot be reached.",
        why,
        "Move it away and start the command again: finished runs are taken from their folders, not made anew.",
        code="bench.ledger-unreadable",
    )

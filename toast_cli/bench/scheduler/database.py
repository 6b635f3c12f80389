"""Opening what a ledger is kept in, which another worker may be making at this moment."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import optuna

from toast_cli.bench.scheduler.integrity import check_database_file, mask_password
from toast_cli.utils.errors import ToastError

MAX_OPEN_ATTEMPTS, RETRY_DELAY_SECONDS = 4, 0.5
"""How often a database is tried to be opened, and the seconds in between."""


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
        ) from error

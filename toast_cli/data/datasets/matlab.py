"""MATLAB files, which contain the annotations of older data sets.

Reading a MATLAB file executes no code: it only contains numbers and strings.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toast_cli.data.images.files import open_file
from toast_cli.utils.errors import ToastError


def read_matlab(file: Path, *names: str, archive: str) -> Mapping[str, Any]:
    """Return the variables of a MATLAB file, loaded by SciPy with `squeeze_me=True`.

    Args:
        file: The file.
        names: Variables that the file must contain.
        archive: The archive that contains the file, for error messages.

    Raises:
        ToastError: If the file cannot be read or a variable is missing.
    """
    from scipy.io import loadmat

    try:
        with open_file(file) as stream:
            variables = loadmat(stream, squeeze_me=True, struct_as_record=False)
    except Exception as error:  # a damaged file makes SciPy raise errors of many types
        raise ToastError(
            f"Cannot read the annotation file {file}.",
            f"{type(error).__name__}: {error}",
            f"Unpack {archive} again.",
            code="data.unreadable-file",
        ) from error
    missing = [name for name in names if name not in variables]
    if missing:
        raise ToastError(
            f"{file} does not contain {', '.join(missing)}.",
            f"It contains {', '.join(name for name in variables if not name.startswith('__')) or 'no variables'}.",
            f"Unpack {archive} again.",
            code="data.invalid-annotation",
        )
    return variables


def flatten_column(values: Any) -> list[Any]:
    """Return a MATLAB row or column as a list, also if it is a single value."""
    import numpy as np

    return list(np.atleast_1d(values).ravel())

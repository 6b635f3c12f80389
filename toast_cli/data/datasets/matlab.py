"""MATLAB files: what the annotations of the older data sets are kept in. Holds numbers and texts; runs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toast_cli.data.images.files import open_file
from toast_cli.utils.errors import ToastError


def read_matlab(file: Path, *wanted: str, archive: str) -> Mapping[str, Any]:
    """The variables of a file, as SciPy gives them with single values taken out of their arrays.

    Raises:
        ToastError: it cannot be read, or one of `wanted` is not in it; `archive` is then to be unpacked anew.
    """
    from scipy.io import loadmat

    try:
        with open_file(file) as stream:
            found = loadmat(stream, squeeze_me=True, struct_as_record=False)
    except Exception as error:  # SciPy raises whatever a damaged file makes it trip over
        raise ToastError(
            f"The annotation file {file} cannot be read.",
            f"{type(error).__name__}: {error}",
            f"Unpack {archive} anew.",
            code="data.unreadable-file",
        ) from error
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ToastError(
            f"{file} does not hold {', '.join(missing)}.",
            f"It holds {', '.join(name for name in found if not name.startswith('__')) or 'nothing'}.",
            f"Unpack {archive} anew.",
            code="data.invalid-annotation",
        )
    return found


def flatten_column(values: Any) -> list[Any]:
    """A MATLAB row or column as a list, one of a single value too."""
    import numpy as np

    return list(np.atleast_1d(values).ravel())

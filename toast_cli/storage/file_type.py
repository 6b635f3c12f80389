"""Detection of the type of a file that could not be read, by its first bytes, for error messages. Torch-free."""

from __future__ import annotations

import zipfile
from pathlib import Path

from toast_cli.utils.files import LFS_POINTER, require_regular_file

HEADER_BYTES = 64
"""Number of bytes that are read."""

TORCH_FILE_DESCRIPTION = "a torch.save file, which 'toast import' and --weights can read"

_MAGIC_BYTES = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "a gzip archive"),
    (LFS_POINTER, "a Git LFS pointer instead of the file itself"),
    (b"<", "an HTML or XML page"),
)


def describe_file_type(path: Path, wanted: str = "") -> str:
    """Return one sentence about a file that could not be read, such as `o.onnx is an ONNX graph, ...`.

    Return an empty string if the type is unknown or is the `wanted` type.
    """
    kind = _detect_file_type(path)
    return f"{path.name} is {kind}." if kind and kind != wanted else ""


def _detect_file_type(path: Path) -> str:
    if path.is_dir():
        return "a folder"
    try:
        with require_regular_file(path).open("rb") as file:
            first = file.read(HEADER_BYTES)
    except OSError:
        return ""
    if not first:
        return "empty"
    if path.suffix == ".onnx":
        return "an ONNX graph, which ONNX Runtime can run"
    if zipfile.is_zipfile(path):
        return _detect_zip_type(path)
    for beginning, kind in _MAGIC_BYTES:
        if first.startswith(beginning):
            return kind
    if first[0] == 0x80 and first[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and first[8:9] != b"{":
        return "a plain pickle, which is not read because it can execute code"
    printable = all(32 <= byte < 127 or byte in b"\t\r\n" for byte in first)
    if printable and first.lstrip()[:1] in (b"{", b"["):
        return "JSON text"
    # A safetensors file begins with the length of the JSON that follows.
    if first[8:9] == b"{" and path.suffix != ".safetensors":
        return "a safetensors file under another name"
    if printable:
        return "plain text"
    return ""


def _detect_zip_type(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return ""
    inner = {name.rpartition("/")[2] for name in names}
    if "archive_format" in inner or "models" in {part for name in names for part in name.split("/")[:-1]}:
        return "a torch.export program, which torch.export.load can open"
    if "constants.pkl" in inner:
        return "a TorchScript program, which torch.jit.load can open"
    if "data.pkl" in inner:
        return TORCH_FILE_DESCRIPTION
    return "a zip archive"

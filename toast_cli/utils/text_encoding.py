"""What a file that is not UTF-8 text is instead: another kind of file, or text in another encoding."""

from __future__ import annotations

import codecs
import shlex
from pathlib import Path

from toast_cli.utils.errors import ToastError

FILE_SIGNATURES = {
    b"PK\x03\x04": "a ZIP archive (perhaps an Excel workbook, .xlsx)",
    b"PK\x05\x06": "an empty ZIP archive",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old document of Microsoft Office (perhaps an Excel workbook, .xls)",
    b"\x1f\x8b": "compressed with gzip",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ\x00": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3\x00": "an SQLite database",
    b"%PDF-": "a PDF document",
    b"\x89PNG\r\n": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
}
"""Kinds of files by the bytes that they begin with."""

READING = {
    "compressed with gzip": "Add .gz to its name.",
    "compressed with bzip2": "Add .bz2 to its name.",
    "compressed with xz": "Add .xz to its name.",
    "compressed with Zstandard": "Add .zst to its name.",
    "a Parquet file": "Let its name end in .parquet.",
}
"""What to do with files whose name alone is wrong."""

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Encodings by the bytes that a file begins with."""

SHOWN_BYTES = 20
"""Number of bytes before a wrong byte that an error shows."""

MOST_UNUSUAL = 0.05
"""Largest share of the characters of a text that cannot be printed. Bytes that are no text have far more."""

LEAST_COHERENCE = 0.1
"""Least share of the usual letters of a language, of 1, in a text whose encoding is guessed."""


def find_file_kind(content: bytes) -> str | None:
    """Return the kind of a file that is not text, with its article, from its first bytes; None if it is not known."""
    kind = next((kind for signature, kind in FILE_SIGNATURES.items() if content.startswith(signature)), None)
    return "a tar archive" if kind is None and content[257:262] == b"ustar" else kind


def find_encoding(content: bytes) -> str | None:
    """Return the encoding of a text that is not UTF-8, if its bytes leave no doubt: UTF-16 or UTF-32.

    Without a byte order mark, null bytes show it: text of any language has line breaks, spaces or quotation marks, in
    which all bytes but one are null. Other encodings of bytes cannot be told apart with certainty.
    """
    marked = next((name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark)), None)
    names = [marked] if marked else ["UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE"] if b"\0" in content else []
    for name in names:
        try:
            text = content.decode(name)
        except UnicodeDecodeError:
            continue
        start = text[:10_000]
        unusual = sum(not (character.isprintable() or character in "\n\r\t\ufeff") for character in start)
        if marked or (any(blank in start for blank in '\n "') and unusual <= MOST_UNUSUAL * len(start)):
            return name
    return None


def make_encoding_error(
    path: Path, content: bytes, position: int, code: str = "data.unreadable-file", compressed: bool = False
) -> ToastError:
    """Return the error on a file that is not UTF-8 text: what it is, as far as that is certain, and what to do.

    Args:
        path: the file, for messages.
        content: its bytes, decompressed.
        position: the place of the first byte that is wrong.
        code: the code of the error.
        compressed: whether the file has to be decompressed before it can be converted.
    """
    if (kind := find_file_kind(content)) is not None:
        what_to_do = READING.get(kind, "Export its texts as .jsonl, .csv or .parquet.")
        return ToastError(f"Cannot read {path}.", f"It is not a text file: it is {kind}.", what_to_do, code=code)
    encoding = find_encoding(content)
    line = content.count(b"\n", 0, position) + 1
    source = path.with_suffix("") if compressed else path
    command = f"iconv -f {encoding or 'ENCODING'} -t UTF-8 {shlex.quote(str(source))} > "
    command += shlex.quote(f"utf8-{source.name}")
    if encoding is not None:
        why = f"Line {line} is not UTF-8 text: the file is in {encoding}."
        return ToastError(f"Cannot read {path}.", why, f"Save it as UTF-8, for example with: {command}", code=code)
    before = content[max(0, position - SHOWN_BYTES) : position].rpartition(b"\n")[2].decode(errors="ignore")
    shown = content[position : position + 1].hex()
    column = position - content.rfind(b"\n", 0, position)
    place = f"byte {column:,} of the line is 0x{shown}" + (f", after {before!r}" if before else "")
    return ToastError(
        f"Cannot read {path}.",
        f"Line {line} is not UTF-8 text ({place}), and its encoding is not known{_suggest_encoding(content)}.",
        "Save it as UTF-8 with the program that wrote it, or convert it with the name of its encoding, such as CP1252, "
        f"GBK, CP1251 or SHIFT_JIS: {command}. Then check that the texts look right.",
        code=code,
    )


def _suggest_encoding(content: bytes) -> str:
    """Return a guess in words if charset-normalizer is installed and finds a single encoding without any disorder."""
    try:
        from charset_normalizer import from_bytes
    except ImportError:
        return ""
    found = list(from_bytes(content[:20_000]))
    if len({str(match) for match in found}) != 1 or found[0].chaos > 0 or found[0].coherence < LEAST_COHERENCE:
        return ""
    return f" (perhaps {found[0].encoding})"

"""What a file holds: its name says which format it is, and its first bytes whether it is something else.

The name as the user gives it decides, because the target of a link often has no name that says anything (the caches of
the Hub, DVC and git-annex are made of such links). Only for a link whose own name has no ending is the target's taken.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from nanokimi.errors import UserError

COMPRESSIONS = (".gz", ".zst")
SAME_FORMAT = {".ndjson": ".jsonl", ".jsonlines": ".jsonl"}
COLUMN_FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
FORMATS = (".txt", *COLUMN_FORMATS)
"""What is read as documents; other plain text is read as a .txt is."""
ENDINGS = ".txt, .jsonl (.ndjson), .json, .csv, .tsv or .parquet"
CONVERT = "convert it to .txt, .jsonl, .csv or .parquet"
UNPACK = "unpack it, and name what it holds"
REFUSED_NAMES = {
    **dict.fromkeys((".zip", ".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar", ".bz2", ".xz", ".lz4"), UNPACK),
    ".bin": "token ids are read from a folder with train.bin and val.bin: name that; anything else has to be text",
    **dict.fromkeys(
        (".arrow", ".feather", ".orc", ".avro", ".xlsx", ".xls", ".ods", ".sqlite", ".db"), CONVERT
    ),
    **dict.fromkeys((".pdf", ".doc", ".docx", ".odt", ".epub", ".rtf", ".msgpack", ".tfrecord"), CONVERT),
    **dict.fromkeys(
        (".npy", ".npz", ".pkl", ".pickle", ".pt", ".pth", ".h5", ".hdf5", ".safetensors"), CONVERT
    ),
}
SIGNATURES = (
    (0, b"PK\x03\x04", "a zip archive", UNPACK),
    (257, b"ustar\0", "a tar archive", UNPACK),
    (257, b"ustar  \0", "a tar archive", UNPACK),
    (0, b"\x1f\x8b", "packed with gzip", "give it a name that ends in .gz"),
    (0, b"\x28\xb5\x2f\xfd", "packed with zstd", "give it a name that ends in .zst"),
    (0, b"BZh", "packed with bzip2", UNPACK),
    (0, b"\xfd7zXZ\0", "packed with xz", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (0, b"Rar!\x1a\x07", "a rar archive", UNPACK),
    (0, b"PAR1", "a parquet file", "give it a name that ends in .parquet"),
    (0, b"ARROW1", "an Arrow file", CONVERT),
    (0, b"%PDF-", "a PDF", CONVERT),
    (0, b"\x93NUMPY", "a numpy array", CONVERT),
    (0, b"\x89HDF\r\n", "an HDF5 file", CONVERT),
    (0, b"SQLite format 3\0", "an SQLite data base", CONVERT),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document", CONVERT),
    (0, b"\x89PNG\r\n", "a picture", "name a text file"),
    (0, b"\xff\xd8\xff", "a picture", "name a text file"),
    (0, b"GIF8", "a picture", "name a text file"),
    (0, b"\x7fELF", "a program", "name a text file"),
)
POINTER = b"version https://git-lfs.github.com/"
WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")
"""Byte-order marks of UTF-16 and UTF-32."""
HEAD = 1 << 16
"""Bytes from the beginning of a file that are looked at."""
NUL_SHARE, NUL_BYTES = 1 / 8, 64
"""More NUL characters than this share, of so many bytes at least, are no text."""
MAX_LINKS = 40


def telling_name(path: Path) -> str:
    """The name that says what a file holds, in lower case."""
    for _ in range(MAX_LINKS):
        if path.suffix or not os.path.islink(path):
            break
        path = path.parent / os.readlink(path)
    return path.name.lower()


def compression_of(path: Path) -> str:
    """The ending that says how a file is packed; "" if it is not."""
    suffix = Path(telling_name(path)).suffix
    return suffix if suffix in COMPRESSIONS else ""


def format_of(path: Path) -> str | None:
    """The format that a file's name says, without compression; None for any other."""
    name = telling_name(path)
    packed = compression_of(path)
    suffix = Path(name.removesuffix(packed)).suffix
    suffix = SAME_FORMAT.get(suffix, suffix)
    return suffix if suffix in FORMATS and not (packed and suffix == ".parquet") else None


def refused_name(path: Path) -> str | None:
    """Why a file is not read, if its name says that it cannot be text."""
    suffix = Path(telling_name(path).removesuffix(compression_of(path))).suffix
    if suffix == ".parquet" and compression_of(path):
        return "a parquet file is not packed once more: " + UNPACK
    return f"{suffix} is not read: {REFUSED_NAMES[suffix]}" if suffix in REFUSED_NAMES else None


def no_text(head: bytes) -> str | None:
    """Why a file that begins with `head` is no text, and what to do; None if it may be text."""
    if head.startswith(POINTER):
        return "is a Git LFS pointer and not the file itself: fetch it with git lfs pull"
    for offset, signature, what, advice in SIGNATURES:
        if head.startswith(signature, offset):
            return f"is {what}, whatever its name: {advice}"
    nuls = head.count(0)
    if len(head) >= NUL_BYTES and nuls > len(head) * NUL_SHARE and not head.startswith(WIDE_MARKS):
        return (
            f"is not UTF-8 text ({nuls / len(head):.0%} of its first {len(head)} bytes are NUL): name a text file or, "
            f"if it is UTF-16, convert it with iconv -f utf-16{'be' if head[0] == 0 else 'le'} -t utf-8"
        )
    return None


def looks_like_json_lines(head: bytes) -> bool:
    """Whether the first lines, of two at least, are JSON objects."""
    lines = head.split(b"\n")[:3][: 2 if head.count(b"\n") > 1 else None]
    lines = [line for line in lines if line.strip()]
    try:
        return len(lines) > 1 and all(isinstance(json.loads(line), dict) for line in lines)
    except (ValueError, RecursionError):
        return False


def encoding_advice(start: bytes, around: bytes) -> str:
    """What to do about a file that begins with `start` and is not UTF-8 somewhere in `around`."""
    if start.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "convert it, for example with: iconv -f utf-32 -t utf-8"
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "convert it, for example with: iconv -f utf-16 -t utf-8"
    text = around.decode("utf-8", errors="replace")
    bad = text.count("\ufffd")
    if sum(character > "\x7f" for character in text) > 11 * bad:
        return "the text around it is UTF-8, so repair that place"
    if len(re.findall(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]", around)) > len(around) // 100:
        return "it does not look like text, so name a text file"
    # In a European language, letters beyond ASCII stand alone; in others they stand side by side.
    runs = re.findall(rb"[\x80-\xff]+", around)
    if sum(len(run) == 1 for run in runs) >= 0.8 * len(runs):
        encoding = "windows-1252" if re.search(rb"[\x80-\x9f]", around) else "latin1"
        return f"convert it, for example with: iconv -f {encoding} -t utf-8"
    return (
        "find out its encoding (gb18030, big5, shift_jis, euc-kr and windows-1251 are common) and convert it with: "
        "iconv -f ENCODING -t utf-8"
    )


def require_text_name(path: Path) -> None:
    """Raise UserError for a file whose name says that it is no text."""
    if reason := refused_name(path):
        raise UserError(f"{path}: {reason}")

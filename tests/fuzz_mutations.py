"""Ways to damage a file, as hypothesis strategies: bytes, JSON, YAML, safetensors, protobuf and pickles.

Most of what they make is nearly right, because what is all wrong is refused by the first line of every reader.
"""

from __future__ import annotations

import gzip
import json
import math
import struct
from typing import Any, NamedTuple

from hypothesis import strategies as st

NUMBERS = (
    0,
    1,
    -1,
    2,
    127,
    255,
    256,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**63 - 1,
    2**63,
    2**64,
    -(2**63),
)
STRINGS = (
    *(
        "",
        " ",
        "a",
        "\0",
        "\ufeff",
        "\ud800",
        "\udfff\ud800",
        "\u202e",
        "\x1b[2J",
        "line\nbreak",
        "\r",
        "\u2028",
    ),
    *(
        "../../canary/file",
        "/etc/passwd",
        "..",
        ".",
        "~nobody-here/x",
        "x" * 5000,
        "\U0010ffff",
        "<0xZZ>",
        "<0xFF>",
    ),
    *(
        "NaN",
        "1e5",
        "true",
        "null",
        "[UNK]",
        "<unk>",
        "<|endoftext|>",
        "\u2581",
        "((a+)+)+$",
        "(a+)+b",
        "(",
        "[a-",
        "\\",
    ),
)
BYTES = (
    *(b"", b"\0", b"\0" * 64, b"\xff" * 16, b"\xef\xbb\xbf", b"\xff\xfe", b"\r\n", b"\r", b"\n", b"\n\n\n"),
    *(
        b"\xed\xa0\x80",
        b"\x80",
        b"\xf4\x90\x80\x80",
        b"\xc0\xaf",
        b"\xe2\x80\xa8",
        b"\x1f\x8b",
        b"\x28\xb5\x2f\xfd",
    ),
    *(struct.pack("<q", n) for n in (0, -1, 1, 2**31, 2**62)),
    *(struct.pack("<i", n) for n in (-1, 2**31 - 1)),
    *(b"<|endoftext|>", b"\n<|endoftext|>\n", b"[" * 3000, b"{" * 3000, b"9" * 5000, b"PAR1", b"x" * 70000),
)


class Link(NamedTuple):
    """A symbolic link in the place of a file."""

    target: str


class Raw(str):
    """A piece of JSON as it stands, right or wrong."""


class Pairs(list[tuple[str, Any]]):
    """A JSON object, in which a key may stand twice."""


RAW = tuple(
    map(
        Raw,
        (
            "NaN",
            "Infinity",
            "-Infinity",
            "1e999",
            "-1e999",
            "9" * 5000,
            "01",
            "0x10",
            "'a'",
            "",
            "nul",
            "1.",
            "-",
        ),
    )
) + (Raw("[" * 900 + "]" * 900), Raw("[" * 200_000), Raw('{"a":' * 5000 + "1" + "}" * 5000), Raw('"\\ud800"'))

scalars = (
    st.sampled_from([None, True, False, *NUMBERS, 10**30, 0.5, -0.5, 1e308, 1e-320, *STRINGS])
    | st.integers(-10, 1000)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
hostile_values = (
    st.sampled_from(RAW)
    | scalars
    | st.lists(scalars, max_size=3)
    | st.dictionaries(st.text(max_size=4), scalars, max_size=2).map(lambda d: Pairs(d.items()))
)


# ---- bytes


@st.composite
def damaged(draw: st.DrawFn, base: bytes, most: int = 4) -> bytes:
    """`base` with one to `most` small injuries."""
    data = base
    for _ in range(draw(st.integers(1, most))):
        data = _injure(draw, data)
    return data


def _injure(draw: st.DrawFn, data: bytes) -> bytes:
    size = len(data)
    ends = st.integers(0, min(64, size)) | st.integers(max(size - 64, 0), size)
    at = draw(st.integers(0, size) | ends)
    kind = draw(
        st.sampled_from("flip flip byte byte cut cut insert write remove repeat swap line_ends add".split())
    )
    if kind == "flip" and at < size:
        return data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
    if kind == "byte" and at < size:
        return data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
    if kind == "cut":
        return data[:at]
    piece = draw(st.sampled_from(BYTES) | st.binary(max_size=8))
    if kind == "insert":
        return data[:at] + piece + data[at:]
    if kind == "write":
        return data[:at] + piece + data[at + len(piece) :]
    other = min(size, at + draw(st.integers(0, 200)))
    if kind == "remove":
        return data[:at] + data[other:]
    if kind == "repeat":
        return data[:other] + data[at:other] * draw(st.sampled_from([1, 2, 50])) + data[other:]
    if kind == "swap":
        return data[other:] + data[:other]
    if kind == "line_ends":
        return data.replace(b"\n", draw(st.sampled_from([b"\r\n", b"\r", b"\n\n", b"\0"])))
    return data + piece


def any_bytes(base: bytes) -> st.SearchStrategy[bytes]:
    """Damaged `base`, now and then `base` itself, and now and then bytes that have nothing to do with it."""
    return st.one_of(damaged(base), damaged(base), damaged(base), st.just(base), st.binary(max_size=200))


@st.composite
def packed(draw: st.DrawFn, plain: bytes, suffix: str) -> bytes:
    """`plain` compressed, whole or damaged, in one frame or two; or a bomb of 64 MB."""
    import zstandard

    def pack(data: bytes) -> bytes:
        return gzip.compress(data, 1, mtime=0) if suffix == ".gz" else zstandard.compress(data)

    kind = draw(st.sampled_from(["whole", "damaged", "damaged", "two", "rest", "bomb"]))
    if kind == "bomb":
        letter = draw(st.sampled_from([b"\0", b"a", b"\n", b'{"', b"[", b"\xff", b"a b\n"]))
        return _bomb(letter, suffix)
    data = pack(plain)
    if kind == "two":
        return data + pack(draw(st.sampled_from([b"", plain, b"\xff"])))
    if kind == "rest":
        return data + draw(st.sampled_from(BYTES))
    return data if kind == "whole" else draw(damaged(data))


_BOMBS: dict[tuple[bytes, str], bytes] = {}


def _bomb(letter: bytes, suffix: str, size: int = 4 << 20) -> bytes:
    if (letter, suffix) not in _BOMBS:
        import zstandard

        data = letter * (size // len(letter))
        _BOMBS[letter, suffix] = gzip.compress(data, 1) if suffix == ".gz" else zstandard.compress(data)
    return _BOMBS[letter, suffix]


# ---- JSON


def parse(text: str | bytes) -> Any:
    """JSON with its objects as `Pairs`."""
    return json.loads(text, object_pairs_hook=Pairs)


def encode(value: Any) -> str:
    """What `parse` reads, and anything else that was put into it."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{encode(str(key))}: {encode(item)}" for key, item in value) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(encode, value)) + "]"
    return json.dumps(value)


@st.composite
def damaged_json(draw: st.DrawFn, base: str | bytes, most: int = 3) -> bytes:
    """JSON with one to `most` values removed, replaced, repeated, renamed, added, wrapped or exchanged."""
    tree = [parse(base)]
    for _ in range(draw(st.integers(1, most))):
        _change(draw, tree)
    text = encode(tree[0] if tree else Raw(""))
    return text.encode("utf-8", "surrogatepass")


def _change(draw: st.DrawFn, tree: list[Any]) -> None:
    """One change, in place, at a node reached by walking down from the root."""
    node, at = tree, 0
    while node:
        at = draw(st.integers(0, len(node) - 1))
        inner = node[at][1] if isinstance(node, Pairs) else node[at]
        if not isinstance(inner, list) or not inner or (node is not tree and draw(st.integers(0, 3)) == 0):
            break
        node = inner
    if not node:
        return
    key, value = node[at] if isinstance(node, Pairs) else ("", node[at])
    kind = draw(st.sampled_from("replace replace replace remove repeat rename add wrap near".split()))
    fresh = draw(hostile_values)
    if kind == "near" and isinstance(value, int | float):
        fresh = draw(
            st.sampled_from([value + 1, value - 1, -value, value * 2, value + 0.5, str(value), [value]])
        )
    elif kind == "wrap":
        fresh = [value]
    elif kind == "remove":
        del node[at]
        return
    elif kind == "rename":
        key, fresh = draw(st.sampled_from(STRINGS) | st.text(max_size=4)), value
    elif kind in ("repeat", "add"):
        name = key if kind == "repeat" else draw(st.text(max_size=4))
        node.append((name, fresh) if isinstance(node, Pairs) else fresh)
        return
    node[at] = (key, fresh) if isinstance(node, Pairs) else fresh


def any_json(base: str | bytes) -> st.SearchStrategy[bytes]:
    """Damaged as JSON, mostly; else damaged as bytes."""
    data = base.encode() if isinstance(base, str) else base
    return st.one_of(damaged_json(base), damaged_json(base), damaged_json(base), any_bytes(data))


# ---- YAML

YAML_VALUES = (
    *(
        "!!python/object/apply:os.system ['touch PWNED']",
        "!!python/name:os.system",
        "!!python/tuple [1, 2]",
        "!evil x",
    ),
    *(
        "!!binary x",
        "!!binary YWJj",
        "!!timestamp x",
        "2001-99-99",
        "2001-12-14t21:59:43.10-99:00",
        "0001-01-01",
    ),
    *(
        "2001-12-14 21:59:43 +23:59",
        "9999-12-31t23:59:59-14:00",
        "0001-01-01t00:00:00+14:00",
        "0x",
        "0b",
        "0b2",
        "0o9",
    ),
    *(
        "1:99:99",
        "1:" * 500 + "1",
        "9:" * 2000 + "1.5",
        "!!int ''",
        "!!int x",
        "!!int 1_",
        "!!float x",
        "!!float ''",
    ),
    *(
        "!!bool x",
        "!!bool yes",
        "!!null x",
        "!!set {a}",
        "!!omap [a]",
        "!!omap [{a: 1}]",
        "!!pairs [[a]]",
        "!!map [1]",
    ),
    *(
        "!!seq {a: 1}",
        "!!str [1]",
        "!!merge x",
        "&a [*a]",
        "&a {a: *a}",
        "*nosuch",
        "{<<: 1}",
        "{<<: [1]}",
        "=",
    ),
    *("[" * 2000, "[" * 90 + "]" * 90, "[" * 900 + "]" * 900, "{a: " * 900 + "1" + "}" * 900, "- " * 900),
    *(
        "9" * 5000,
        "0x" + "f" * 5000,
        "1e999",
        "1e-999",
        "1e400",
        "9" * 400,
        ".nan",
        ".inf",
        "-.inf",
        "1e3",
        "1E-3",
    ),
    *(
        "1_000",
        "-0",
        "+1",
        "1.",
        "true",
        "no",
        "~",
        "null",
        "''",
        '""',
        '"\\0"',
        '"\\ud800"',
        '"\\x1b[2J"',
        "|",
        ">-",
    ),
    *(
        "'",
        '"',
        "%YAML 9.9",
        "---",
        "...",
        "--- a\n--- b",
        "@",
        "`",
        "\t",
        "? [a]\n: b",
        "{[a]: b}",
        "{{a: 1}: 2}",
    ),
    *(
        "[1, 2]",
        "[0.9]",
        "[0.9, 0.95, 0.99]",
        "[]",
        "{}",
        "{a: 1}",
        "['']",
        "['a', 1]",
        "char",
        "auto",
        "cuda:99999999",
    ),
    *(
        "cuda:99999999999999999999",
        "adamw",
        "wsd",
        "nanogpt",
        "../../canary/x.json",
        "~nobody-here",
        "x" * 5000 + ".json",
    ),
)
LAUGHS = "a0: &a0 [lol, lol]\n" + "".join(
    f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 60)
)
LAUGHS_INSIDE = "[&a0 [x, x], " + ", ".join(f"&a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)) + "]"


@st.composite
def damaged_yaml(draw: st.DrawFn, base: str, keys: list[str]) -> bytes:
    """YAML lines with values replaced, lines removed, repeated, moved or added, and whatever YAML can do."""
    lines = base.split("\n")
    values = st.sampled_from((*YAML_VALUES, LAUGHS_INSIDE)) | scalars.map(lambda v: encode(v))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        line = lines[at]
        kind = draw(
            st.sampled_from("value value value value remove repeat indent key nest add laugh".split())
        )
        name, colon, _ = line.partition(":")
        if kind == "value" and colon:
            lines[at] = f"{name}: {draw(values)}"
        elif kind == "remove":
            lines[at : at + 1] = []
        elif kind == "repeat":
            lines.insert(draw(st.integers(0, len(lines))), line)
        elif kind == "indent":
            lines[at] = (
                draw(st.sampled_from([" ", "  ", "\t", "- ", "? ", "!!str ", "&a ", "*a ", ""])) + line
            )
        elif kind == "key" and colon:
            lines[at] = line.replace(
                name.strip(), draw(st.sampled_from([*keys, *STRINGS[:8], "<<", "1", "null"])), 1
            )
        elif kind == "nest":
            path = draw(st.sampled_from(keys)).split(".")
            text = "".join("  " * i + key + ":\n" for i, key in enumerate(path))[:-1]
            lines = [*text.split("\n"), *lines] if draw(st.booleans()) else text.split("\n")
            lines[len(path) - 1] += f" {draw(values)}"
        elif kind == "laugh":
            lines = [*LAUGHS.split("\n"), *lines, "seed: *a59"]
        else:
            lines.insert(at, draw(values))
        lines = lines or [""]
    text = "\n".join(lines).encode("utf-8", "surrogatepass")
    return draw(damaged(text, 1)) if draw(st.integers(0, 9)) == 0 else text


# ---- safetensors


@st.composite
def damaged_safetensors(draw: st.DrawFn, base: bytes) -> bytes:
    """A header of changed names, dtypes, shapes and offsets, over data of the right size or not."""
    if draw(st.integers(0, 4)) == 0:
        return draw(any_bytes(base))
    (size,) = struct.unpack("<Q", base[:8])
    header, data = base[8 : 8 + size], base[8 + size :]
    kind = draw(st.sampled_from(["json", "json", "tensor", "tensor", "data", "length"]))
    if kind == "json":
        header = draw(damaged_json(header))
    elif kind == "tensor":
        header, data = _change_tensor(draw, json.loads(header), data)
    elif kind == "data":
        data = draw(damaged(data))
    length = len(header)
    if kind == "length":
        length = draw(
            st.sampled_from([0, 1, length - 1, length + 1, length + 8, 2**31, 2**63, 2**64 - 1, 10**8])
        )
    return struct.pack("<Q", length) + header + data


def _change_tensor(draw: st.DrawFn, header: dict[str, Any], data: bytes) -> tuple[bytes, bytes]:
    """Another dtype, shape or value in a file that is whole."""
    name = draw(st.sampled_from(sorted(key for key in header if key != "__metadata__")))
    entry = header[name]
    start, stop = entry["data_offsets"]
    kind = draw(st.sampled_from(["dtype", "shape", "reshape", "values", "name", "drop_metadata"]))
    widths = {
        "F32": 4,
        "I32": 4,
        "U32": 4,
        "F16": 2,
        "BF16": 2,
        "I16": 2,
        "F64": 8,
        "I64": 8,
        "U8": 1,
        "BOOL": 1,
    }
    if kind == "dtype":
        new = draw(st.sampled_from(sorted(widths)))
        count = (stop - start) // widths.get(entry["dtype"], 4)
        if (stop - start) % widths[new] == 0:
            entry["shape"] = [(stop - start) // widths[new]] if draw(st.booleans()) else entry["shape"]
        entry["dtype"], entry["count"] = new, count
        del entry["count"]
    elif kind == "shape":
        entry["shape"] = draw(st.lists(st.sampled_from([0, 1, 2, 16, 2**31, 2**62, -1]), max_size=4))
    elif kind == "reshape":
        entry["shape"] = [*reversed(entry["shape"])] if draw(st.booleans()) else [math.prod(entry["shape"])]
    elif kind == "values":
        value = draw(st.sampled_from([math.nan, math.inf, -math.inf, 1e38, 0.0]))
        if entry["dtype"] == "F32":
            data = data[:start] + struct.pack("<f", value) * ((stop - start) // 4) + data[stop:]
    elif kind == "name":
        header[draw(st.sampled_from(["x", "0.", ".", "0", "-1.x", "9.momentum", "a.b.c", f"{name}.x"]))] = (
            header.pop(name)
        )
    else:
        header.pop("__metadata__", None)
    return json.dumps(header).encode(), data


# ---- protobuf

Field = tuple[int, int, Any]  # number, wire type, and an int, bytes or list of fields


def _varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = b""
    while True:
        out += bytes([value & 127 | (128 if value > 127 else 0)])
        value >>= 7
        if not value:
            return out


def read_fields(data: bytes, messages: tuple[int, ...] = (1, 2, 3, 4, 5)) -> list[Field]:
    """The fields of a SentencePiece model; those numbered in `messages` are read in turn."""
    fields: list[Field] = []
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        tag = number()
        kind = tag & 7
        if kind == 0:
            fields.append((tag >> 3, kind, number()))
            continue
        size = {1: 8, 5: 4}.get(kind) or number()
        content: Any = data[at : at + size]
        at += size
        fields.append(
            (tag >> 3, kind, read_fields(content, ()) if kind == 2 and tag >> 3 in messages else content)
        )
    return fields


def write_fields(fields: list[Field]) -> bytes:
    """The reverse of `read_fields`."""
    out = b""
    for number, kind, value in fields:
        content = write_fields(value) if isinstance(value, list) else value
        out += _varint(number << 3 | kind)
        out += _varint(content) if kind == 0 else _varint(len(content)) + content if kind == 2 else content
    return out


@st.composite
def damaged_protobuf(draw: st.DrawFn, base: bytes) -> bytes:
    """A SentencePiece model with pieces, scores, types and specifications changed."""
    if draw(st.integers(0, 3)) == 0:
        return draw(any_bytes(base))
    fields = read_fields(base)
    for _ in range(draw(st.integers(1, 4))):
        node = fields
        specs = [i for i, field in enumerate(fields) if field[0] != 1]
        at = draw(st.integers(0, len(node) - 1) | st.sampled_from(specs or [0]))
        if at < len(node) and isinstance(node[at][2], list) and node[at][2] and draw(st.integers(0, 3)):
            node = node[at][2]
            at = draw(st.integers(0, len(node) - 1))
        if at >= len(node):
            continue
        number, kind, value = node[at]
        action = draw(st.sampled_from("value value value remove repeat number kind".split()))
        if action == "value" and kind == 0:
            value = draw(st.sampled_from(NUMBERS) | st.integers(0, 8))
        elif action == "value" and kind == 2 and isinstance(value, bytes):
            value = draw(
                any_bytes(value) | st.sampled_from(STRINGS).map(lambda s: s.encode("utf-8", "surrogatepass"))
            )
        elif action == "value" and isinstance(value, bytes):
            special = struct.pack("<f", draw(st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1e38])))
            value = (special * 2)[: len(value)]
        elif action == "number":
            number = draw(st.integers(1, 50))
        elif action == "remove":
            del node[at]
            continue
        elif action == "repeat":
            node[at:at] = [node[at]] * draw(st.sampled_from([1, 2, 300]))
            continue
        node[at] = (number, kind, value)
        if not fields:
            return b""
    return write_fields(fields)


# ---- pickles

OPCODES = (
    *(
        b"cos\nsystem\n",
        b"(S'touch PWNED'\ntR",
        b"\x93",
        b"R",
        b"b",
        b"o",
        b"i\x6fs\nsystem\n",
        b"\x81",
        b"\x92",
        b"P0\n",
    ),
    *(
        b"Q",
        b"\x82\x01",
        b"\x83\x01\0",
        b"\x84\x01\0\0\0",
        b"0",
        b"2",
        b"1",
        b"(",
        b")",
        b"]",
        b"}",
        b"t",
        b"l",
        b"d",
    ),
    *(
        b"a",
        b"e",
        b"s",
        b"u",
        b"\x85",
        b"\x86",
        b"\x87",
        b"\x94",
        b"h\0",
        b"h\xff",
        b"j\xff\xff\xff\xff",
        b"q\0",
        b"g0\n",
    ),
    *(
        b"N",
        b"\x88",
        b"\x89",
        b"K\x01",
        b"M\0\1",
        b"J\xff\xff\xff\xff",
        b"I1\n",
        b"I01\n",
        b"I" + b"9" * 5000 + b"\n",
    ),
    *(
        b"L5L\n",
        b"Lx\n",
        b"\x8a\x02\xff\x7f",
        b"\x8a\xff",
        b"\x8b\xff\xff\xff\x7f",
        b"F1.5\n",
        b"G\0\0\0\0\0\0\0\0",
    ),
    *(
        b"\x8c\x01a",
        b"\x8c\xffa",
        b"X\xff\xff\xff\xffa",
        b"\x8d" + b"\xff" * 8,
        b"\x8e" + b"\xff" * 7 + b"\x7f",
        b"C\x01a",
    ),
    *(
        b"Va\n",
        b"V\\ud800\n",
        b"S'a'\n",
        b"\x80\x04",
        b"\x80\xff",
        b"\x95" + b"\xff" * 8,
        b".",
        b"\x90",
        b"\x91",
        b"\x8f",
    ),
    *(
        b"\x85\x94" * 2000,
        b"h\0h\0\x86\x94" * 60,
        b")\x94" + b"".join(b"h%ch%c\x86\x94" % (i, i) for i in range(60)),
    ),
)


@st.composite
def damaged_pickle(draw: st.DrawFn, base: bytes) -> bytes:
    """A pickle with instructions put into it, or made of nothing else."""
    kind = draw(st.sampled_from(["bytes", "insert", "insert", "fresh"]))
    if kind == "bytes":
        return draw(any_bytes(base))
    pieces = draw(st.lists(st.sampled_from(OPCODES), min_size=1, max_size=12))
    if kind == "fresh":
        return b"\x80\x04" + b"".join(pieces) + draw(st.sampled_from([b".", b"", b"s.", b"\x85."]))
    at = draw(st.integers(0, len(base)) | st.just(2) | st.just(len(base) - 1))
    return base[:at] + b"".join(pieces[:3]) + base[at:]

"""Ways to damage a file, as hypothesis strategies: bytes, JSON, YAML, safetensors, protobuf, pickles, archives.

Most of what they make is nearly right, because what is all wrong is refused by the first line of every reader.
"""

from __future__ import annotations

import gzip
import json
import math
import pickletools
import struct
from functools import cache
from pathlib import Path
from typing import Any

import yaml
import zstandard
from hypothesis import strategies as st

NUMBERS = [
    sign * (2**bits + more) for bits in (7, 8, 16, 31, 32, 53, 63, 64) for more in (-1, 0) for sign in (1, -1)
]
STRINGS = (
    " |   | a | \0 | \ufeff | \ud800 | \udfff\ud800 | \u202e | \x1b[2J | line\nbreak | \r | \u2028 | \U0010ffff"
    " | \u2581 | ../../canary/file | ../../canary/x.json | /etc/passwd | .. | . | ~nobody-here/x | <0xZZ> | <0xFF>"
    " | NaN | 1e5 | true | null | [UNK] | <unk> | <|endoftext|> | ((a+)+)+$ | (a+)+b | ( | [a- | \\"
).split(" | ") + ["x" * 5000, "x" * 5000 + ".json"]
BYTES = (
    b"\0 | \xff\xff\xff\xff\xff\xff\xff\xff | \xef\xbb\xbf | \xff\xfe | \r\n | \r | \n | \n\n\n | \xed\xa0\x80 | \x80"
    b" | \xf4\x90\x80\x80 | \xc0\xaf | \xe2\x80\xa8 | \x1f\x8b | \x28\xb5\x2f\xfd | <|endoftext|> | \n<|endoftext|>\n"
    b" | PAR1 | [] | 1 | null | {}"
).split(b" | ") + [b"\0" * 64, b"[" * 3000, b"{" * 3000, b"9" * 5000, b"x" * 70_000]
BYTES += [struct.pack("<q", number) for number in (1, 2**31, 2**62)] + [struct.pack("<i", 2**31 - 1)]
FLOATS = [math.nan, math.inf, -math.inf, 1e38, 0.0]

scalars = (
    st.sampled_from([None, True, False, 0, 10**30, 0.5, -0.5, 1e308, 1e-320, *NUMBERS, *STRINGS])
    | st.integers(-10, 1000)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=4), scalars, max_size=2)
LONG_PIECES = ["9" * 5000, "[" * 900 + "]" * 900, "[" * 200_000, '{"a":' * 5000 + "1" + "}" * 5000, "9" * 400]
JSON_PIECES = 'NaN Infinity -Infinity 1e999 -1e999 01 0x10 "\\ud800" nul 1. - {} []'.split() + [
    "",
    *LONG_PIECES,
]
json_pieces = st.sampled_from(JSON_PIECES) | values.map(json.dumps)

LAUGHS = "a0: &a0 [lol, lol]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 3}]\n" for n in range(1, 60))
LAUGHS_INSIDE = "[&a0 [x, x], " + ", ".join(f"&a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)) + "]"
YAML_PIECES = (
    "!!python/object/apply:os.system ['touch PWNED'] ; !!python/name:os.system ; !!python/tuple [1, 2] ; !evil x"
    " ; !!binary x ; !!binary YWJj ; !!timestamp x ; 2001-99-99 ; 2001-12-14t21:59:43.10-99:00 ; 0001-01-01"
    " ; 2001-12-14 21:59:43 +23:59 ; 9999-12-31t23:59:59-14:00 ; 0001-01-01t00:00:00+14:00 ; 0x ; 0b ; 0b2 ; 0o9"
    " ; 1:99:99 ; !!int '' ; !!int x ; !!int 1_ ; !!float x ; !!float '' ; !!bool x ; !!bool yes ; !!null x ; !!set {a}"
    " ; !!omap [a] ; !!omap [{a: 1}] ; !!pairs [[a]] ; !!map [1] ; !!seq {a: 1} ; !!str [1] ; !!merge x ; &a [*a]"
    " ; &a {a: *a} ; *nosuch ; {<<: 1} ; {<<: [1]} ; = ; 1e999 ; 1e-999 ; 1e400 ; .nan ; .inf ; -.inf ; 1e3 ; 1E-3"
    ' ; 1_000 ; -0 ; +1 ; 1. ; no ; ~ ; "" ; "\\0" ; "\\ud800" ; "\\x1b[2J" ; | ; >- ; \' ; " ; %YAML 9.9 ; --- ; ...'
    " ; --- a\n--- b ; @ ; ` ; \t ; ? [a]\n: b ; {[a]: b} ; {{a: 1}: 2} ; [0.9] ; [0.9, 0.95, 0.99] ; [''] ; ['a', 1]"
    " ; char ; auto ; cuda:99999999 ; cuda:99999999999999999999 ; adamw ; wsd ; nanogpt"
).split(" ; ")
YAML_PIECES += [
    LAUGHS_INSIDE,
    "[" * 90 + "]" * 90,
    "- " * 900,
    "0x" + "f" * 5000,
    "1:" * 500 + "1",
    "9:" * 2000 + "1.5",
]

OPCODES = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]
ARGUMENTS = b" \0 \1 \xff \xff\xff\xff\x7f 1\n 5L\n 1.5\n 'a'\n \\ud800\n os\nsystem\n".split(b" ")
PROGRAMS = [b"cos\nsystem\n(S'touch PWNED'\ntR", b"I" + b"9" * 5000 + b"\n", b"\x85\x94" * 2000]
DOUBLING = b")\x94" + b"".join(b"h%ch%c\x86\x94" % (i, i) for i in range(60))
"""Sixty tuples, each of the one before twice: hashing the last takes 2^60 steps."""


@st.composite
def to_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` with up to four small injuries."""
    for _ in range(draw(st.sampled_from([0, 1, 1, 2, 4]))):
        size = len(data)
        places = st.integers(0, size) | st.integers(0, min(64, size)) | st.integers(max(size - 64, 0), size)
        at = draw(places)
        end = min(size, at + draw(st.integers(0, 200)))
        piece = draw(st.sampled_from(BYTES) | st.binary(max_size=8))
        match draw(st.sampled_from("flip flip write write cut insert remove repeat swap lines all".split())):
            case "flip" if at < size:
                data = data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
            case "write":
                data = data[:at] + piece + data[at + len(piece) :]
            case "cut":
                data = data[:at]
            case "insert":
                data = data[:at] + piece + data[at:]
            case "remove":
                data = data[:at] + data[end:]
            case "repeat":
                data = data[:at] + data[at:end] * draw(st.sampled_from([2, 51])) + data[end:]
            case "swap":
                data = data[end:] + data[:end]
            case "lines":
                data = data.replace(b"\n", draw(st.sampled_from([b"\r\n", b"\r", b"\n\n", b"\0"])))
            case "all" if draw(st.integers(0, 3)) == 0:
                data = piece
    return data


@st.composite
def to_json(
    draw: st.DrawFn, data: bytes | str, pieces: st.SearchStrategy[str] = json_pieces, names: Any = STRINGS
) -> bytes:
    """JSON with up to three values removed, replaced, renamed, wrapped, changed a little, or given a second time."""
    tree: list[Any] = [json.loads(data)]
    spliced: list[str] = []
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        node: Any = tree
        key: Any = 0
        while node[key] and isinstance(node[key], list | dict) and (node is tree or draw(st.integers(0, 3))):
            node = node[key]
            key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        old, text, name = node[key], draw(pieces), draw(st.sampled_from([key, *names]) | st.text(max_size=4))
        match draw(st.sampled_from("replace replace replace remove rename wrap near twice".split())):
            case "remove" if node is not tree:
                del node[key]
                continue
            case "rename" if isinstance(node, dict):
                del node[key]
                key, text = str(name), json.dumps(old)
            case "wrap":
                text = f"[{json.dumps(old)}]"
            case "near" if isinstance(old, int | float):
                near = [old + 1, old - 1, -old, old * 2, old + 0.5, str(old)]
                text = json.dumps(draw(st.sampled_from(near)))
            case "near" if isinstance(old, list):
                text = json.dumps(old[::-1])
            case "twice":
                named = f"{json.dumps(name)}: " if isinstance(node, dict) else ""
                text = f"{json.dumps(old)}, {named}{text}"
        node[key] = f"@@{len(spliced)}@@"
        spliced.append(text)
    result = json.dumps(tree)[1:-1]
    for i, text in reversed([*enumerate(spliced)]):
        result = result.replace(f'"@@{i}@@"', text)
    return result.encode("utf-8", "surrogatepass")


@st.composite
def to_lines(draw: st.DrawFn, data: bytes) -> bytes:
    """Lines of JSON, one of them damaged as JSON or as bytes."""
    lines = data.splitlines()
    at = draw(st.integers(0, len(lines) - 1))
    lines[at] = draw(to_json(lines[at]) | to_bytes(lines[at]))
    return draw(st.sampled_from([b"\n", b"\r\n", b"\n\n"])).join(lines)


@st.composite
def to_yaml(draw: st.DrawFn, text: str, keys: list[str]) -> bytes:
    """Settings with values replaced by what YAML can do, as one flow mapping or line by line."""
    pieces = st.sampled_from(YAML_PIECES) | json_pieces
    if draw(st.booleans()):
        flow = json.dumps(yaml.safe_load(text) or {})
        return draw(to_json(flow, pieces, [*keys, *STRINGS, "<<", "1"]))
    lines = text.split("\n")
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        at, value = draw(st.integers(0, len(lines) - 1)), draw(pieces)
        path = draw(st.sampled_from(keys)).split(".")
        nested = "\n".join("  " * depth + f"{key}:" for depth, key in enumerate(path))
        start = draw(st.sampled_from([" ", "  ", "\t", "- ", "? ", "!!str ", "&a ", "*a ", ""]))
        named = f"{lines[at].partition(':')[0]}: {value}"
        changed = [named, named, f"{nested} {value}", value, start + lines[at], LAUGHS]
        lines[at : at + draw(st.integers(0, 1))] = [draw(st.sampled_from(changed))]
        lines += draw(st.sampled_from([[], [], [], ["seed: *a59"]]))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


TENSOR_NAMES = ["x", "0.", ".", "0", "-1.x", "9.momentum", "a.b.c", "__metadata__"]
TENSOR_PIECES = [f'"{kind}"' for kind in "F32 I32 U32 F16 BF16 F64 I64 U8 BOOL".split()]
TENSOR_PIECES += "[] [0] [1] [16] [2,16] [-1] [4294967296,2]".split()


@st.composite
def to_safetensors(draw: st.DrawFn, data: bytes) -> bytes:
    """A header of changed names, dtypes, shapes and offsets, or other values, or a length that is wrong."""
    size = int.from_bytes(data[:8], "little")
    header, body, wrong = data[8 : 8 + size], data[8 + size :], 0
    match draw(st.integers(0, 7)):
        case 0:
            body = draw(to_bytes(body))
        case 1:
            wrong = draw(st.sampled_from([-1, 1, 8, 2**31, 2**63, -size]))
        case 2:
            tensors = [entry["data_offsets"] for entry in json.loads(header).values() if "dtype" in entry]
            start, stop = draw(st.sampled_from(tensors))
            number = struct.pack("<f", draw(st.sampled_from(FLOATS)))
            body = body[:start] + number * ((stop - start) // 4) + body[stop:]
        case _:
            header = draw(to_json(header, json_pieces | st.sampled_from(TENSOR_PIECES), TENSOR_NAMES))
    return struct.pack("<Q", (len(header) + wrong) % 2**64) + header + body


def protobuf_field(number: int, value: int | float | bytes) -> bytes:
    """A field of a protobuf message."""

    def varint(value: int) -> bytes:
        value %= 2**64
        return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])

    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


texts = (st.sampled_from(STRINGS) | st.text(max_size=8)).map(
    lambda text: text.encode("utf-8", "surrogatepass")
)
numbers = st.sampled_from(NUMBERS) | st.integers(0, 8)
fields = st.builds(protobuf_field, st.integers(1, 50), texts | numbers | st.sampled_from(FLOATS))
piece_parts = (st.just(1), texts), (st.just(2), st.sampled_from(FLOATS)), (st.just(3), numbers)
messages = st.lists(fields, max_size=4) | st.tuples(
    *(st.builds(protobuf_field, *part) for part in piece_parts)
)


@st.composite
def to_protobuf(draw: st.DrawFn, data: bytes) -> bytes:
    """A SentencePiece model with pieces and settings put before or after it: a later field replaces an earlier one."""
    field = protobuf_field(draw(st.sampled_from([1, 1, 2, 2, 3, 3, 4, 5, 99])), b"".join(draw(messages)))
    more = field * draw(st.sampled_from([1, 1, 1, 300]))
    return draw(st.sampled_from([data + more, data + more, more + data]))


@st.composite
def to_pickle(draw: st.DrawFn, data: bytes) -> bytes:
    """A pickle with instructions put into it, or made of nothing else."""
    instructions = st.tuples(st.sampled_from(OPCODES), st.sampled_from(ARGUMENTS)).map(b"".join)
    pieces = draw(st.lists(instructions | st.sampled_from([*PROGRAMS, DOUBLING]), min_size=1, max_size=12))
    if draw(st.integers(0, 2)) == 0:
        return b"\x80\x04" + b"".join(pieces) + draw(st.sampled_from([b".", b"", b"s.", b"\x85."]))
    at = draw(st.sampled_from([2, len(data) - 1]) | st.integers(0, len(data)))
    return data[:at] + b"".join(pieces[:3]) + data[at:]


@cache
def compressed(data: bytes, suffix: str) -> bytes:
    """`data` as .gz or .zst."""
    return gzip.compress(data, 1, mtime=0) if suffix == ".gz" else zstandard.compress(data)


@st.composite
def to_archive(draw: st.DrawFn, plain: bytes, suffix: str) -> bytes:
    """`plain` compressed, damaged or not, then perhaps more after its end; or a bomb of 4 MB."""
    if draw(st.integers(0, 5)) == 0:
        letter = draw(st.sampled_from([b"\0", b"a", b"\n", b'{"', b"[", b"\xff", b"a b\n"]))
        return compressed(letter * ((4 << 20) // len(letter)), suffix)
    frames = [compressed(content, suffix) for content in (b"", plain, b"\xff")]
    more = draw(st.sampled_from([b"", b"", *frames, *BYTES]))
    return draw(to_bytes(compressed(plain, suffix))) + more


BY_SUFFIX: dict[str, Any] = {".json": to_json, ".jsonl": to_lines, ".model": to_protobuf}
BY_SUFFIX |= {".pkl": to_pickle, ".safetensors": to_safetensors}


def to_file(name: str, data: bytes) -> st.SearchStrategy[bytes]:
    """In the ways that fit the file's name, and as bytes."""
    fitting = BY_SUFFIX.get(Path(name).suffix, to_bytes)(data)
    return st.one_of(fitting, fitting, fitting, to_bytes(data))


LINKS = ["../canary/file", "../../canary", "/dev/zero", "/dev/null", "/etc/passwd", "nowhere", "loop", "."]
ODD_NAMES = "x .hidden tokenizer.model new\nline.txt ..txt ..jsonl \udcff.txt x.txt.gz loop".split(" ")


@st.composite
def to_folder(draw: st.DrawFn, files: dict[str, bytes]) -> dict[str, bytes | str]:
    """`files` with one, rarely two, of them damaged, removed or exchanged; a text is the target of a link."""
    result: dict[str, bytes | str] = dict(files)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
        name = draw(st.sampled_from(sorted(files)))
        match draw(st.integers(0, 15)):
            case 15:
                result.pop(name, None)
            case 14:
                result[name] = draw(st.sampled_from(LINKS))
            case 13:
                result[name] = files[draw(st.sampled_from(sorted(files)))]
            case 12:
                odd = Path(name).parent / draw(st.sampled_from(ODD_NAMES))
                result[str(odd)] = draw(st.just(files[name]) | st.sampled_from(LINKS))
            case _:
                result[name] = draw(to_file(name, files[name]))
    return result

"""A GGUF file: written, and read back with the gguf library's own reader."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from nanokimi.data.packed import import_optional
from nanokimi.errors import TrainingError
from nanokimi.interop.gguf_model import BLOCK, FILE_TYPES, Arrays, GgufModel, stored_type

LEAST_HALF = 2.0**-25
"""Half the distance of the smallest numbers in fp16, in which the scale of a block is stored."""
HALF_ROUNDING = 2.0**-11
"""The largest relative rounding of a number in fp16."""


def require_gguf() -> Any:
    """The library gguf. Raises UserError if it is not installed."""
    gguf = import_optional("gguf", "a GGUF file", "export")
    logging.getLogger("gguf").setLevel(logging.ERROR)
    return gguf


def write_gguf(path: Path, content: GgufModel, metadata: dict[str, Any], wanted: str) -> None:
    """Write tensors in the type that is `wanted`, and all metadata."""
    gguf = require_gguf()
    writer = gguf.GGUFWriter(path, content.architecture)
    try:
        writer.add_file_type(FILE_TYPES[wanted])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for key, value in metadata.items():
            add_value(writer, key, value)
        for name, array in content.tensors.items():
            kind = gguf.GGMLQuantizationType[stored_type(name, array, wanted)]
            with np.errstate(over="ignore"):  # reading back finds what fp16 cannot hold
                writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def add_value(writer: Any, key: str, value: Any) -> None:
    """Add one entry of the metadata, in the type that its value has in Python."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def verify_gguf(
    path: Path, content: GgufModel, metadata: dict[str, Any], wanted: str
) -> tuple[Arrays, float]:
    """Read a file back and compare it with what was meant.

    Returns the tensors as the file has them, in fp32, and the largest error of a stored number, as a share of the
    largest in its block (0 for F32 and F16, which must be exact after the cast). Raises TrainingError if anything
    differs.
    """
    gguf = require_gguf()
    try:
        reader = gguf.GGUFReader(path)
        found = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
        tensors = {one.name: one for one in reader.tensors}
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise TrainingError(f"the GGUF file cannot be read back ({error}): nothing was exported") from None
    expected = {**metadata, "general.architecture": content.architecture}
    for key, value in expected.items():
        if not same_value(found.get(key), value):
            raise TrainingError(f"the GGUF file holds another {key} than was meant: nothing was exported")
    if tensors.keys() != content.tensors.keys():
        name = sorted(tensors.keys() ^ content.tensors.keys())[0]
        raise TrainingError(f"the GGUF file has {name} wrongly, or not at all: nothing was exported")
    read: Arrays = {}
    worst = 0.0
    for name, array in content.tensors.items():
        kind = stored_type(name, array, wanted)
        stored = tensors[name]
        if stored.tensor_type.name != kind or tuple(stored.shape.tolist()) != array.shape[::-1]:
            raise TrainingError(f"the GGUF file has {name} in another type or shape: nothing was exported")
        read[name] = np.array(gguf.dequantize(stored.data, stored.tensor_type), dtype=np.float32)
        share = stored_error(array, read[name], kind)
        if share is None:
            raise TrainingError(
                f"the GGUF file's {name} is not the model's within {kind}: nothing was exported"
            )
        worst = max(worst, share)
    return read, worst


def same_value(found: Any, meant: Any) -> bool:
    """Whether a value that was read is the one that was written; floats are stored in single precision."""
    if isinstance(meant, float):
        return bool(np.float32(found) == np.float32(meant)) if found is not None else False
    if isinstance(meant, list) and meant and isinstance(meant[0], float):
        return found is not None and np.array_equal(np.array(found, np.float32), np.array(meant, np.float32))
    if isinstance(meant, bytes):
        return found is not None and bytes(found) == meant
    return bool(found == meant)


def stored_error(array: np.ndarray, stored: np.ndarray, kind: str) -> float | None:
    """The largest error of a tensor, as a share of its block's largest number; None if it is beyond the type's bound.

    Q8_0 has steps of 1/127 of that number, Q4_0 of 1/8, where the other sign's end is cut off a whole step early.
    """
    if not np.isfinite(stored).all() or stored.shape != array.shape:
        return None
    if kind in ("F32", "F16"):
        cast = array.astype(np.float16).astype(np.float32) if kind == "F16" else array
        return 0.0 if np.array_equal(stored, cast) else None
    blocks, found = array.reshape(-1, BLOCK), stored.reshape(-1, BLOCK)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    share, steps = {"Q8_0": (0.5 / 127, 127), "Q4_0": (1 / 8, 8)}[kind]
    error = np.abs(blocks - found)
    allowed = largest * (share + 1.01 * HALF_ROUNDING) + steps * LEAST_HALF
    if not (error <= allowed).all():
        return None
    return float((error / np.maximum(largest, np.finfo(np.float32).tiny)).max())

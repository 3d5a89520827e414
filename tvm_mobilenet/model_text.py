"""A manifest as the plain text file that the C runtime of a bundle reads.

One fact a line, in a fixed order, the last line the hash of the others. `native/embedded` holds the
reader, and says there why the file is what it is.
"""

from __future__ import annotations

import hashlib
import math
import struct

from tvm_mobilenet.errors import SpecError
from tvm_mobilenet.manifest import Manifest
from tvm_mobilenet.records import Preprocessing, TensorInfo

__all__ = ["MODEL_TEXT_FILE", "model_text"]

MODEL_TEXT_FILE = "model.txt"

# History of the format:
#   1  first version
_VERSION = 1

# What the reader's tables hold.
_DTYPES = frozenset(
    {"float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "bool"}
)
_MAX_RANK = 8
_MAX_TENSORS = 64
_MAX_ELEMENTS = 1 << 28
_MAX_BYTES = (16 << 20) - 128  # the last line comes on top


def model_text(manifest: Manifest) -> bytes:
    """Spell what a manifest says for the C runtime.

    Raises:
        SpecError: something that the C runtime has no place for: a dtype, a rank, a name.
    """
    origin = manifest.model
    lines = [
        f"tvm-mobilenet-model {_VERSION}",
        f"model {_escaped(origin.name)}",
        f"weights {_escaped(origin.weights)}",
        f"random {int(origin.is_random)}",
        f"target {_escaped(manifest.target.name)}",
        f"tvm {_escaped(manifest.versions.tvm)}",
        f"library {_escaped(manifest.library.file)}",
        f"size {manifest.library.size_bytes}",
        f"sha256 {manifest.library.sha256}",
    ]
    for kind, tensors in (("inputs", manifest.inputs), ("outputs", manifest.outputs)):
        if len(tensors) > _MAX_TENSORS:
            raise SpecError(
                f"model {origin.name}: {len(tensors)} {kind}; a bundle takes up to {_MAX_TENSORS}"
            )
        lines += [f"{kind} {len(tensors)}", *map(_tensor, tensors)]
    lines += _preprocessing(manifest.preprocessing)
    names = manifest.class_names or ()
    lines += [f"classes {len(names)}", *(f"class {_escaped(name)}" for name in names)]
    text = "".join(f"{line}\n" for line in lines).encode()
    if len(text) > _MAX_BYTES:
        raise SpecError(
            f"model {origin.name}: its description takes {len(text)} bytes, a bundle's up to "
            f"{_MAX_BYTES}; shorten the class names"
        )
    return text + f"end {hashlib.sha256(text).hexdigest()}\n".encode()


def _escaped(text: str) -> str:
    if "\0" in text:
        raise SpecError(f"name {text!r}: it holds a zero character, where C ends a text; rename it")
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


def _tensor(info: TensorInfo) -> str:
    if (
        info.dtype not in _DTYPES
        or len(info.shape) > _MAX_RANK
        or math.prod(info.shape) > _MAX_ELEMENTS
        or min(info.shape, default=1) < 1
    ):
        raise SpecError(
            f"tensor {info.name!r}: {info.dtype} {info.shape}; a bundle takes "
            f"{', '.join(sorted(_DTYPES))} of up to {_MAX_RANK} dimensions and {_MAX_ELEMENTS} "
            "elements"
        )
    shape = "x".join(map(str, info.shape)) or "-"
    return f"tensor {info.dtype} {info.layout} {shape} {_escaped(info.name)}"


def _preprocessing(how: Preprocessing | None) -> list[str]:
    # The C code cannot stretch a picture: there the product prepares its tensors itself.
    if how is None or how.fit == "stretch":
        return ["preprocessing 0"]
    if how.resize < how.crop:
        raise SpecError(
            f"preprocessing: pictures are resized to {how.resize} and cropped to {how.crop}; "
            "the crop must not be the larger"
        )
    return [
        "preprocessing 1",
        f"resize {how.resize}",
        f"crop {how.crop}",
        f"mean {_floats(how.mean)}",
        f"std {_floats(how.std)}",
        f"interpolation {how.interpolation}",
        f"channels {how.channel_order}",
    ]


def _floats(values: tuple[float, float, float]) -> str:
    """Spell float32 values by their bits: what a decimal point is depends on a C program's locale.

    Python's own rounding to float32 is numpy's, so the C runtime computes with the same numbers.
    """
    return " ".join(struct.pack(">f", value).hex() for value in values)

"""A `.tflite` file put together tensor by tensor: the flatbuffer, and nothing about ONNX.

The schema is the one that LiteRT's own wheel carries (`ai_edge_litert.schema_py_generated`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.qdq import Scheme

__all__ = ["TfliteFile"]

_SCHEMA_VERSION = 3
_FILE_IDENTIFIER = b"TFL3"
_LAST_OLD_CODE = 127
"""Operators up to this number are told in an 8-bit field, later ones in a wider one beside it."""


class TfliteFile:
    """Collects tensors and operators of one graph; shapes are as the operators see them (NHWC)."""

    def __init__(self) -> None:
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema

        self.schema: Any = schema
        self._flatbuffers: Any = flatbuffers
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._codes: list[int] = []
        self._buffers: list[Any] = [schema.BufferT()]  # the first is the empty one, by convention

    def tensor(self, name: str, shape: Sequence[int], scheme: Scheme | None = None) -> int:
        """Add an activation, int8 where a scheme is given, else float32; return its number."""
        kind = self.schema.TensorType.INT8 if scheme else self.schema.TensorType.FLOAT32
        return self._add(name, shape, kind, 0, scheme)

    def constant(self, name: str, values: np.ndarray, scheme: Scheme | None = None) -> int:
        """Add a constant of float32, int8 or int32; return its number."""
        kinds = self.schema.TensorType
        kind = {"float32": kinds.FLOAT32, "int8": kinds.INT8, "int32": kinds.INT32}
        little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
        self._buffers.append(self.schema.BufferT(data=np.frombuffer(little.tobytes(), np.uint8)))
        number = len(self._buffers) - 1
        return self._add(name, values.shape, kind[str(values.dtype)], number, scheme)

    def operator(
        self,
        code: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: str = "",
        **fields: Any,
    ) -> None:
        """Add an operator: its name in the schema, and its options' type and fields."""
        number = getattr(self.schema.BuiltinOperator, code)
        if number not in self._codes:
            self._codes.append(number)
        made = self.schema.OperatorT(
            opcodeIndex=self._codes.index(number), inputs=list(inputs), outputs=list(outputs)
        )
        if options:
            made.builtinOptionsType = getattr(self.schema.BuiltinOptions, options)
            made.builtinOptions = getattr(self.schema, f"{options}T")(**fields)
        self._operators.append(made)

    def pack(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """Return the file's bytes."""
        s = self.schema
        graph = s.SubGraphT(
            tensors=self._tensors,
            inputs=list(inputs),
            outputs=list(outputs),
            operators=self._operators,
            name="main",
        )
        codes = [
            s.OperatorCodeT(deprecatedBuiltinCode=min(code, _LAST_OLD_CODE), builtinCode=code)
            for code in self._codes
        ]
        model = s.ModelT(
            version=_SCHEMA_VERSION,
            operatorCodes=codes,
            subgraphs=[graph],
            description="from ONNX, for a comparison",
            buffers=self._buffers,
        )
        builder = self._flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), file_identifier=_FILE_IDENTIFIER)
        return bytes(builder.Output())

    def _add(
        self, name: str, shape: Sequence[int], kind: int, buffer: int, scheme: Scheme | None
    ) -> int:
        quantization = None
        if scheme is not None:
            quantization = self.schema.QuantizationParametersT(
                scale=list(scheme.scale),
                zeroPoint=[scheme.zero_point] * len(scheme.scale),
                quantizedDimension=scheme.axis,
            )
        self._tensors.append(
            self.schema.TensorT(
                shape=list(shape),
                type=kind,
                buffer=buffer,
                name=name,
                quantization=quantization,
                hasRank=True,
            )
        )
        return len(self._tensors) - 1

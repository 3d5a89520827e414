"""Fold an explicit zero padding into the convolution that reads it."""

from __future__ import annotations

from typing import Any

from tvm_mobilenet._tvm import IRModule, relax
from tvm_mobilenet.frontend.dataflow import Binding, Dataflow, is_call

__all__ = ["fold_padding"]


def fold_padding(mod: IRModule) -> IRModule:
    """Fold `nn.pad` with zeros over height and width into each convolution that reads it.

    Rewrite:
        conv2d(nn.pad(x, p), w, padding=q)  ->  conv2d(x, w, padding=p+q)
    Shapes:
        x (N, C, H, W) f32, w (O, I/g, kH, kW) f32.

    The pad stays where something else reads it too. Convolutions here treat padding without
    storing it, so folding always pays.
    """
    flow = Dataflow(mod)
    definitions = flow.definitions()
    bindings = []
    for binding in flow.bindings:
        value = binding.value
        if is_call(value, "nn.conv2d") and str(value.attrs.data_layout) == "NCHW":
            pad = definitions.get(value.args[0])
            if is_call(pad, "nn.pad"):
                widths = _spatial_zeros(pad)
                if widths is not None:
                    value = _padded(value, pad.args[0], widths)
        bindings.append(Binding(binding.var, value))
    return flow.rebuild(bindings)


def _spatial_zeros(pad: Any) -> list[int] | None:
    """Return (top, left, bottom, right) of a pad of height and width with zeros, else None."""
    widths = [int(width) for width in pad.attrs.pad_width]
    is_zeros = str(pad.attrs.pad_mode) == "constant" and float(pad.attrs.pad_value) == 0.0
    if len(widths) != 8 or any(widths[:4]) or not is_zeros:
        return None
    top, bottom, left, right = widths[4:]
    return [top, left, bottom, right]


def _padded(conv: Any, x: Any, widths: list[int]) -> Any:
    attrs = conv.attrs
    own = [int(p) for p in attrs.padding]
    return relax.op.nn.conv2d(
        x,
        conv.args[1],
        strides=[int(s) for s in attrs.strides],
        padding=[a + b for a, b in zip(own, widths, strict=True)],
        dilation=[int(d) for d in attrs.dilation],
        groups=int(attrs.groups),
        data_layout="NCHW",
        kernel_layout="OIHW",
    )

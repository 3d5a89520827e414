"""Turn quantize and dequantize around float operators into integer arithmetic.

What comes out is plain Relax: any schedule that is right for Relax is right for it, and the integer
kernels of `tvm_mobilenet/schedule/` recognise the forms below. This is the contract between them,
after the layout pass, in NHWC.

Convolution
    x      (N, H, W, C) int8 or uint8, of zero point zx; w (O, kH, kW, I/g) int8, of zero point 0
    padded nn.pad(x, pad_value=zx), only where the model pads; the convolution itself has none
    acc    nn.conv2d(padded, w, out_dtype="int32"); strides, dilation and groups as in float
    biased add(acc, bias), always there; bias (1, 1, 1, O) int32: the model's bias in steps of
           sx * sw[o], less zx * sum(w[o])
    and then the requantization.
Dense
    matmul(x, w, out_dtype="int32"), x (N, K), w (K, O), bias (O,), the rest the same.

Requantization, of `biased` to y, of scale sy and zero point zy
    astype float32, multiply(factor), round, add(zy), maximum(low), minimum(high), astype of y
    factor is float32, (1, 1, 1, O) or (O,): sx * sw[o] / sy, each operation rounded to float32, in
    this order. low and high are scalars: the ends of y's dtype, or the bounds of the activation
    (ReLU, ReLU6) in steps of y. `round` rounds halves to even. add(zy) is absent where zy is 0.
    This is ONNX Runtime's arithmetic (MlasRequantizeOutput): its integers are our integers.

    An activation that is no bound, or a residual that is added before anything is rounded, stands
    between: multiply(sx * sw[o]), that in float32, multiply(1 / sy), `round` and so on.
    Where nothing is quantized again the result stays float32: astype, multiply(sx * sw[o]).

Element-wise, each a single kernel with integers in and out; subtract(z) is absent where z is 0
    add       (astype(a) - za) * (sa / sy) + (astype(b) - zb) * (sb / sy), then from `round` on
    multiply  (astype(a) - za) * (astype(b) - zb) * (sa * sb / sy), then from `round` on
    others    (astype(x) - zx) * sx, the operators in float32, multiply(1 / sy), from `round` on
Global average
    sum(astype int32, axis=(1, 2)), add(-H * W * zx), then requantized by sx / (sy * (H * W)).
Reshapes, transposes, padding and maximum pooling move integers, and so does a concatenation, which
requantizes first those inputs whose scale is another.

Model inputs that are float32 are quantized with divide(sy) and not multiply(1 / sy): the pixels of
pictures take few values, and one that lies half-way between two steps does so everywhere.

Reference: Jacob et al. 2018 (arXiv:1712.05877), section 2.2.
"""

from tvm_mobilenet.frontend.passes.integer.rewrite import integerize

__all__ = ["integerize"]

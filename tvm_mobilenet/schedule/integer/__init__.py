"""Kernels on 8-bit integers: accumulated in 32 bits, equal to exact arithmetic on every target."""

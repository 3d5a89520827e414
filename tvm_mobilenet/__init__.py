"""MobileNets from PyTorch to fast, verified shared libraries for CPUs and small boards."""

from __future__ import annotations

__version__ = "0.1.0"

"""The one error of the comparisons: an engine that cannot take part."""

from __future__ import annotations

__all__ = ["EngineUnavailableError"]


class EngineUnavailableError(Exception):
    """The engine is not installed or cannot take the model; the message is the reason."""

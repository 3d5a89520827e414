"""The process that builds or measures candidates for a search; not a command for people.

Run as `python -m tvm_mobilenet.tuning.worker ROLE`. The first line on standard input sets it up,
each further one is a request; each is answered by one line of JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

Handler = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def main(role: str) -> None:
    """Answer requests until there are none."""
    # tvm_ffi imports torch where there is one; nothing here needs its three seconds and 200 MB.
    sys.modules["torch"] = None  # type: ignore[assignment]
    # What a library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())
    _end_with(settings["parent"], role, settings.get("folder"))
    handler = _builder(settings) if role == "build" else _measurer(settings)
    _answer(answers, {})
    for line in sys.stdin:
        try:
            answer = handler(json.loads(line))
        except Exception as err:
            lines = [text.strip() for text in str(err).splitlines() if text.strip()]
            reason = (lines[-1] if lines else type(err).__name__)[:300]
            answer = {"error": reason}
        _answer(answers, answer)


def _answer(answers: Any, answer: Mapping[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _end_with(parent: int, role: str, folder: str | None) -> None:
    """Have the kernel end this process when its parent dies; a builder then takes its files along.

    A measuring process may be inside a kernel that never ends, where no handler runs.
    """
    if role == "build":

        def clean_up(*_: object) -> None:
            if folder:
                shutil.rmtree(folder, ignore_errors=True)
            os._exit(1)

        signal.signal(signal.SIGTERM, clean_up)
    number = signal.SIGTERM if role == "build" else signal.SIGKILL
    with contextlib.suppress(OSError, AttributeError):  # not on every system
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent:
        os._exit(1)


def _builder(settings: Mapping[str, Any]) -> Handler:
    from tvm_mobilenet.tuning.building import Builder

    os.nice(10)  # what is being timed goes first
    return Builder(settings["target"], settings["folder"], settings.get("compiler"))


def _measurer(settings: Mapping[str, Any]) -> Handler:
    from tvm_mobilenet.tuning.measuring import LocalKernels

    return LocalKernels(settings["seed"], settings["cold_bytes"])


if __name__ == "__main__":
    main(sys.argv[1])

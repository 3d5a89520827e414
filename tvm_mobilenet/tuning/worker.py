"""The process that builds or measures candidates for a search; not a command for people.

Run as `python -m tvm_mobilenet.tuning.worker MODULE:CLASS`. The first line on standard input holds
what the class is made of, each further one is a request that an instance of it is called with; each
is answered by one line of JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

Handler = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def main(handler: str) -> None:
    """Answer requests until there are none."""
    # tvm_ffi imports torch where there is one; nothing here needs its three seconds and 200 MB.
    sys.modules["torch"] = None  # type: ignore[assignment]
    # What a library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    start = json.loads(sys.stdin.readline())
    _end_with(start["parent"], start["folder"])
    os.nice(start["niceness"])
    module, _, name = handler.partition(":")
    answer_request: Handler = getattr(importlib.import_module(module), name)(**start["settings"])
    _answer(answers, {})
    for line in sys.stdin:
        try:
            answer = answer_request(json.loads(line))
        except Exception as err:
            lines = [text.strip() for text in str(err).splitlines() if text.strip()]
            reason = (lines[-1] if lines else type(err).__name__)[:300]
            answer = {"error": reason}
        _answer(answers, answer)


def _answer(answers: Any, answer: Mapping[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _end_with(parent: int, folder: str | None) -> None:
    """Have the kernel end this process when its parent dies; one with a folder takes that along.

    A measuring process may be inside a kernel that never ends, where no handler runs: it has none.
    """
    if folder is not None:

        def clean_up(*_: object) -> None:
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(1)

        signal.signal(signal.SIGTERM, clean_up)
    number = signal.SIGTERM if folder is not None else signal.SIGKILL
    with contextlib.suppress(OSError, AttributeError):  # not on every system
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1])

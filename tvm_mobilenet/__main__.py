"""`python -m tvm_mobilenet` is the command line."""

from __future__ import annotations

from tvm_mobilenet.cli.app import main

if __name__ == "__main__":
    main()

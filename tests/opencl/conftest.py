from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def no_programs_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep built programs of these tests apart from the user's."""
    folder = tmp_path_factory.mktemp("programs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TVM_MOBILENET_OPENCL_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def runtime() -> None:
    """Load the OpenCL runtime, built if need be; skip where it cannot be built."""
    from tvm_mobilenet.opencl.building import missing_for_this_machine
    from tvm_mobilenet.opencl.runtime import ensure_runtime

    missing = missing_for_this_machine()
    if missing:
        pytest.skip(f"not installed here: {', '.join(missing)}")
    ensure_runtime()


@pytest.fixture(scope="session")
def device(runtime: None, no_programs_of_the_user: Path) -> Any:
    """TVM's object for the first OpenCL device; skip where there is none."""
    import tvm

    from tvm_mobilenet.opencl.runtime import describe

    facts = describe()
    if not facts.devices:
        pytest.skip(f"no OpenCL device: {facts.reason}")
    return tvm.opencl(0)

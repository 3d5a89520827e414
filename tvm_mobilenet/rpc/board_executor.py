"""A compiled model opened on a board."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from tvm_mobilenet.artifact import Artifact, wrong_machine
from tvm_mobilenet.elf import machine_name
from tvm_mobilenet.errors import (
    ArtifactError,
    DeviceError,
    DeviceTimeoutError,
    DeviceUnreachableError,
    SessionEndedError,
    SpecError,
)
from tvm_mobilenet.facts import BoardFacts
from tvm_mobilenet.inputs import checked_inputs
from tvm_mobilenet.opencl.placement import BUILD_ALL, needs_opencl
from tvm_mobilenet.opencl.runtime import is_opencl_error
from tvm_mobilenet.protocols import LayerReplacement
from tvm_mobilenet.records import TensorInfo
from tvm_mobilenet.rpc.session import BoardSession
from tvm_mobilenet.series import Memory

__all__ = ["BoardExecutor"]

Array = npt.NDArray[Any]
Inputs = Mapping[str, Array]

_LIBRARY = "model.so"
_MAIN = "main"
_FIRST_DEVICE = 0
_BIG_CORES = 1  # tvm/src/runtime/threading_backend.h, kBig


class BoardExecutor:
    """An artifact's library, loaded on a board in a session that this owns.

    Args:
        session: an open session; closed with the executor, or when opening fails.
        artifact: what to load.
        threads: how many threads compute; None for one on each of `cpus`, or each fast core.
        cpus: the processors to compute on; empty for the board's choice.

    Raises:
        ArtifactError: the board cannot load the library.
        SpecError: threads or processors that the board does not have.
        DeviceError: the board has gone; or the model is for OpenCL, and the board has no device, or
            it refuses the model.
    """

    def __init__(
        self,
        session: BoardSession,
        artifact: Artifact,
        threads: int | None = None,
        cpus: Sequence[int] = (),
    ) -> None:
        self.session = session
        self.artifact = artifact
        self.cpus: tuple[int, ...] = tuple(cpus)
        """The processors that compute, as the board says; empty where it does not."""
        self._tensors: list[Any] = []
        self._vm: Any = None
        try:
            self.facts_before = self.facts()
            """What the agent said before the library came; None for a stock server."""
            self._check_machine()
            self.threads = self._configure(threads)
            """How many threads compute."""
            self._uses_opencl = needs_opencl(artifact.manifest)
            if self._uses_opencl and session.has_agent:
                self._agent("OpenCL", "use_opencl", _FIRST_DEVICE)
            session.upload(artifact.library_path, _LIBRARY)
            self._before_bytes = self._memory(reset=True)[0] if session.has_agent else 0
            self.load_ms = self._load()
            """Milliseconds from opening the library to being ready, the network's share included.
            """
        except BaseException:
            self.close()
            raise

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """What `run` takes."""
        return self.artifact.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """What `run` returns."""
        return self.artifact.manifest.outputs

    @property
    def vm(self) -> Any:
        """The board's virtual machine, which the agent's functions take."""
        return self._vm.module

    def close(self) -> None:
        """End the session; the board is free for the next."""
        self.session.close()
        self._tensors.clear()
        self._vm = None

    def __enter__(self) -> BoardExecutor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def facts(self) -> BoardFacts | None:
        """Ask the board how it is; None where it runs a stock server."""
        if not self.session.has_agent:
            return None
        return BoardFacts.of(json.loads(self._agent("facts", "facts")))

    def run(self, inputs: Inputs) -> dict[str, Array]:
        """Compute every output once; see `LocalExecutor.run`."""
        self.feed(inputs)
        self.session.call("run", self._vm.invoke_stateful, _MAIN)
        return self.session.call("fetch", self._fetch)

    def times_ms(self, inputs: Inputs, repeat: int) -> list[float]:
        """Time `repeat` inferences one by one, on the board's clock.

        A stock server times with TVM's `time_evaluator`, which runs one more before the first.
        """
        self.feed(inputs)
        if self.session.has_agent:
            raw = self._agent("run", "time_runs", self.vm, _MAIN, repeat)
            return [float(value) / 1e6 for value in np.frombuffer(bytes(raw), "<i8")]
        return self.session.call("run", self._evaluate, repeat)

    def layer_times_ms(self, inputs: Inputs, repeat: int) -> npt.NDArray[np.float64]:
        """Time every kernel call, in its place in the inference.

        Shapes:
            (repeat, len(manifest.layers)) f64.

        Raises:
            DeviceError: the board runs no agent.
        """
        time_layers = self.session.function("time_layers")
        self.feed(inputs)
        raw = self.session.call("run", time_layers, self.vm, _MAIN, self.symbols, repeat)
        return np.frombuffer(bytes(raw), "<i8").reshape(repeat, -1) / 1e6

    def layer_outputs(self, inputs: Inputs, replace: LayerReplacement | None = None) -> list[Array]:
        """Run once and return what each kernel call wrote, in the order of `manifest.layers`.

        A board runs all layers before any is fetched: `replace` is not asked.

        Raises:
            DeviceError: the board runs no agent.
        """
        capture = self.session.function("capture_layers")
        captured = self.session.function("captured")
        self.feed(inputs)
        count = int(self.session.call("run", capture, self.vm, _MAIN, self.symbols))

        def fetch(index: int) -> Array:
            return np.asarray(captured(index).numpy())

        return [self.session.call("fetch", fetch, index) for index in range(count)]

    def memory(self) -> Memory | None:
        """Return what the session's process held before the model, and the most since then."""
        if not self.session.has_agent:
            return None
        resident, peak = self._memory(reset=False)
        return Memory(self._before_bytes, max(self._before_bytes, peak), resident)

    @property
    def symbols(self) -> str:
        """The kernels in the order of execution, one a line."""
        return "\n".join(layer.kernel for layer in self.artifact.manifest.layers)

    def feed(self, inputs: Inputs) -> None:
        """Copy inputs to the board and make them the next run's.

        Raises:
            SpecError: an input is missing, left over, or of another shape or dtype.
        """
        arrays = checked_inputs(self.inputs, inputs)
        self.session.call("upload", self._set_input, arrays)

    def _agent(self, step: str, name: str, *arguments: Any) -> Any:
        return self.session.call(step, self.session.function(name), *arguments)

    def _memory(self, *, reset: bool) -> tuple[int, int]:
        found = json.loads(self._agent("memory", "memory", int(reset)))
        return int(found["rss_bytes"]), int(found["peak_bytes"])

    def _check_machine(self) -> None:
        machine = self.facts_before.machine if self.facts_before else None
        if machine is None:
            return
        if machine_name(machine) != self.artifact.manifest.library.machine:
            raise wrong_machine(self.artifact, machine_name(machine), on_board=True)

    def _configure(self, threads: int | None) -> int:
        if threads is not None and threads < 1:
            raise SpecError(f"threads {threads}: give 1 or more")
        if self.facts_before is None:
            if self.cpus:
                raise DeviceError(
                    "a stock RPC server cannot be told which processors to use; leave --cpus out, "
                    "or run the board agent there",
                    device=self.session.name,
                    step="threads",
                )
            return self.session.call("threads", self._configure_stock, threads)
        wanted = self._wanted_threads(self.facts_before, threads)
        mask = ",".join(map(str, self.cpus))
        answer = json.loads(self._agent("threads", "configure_threads", wanted, mask))
        self.cpus = tuple(int(cpu) for cpu in _cpu_list(answer.get("cpus")))
        return int(answer["threads"])

    def _wanted_threads(self, facts: BoardFacts, threads: int | None) -> int:
        known = {cpu.cpu for cpu in facts.cpus}
        missing = [cpu for cpu in self.cpus if known and cpu not in known]
        if missing:
            raise SpecError(
                f"cpus {missing[0]}: the board has {','.join(map(str, sorted(known)))}; name some "
                "of them"
            )
        most = len(self.cpus) or len(facts.cpus) or facts.cores or 1
        if threads is not None and threads > most:
            raise SpecError(
                f"threads {threads}: the board offers {most} processors; give 1 to {most}"
            )
        if threads is not None:
            return threads
        if self.cpus or not facts.cpus:
            return most
        speeds = [cpu.capacity or cpu.max_mhz or 0 for cpu in facts.cpus]
        return sum(speed == max(speeds) for speed in speeds)

    def _configure_stock(self, threads: int | None) -> int:
        remote = self.session.remote
        if threads is not None:
            remote.get_function("runtime.config_threadpool")(_BIG_CORES, threads)
        return int(remote.get_function("runtime.NumThreads")())

    def _load(self) -> float:
        begin = time.perf_counter()
        try:
            self._vm = self.session.call("load", self._load_there)
        except (DeviceTimeoutError, DeviceUnreachableError, SessionEndedError):
            raise
        except DeviceError as err:
            if is_opencl_error(err):
                raise
            raise ArtifactError(
                f"artifact {self.artifact.path}: its library cannot be loaded by {err}; compile it "
                "for this board (--target), and see that TVM is the same there"
            ) from err
        return (time.perf_counter() - begin) * 1e3

    def _load_there(self) -> Any:
        from tvm.runtime.vm import VirtualMachine

        library = self.session.remote.load_module(_LIBRARY)
        if self._uses_opencl and library.implements_function(BUILD_ALL, query_imports=True):
            library.get_function(BUILD_ALL, query_imports=True)(_FIRST_DEVICE)
        return VirtualMachine(library, self._device)

    @property
    def _device(self) -> Any:
        remote = self.session.remote
        return remote.cl(_FIRST_DEVICE) if self._uses_opencl else remote.cpu(0)

    def _set_input(self, arrays: Sequence[Array]) -> None:
        import tvm

        if not self._tensors:
            device = self._device
            self._tensors = [tvm.runtime.empty(a.shape, str(a.dtype), device) for a in arrays]
        for tensor, array in zip(self._tensors, arrays, strict=True):
            tensor.copyfrom(array)
        self._vm.set_input(_MAIN, *self._tensors)

    def _fetch(self) -> dict[str, Array]:
        result = self._vm.get_outputs(_MAIN)
        tensors = [result] if hasattr(result, "numpy") else list(result)
        return {
            info.name: np.asarray(tensor.numpy())
            for info, tensor in zip(self.outputs, tensors, strict=True)
        }

    def _evaluate(self, repeat: int) -> list[float]:
        evaluate = self._vm.time_evaluator("invoke_stateful", self._device, number=1, repeat=repeat)
        return [1e3 * float(value) for value in evaluate(_MAIN).results]


def _cpu_list(value: object) -> list[str]:
    """Read what an agent says of the processors: a list of numbers, or `0,1`."""
    if isinstance(value, str):
        return [part for part in value.split(",") if part]
    return [str(part) for part in value] if isinstance(value, list) else []

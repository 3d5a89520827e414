"""A compiled model opened on this machine: run it, look into it, time it.

Needs TVM's runtime only; its compiler need not be installed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from tvm_mobilenet.artifact import Artifact
from tvm_mobilenet.compute_thread import ComputeThread
from tvm_mobilenet.errors import ArtifactError, ManifestMismatchError, TvmMobilenetError
from tvm_mobilenet.inputs import checked_inputs
from tvm_mobilenet.opencl.placement import (
    OpenCLPlacement,
    Placement,
    ProcessorPlacement,
    needs_opencl,
)
from tvm_mobilenet.opencl.runtime import device_error
from tvm_mobilenet.process_memory import peak_bytes, reset_peak, resident_bytes
from tvm_mobilenet.protocols import LayerReplacement
from tvm_mobilenet.records import LayerRecord, TensorInfo
from tvm_mobilenet.series import Memory

__all__ = ["LocalExecutor"]

_P = ParamSpec("_P")
_R = TypeVar("_R")

Array = npt.NDArray[Any]
Inputs = Mapping[str, Array]

_TIMED = "tvm_mobilenet_timed"
_SKIP_RUN = 1  # tvm.runtime.vm.VMInstrumentReturnKind.SKIP_RUN


class LocalExecutor:
    """An artifact's library, loaded, with a thread pool of its own.

    Use it as a context manager, or `close` it. Several may be open at once, each with its own
    number of threads; one executor serves one caller at a time.

    Args:
        artifact: what `open_artifact` returned.
        threads: how many threads compute, None for one on each fast core. `TVM_NUM_THREADS` has no
            say in it.
        cpus: the processors to compute on; empty for the fast ones first.

    Raises:
        ArtifactError: TVM cannot load the library.
        SpecError: a number of threads that this machine does not have.
        DeviceError: the model is for OpenCL, and there is no device, or it refuses the model.
    """

    def __init__(
        self, artifact: Artifact, threads: int | None = None, cpus: Sequence[int] = ()
    ) -> None:
        self.artifact = artifact
        self._place: Placement = (
            OpenCLPlacement() if needs_opencl(artifact.manifest) else ProcessorPlacement()
        )
        self._before_bytes = resident_bytes()
        reset_peak()
        self._thread = ComputeThread(threads, cpus)
        try:
            self.load_ms = self._thread.call(self._load)
            """Milliseconds from opening the library to being ready for a call."""
        except BaseException:
            self._thread.close()
            raise

    @property
    def threads(self) -> int:
        """How many threads compute."""
        return self._thread.threads

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """What `run` takes."""
        return self.artifact.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """What `run` returns."""
        return self.artifact.manifest.outputs

    def memory(self) -> Memory:
        """Return what this process held before the library was opened, and the most since then.

        The process's figures: what else it does meanwhile is counted too, and opening another
        executor begins the peak anew.
        """
        now = resident_bytes()
        return Memory(self._before_bytes, max(self._before_bytes, now, peak_bytes()), now)

    def close(self) -> None:
        """End the threads."""
        self._thread.close()

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def run(self, inputs: Inputs) -> dict[str, Array]:
        """Compute every output once.

        Args:
            inputs: an array for each input of the manifest, of exactly its shape and dtype.

        Raises:
            SpecError: an input is missing, left over, or of another shape or dtype.
        """
        arrays = self._checked(inputs)
        return self._on_thread(self._run, arrays)

    def times_ms(self, inputs: Inputs, repeat: int) -> list[float]:
        """Time `repeat` inferences one by one.

        The clock runs in a loop in Python around a call that has its arguments bound already, which
        adds less than a microsecond to each; inputs are not copied and outputs not fetched. TVM's
        `time_evaluator` gives the same figures but does not show the warm-up.
        """
        arrays = self._checked(inputs)
        return self._on_thread(self._times, arrays, repeat)

    def layer_outputs(self, inputs: Inputs, replace: LayerReplacement | None = None) -> list[Array]:
        """Run once and return what each kernel call wrote, in the order of `manifest.layers`.

        Args:
            inputs: the model's.
            replace: given a layer's index and what it wrote, what the layers behind it shall read.
        """
        found: list[Array] = []

        def copy_output(layer: LayerRecord, kernel: Any, args: tuple[Any, ...]) -> None:
            kernel(*args)
            # The memory is used again by a later kernel.
            found.append(np.array(args[-1].numpy(), copy=True))
            instead = replace(layer.index, found[-1]) if replace is not None else None
            if instead is not None:
                args[-1].copyfrom(np.ascontiguousarray(instead))

        arrays = self._checked(inputs)
        self._on_thread(self._instrumented, arrays, copy_output, 1)
        return found

    def layer_times_ms(self, inputs: Inputs, repeat: int) -> npt.NDArray[np.float64]:
        """Time every kernel call, in its place in the inference; see `Placement.time_ns`.

        Shapes:
            (repeat, len(manifest.layers)) f64.
        """
        values: list[float] = []
        time_ns = self._place.time_ns

        def timed(_layer: LayerRecord, kernel: Any, args: tuple[Any, ...]) -> None:
            values.append(time_ns(lambda: kernel(*args)) / 1e6)

        arrays = self._checked(inputs)
        self._on_thread(self._instrumented, arrays, timed, repeat)
        return np.asarray(values).reshape(repeat, len(self.artifact.manifest.layers))

    def _checked(self, inputs: Inputs) -> list[Array]:
        return checked_inputs(self.inputs, inputs)

    def _on_thread(self, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return self._thread.call(function, *args, **kwargs)
        except TvmMobilenetError:
            raise
        except Exception as err:
            found = device_error(err)
            if found is None:
                raise
            raise found from err

    # Everything below runs on the compute thread.

    def _load(self) -> float:
        import tvm
        from tvm.runtime.vm import VirtualMachine

        begin = time.perf_counter()
        device = self._place.device()
        try:
            library = tvm.runtime.load_module(str(self.artifact.library_path))
            self._place.prepare(library)
            self._vm = VirtualMachine(library, device)
            self._main = self._vm["main"]
        except Exception as err:
            if found := device_error(err, step="load"):
                raise found from err
            reason = " ".join(str(err).split())[-200:] or type(err).__name__
            raise ArtifactError(
                f"artifact {self.artifact.path}: its library, made with TVM "
                f"{self.artifact.manifest.versions.tvm}, cannot be loaded by TVM "
                f"{tvm.__version__}: {reason}"
            ) from err
        self._to_tensor: Callable[[Array], Any] = lambda array: tvm.runtime.tensor(array, device)
        return (time.perf_counter() - begin) * 1e3

    def _run(self, arrays: list[Array]) -> dict[str, Array]:
        result = self._main(*(self._to_tensor(array) for array in arrays))
        tensors = [result] if hasattr(result, "numpy") else list(result)
        return {
            info.name: np.asarray(tensor.numpy())
            for info, tensor in zip(self.outputs, tensors, strict=True)
        }

    def _times(self, arrays: list[Array], repeat: int) -> list[float]:
        tensors = [self._to_tensor(array) for array in arrays]
        self._vm.save_function("main", _TIMED, *tensors, include_return=False)
        infer = self._vm[_TIMED]
        wait = self._place.wait
        clock = time.perf_counter_ns
        values = [0] * repeat
        for index in range(repeat):
            begin = clock()
            infer()
            wait()
            values[index] = clock() - begin
        return [value / 1e6 for value in values]

    def _instrumented(
        self,
        arrays: list[Array],
        visit: Callable[[LayerRecord, Any, tuple[Any, ...]], None],
        repeat: int,
    ) -> None:
        """Run, handing every kernel call to `visit`, which makes the call itself."""
        layers = self.artifact.manifest.layers
        kernels = {layer.kernel for layer in layers}
        position = 0
        failure: Exception | None = None

        def instrument(kernel: Any, symbol: str, before: bool, _result: Any, *args: Any) -> int:
            nonlocal position, failure
            if not before or symbol not in kernels:
                return 0
            if position >= len(layers) or layers[position].kernel != symbol:
                # Kept aside: on its way through TVM it would become a RuntimeError.
                failure = self._layer_mismatch(position, symbol)
                raise failure
            visit(layers[position], kernel, args)
            position += 1
            return _SKIP_RUN

        tensors = [self._to_tensor(array) for array in arrays]
        self._vm.set_instrument(instrument)
        try:
            for _ in range(repeat):
                position = 0
                self._main(*tensors)
                if position != len(layers):
                    raise self._layer_mismatch(position, "the end")
        except Exception as err:
            raise failure or err from None
        finally:
            self._vm.set_instrument(None)

    def _layer_mismatch(self, position: int, found: str) -> ManifestMismatchError:
        layers = self.artifact.manifest.layers
        expected = layers[position].kernel if position < len(layers) else "the end"
        return ManifestMismatchError(
            f"artifact {self.artifact.path}: kernel call {position} is {found}, the manifest says "
            f"{expected}; compile the model again"
        )

"""A compiled model opened here: threads of its own, checked inputs, a look at every layer."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tvm_mobilenet import compute_thread
from tvm_mobilenet.artifact import Artifact, open_artifact
from tvm_mobilenet.compute_thread import ComputeThread, resolve_threads
from tvm_mobilenet.errors import ArtifactError, ManifestMismatchError, SpecError
from tvm_mobilenet.executor import LocalExecutor
from tvm_mobilenet.inputs import seeded

CPUS = len(os.sched_getaffinity(0))


@pytest.fixture
def artifact(colour_dir: Path) -> Artifact:
    return open_artifact(colour_dir)


@pytest.fixture
def executor(artifact: Artifact):
    with LocalExecutor(artifact, 1) as opened:
        yield opened


def pool_size() -> int:
    import tvm

    return int(tvm.get_global_func("runtime.NumThreads")())


class TestComputeThread:
    @pytest.mark.parametrize("threads", sorted({1, CPUS}))
    def test_pool_has_the_size_asked_for_whatever_the_environment_says(self, threads: int):
        assert os.environ["TVM_NUM_THREADS"] == "1"
        with ComputeThread(threads) as thread:
            assert thread.call(pool_size) == threads

    @pytest.mark.skipif(CPUS < 2, reason="needs two processors")
    def test_two_at_once_keep_their_own_sizes(self):
        with ComputeThread(1) as one, ComputeThread(2) as two:
            assert (one.call(pool_size), two.call(pool_size)) == (1, 2)
            assert (one.call(pool_size), two.call(pool_size)) == (1, 2)

    def test_the_caller_is_not_pinned(self):
        before = os.sched_getaffinity(0)
        with ComputeThread(1) as thread:
            thread.call(pool_size)
        assert os.sched_getaffinity(0) == before

    def test_an_error_comes_back_to_the_caller(self):
        with ComputeThread(1) as thread, pytest.raises(ZeroDivisionError):
            thread.call(lambda: 1 // 0)

    def test_threads_end_when_it_is_closed(self):
        before = threading.active_count()
        with ComputeThread(1) as thread:
            thread.call(pool_size)
            assert threading.active_count() == before + 1
        assert threading.active_count() == before

    @pytest.mark.parametrize("threads", [0, -1, CPUS + 1])
    def test_a_number_that_the_machine_does_not_have(self, threads: int):
        with pytest.raises(SpecError, match=rf"threads {threads}: .* give 1 to {CPUS}"):
            resolve_threads(threads)

    def test_one_thread_for_each_fast_core(self, tmp_path: Path, monkeypatch):
        """Four slow cores, then two fast ones with two hardware threads each."""
        siblings = ["0", "1", "2", "3", "4,6", "5,7", "4,6", "5,7"]
        for cpu, (capacity, group) in enumerate(zip([400] * 4 + [1024] * 4, siblings, strict=True)):
            (tmp_path / f"cpu{cpu}" / "topology").mkdir(parents=True)
            (tmp_path / f"cpu{cpu}" / "cpu_capacity").write_text(f"{capacity}\n")
            (tmp_path / f"cpu{cpu}" / "topology/thread_siblings_list").write_text(f"{group}\n")
        monkeypatch.setattr(compute_thread, "_CPU_FOLDER", tmp_path)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
        assert compute_thread._ranked_cpus() == ([4, 5], [6, 7, 0, 1, 2, 3])
        assert compute_thread.default_threads() == 2
        monkeypatch.setattr(compute_thread, "cpu_quota", lambda: 1)
        assert compute_thread.default_threads() == 1


def test_outputs_are_those_of_onnx_runtime(artifact: Artifact, executor: LocalExecutor):
    session = onnxruntime.InferenceSession(str(artifact.onnx_path))
    for inputs in seeded(artifact.manifest, 4):
        (expected,) = session.run(None, inputs)
        found = executor.run(inputs)["y"]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_outputs_are_the_callers_to_keep(artifact: Artifact, executor: LocalExecutor):
    first, second = seeded(artifact.manifest, 2)
    kept = executor.run(first)["y"]
    copy = kept.copy()
    executor.run(second)
    np.testing.assert_array_equal(kept, copy)


def test_an_input_need_not_be_contiguous(artifact: Artifact, executor: LocalExecutor):
    (inputs,) = seeded(artifact.manifest, 1)
    strided = np.asfortranarray(inputs["x"])
    assert not strided.flags.c_contiguous
    np.testing.assert_array_equal(executor.run({"x": strided})["y"], executor.run(inputs)["y"])


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({}, "input 'x': missing; the model takes x"),
        ({"x": np.zeros((1, 3, 32, 32), "f4"), "z": np.zeros(1)}, "input 'z': the model takes x"),
        ({"x": np.zeros((1, 3, 32, 31), "f4")}, r"float32 \(1, 3, 32, 31\) was given, .*32, 32\)"),
        ({"x": np.zeros((1, 3, 32, 32), "f8")}, "float64 .* was given, the model takes float32"),
    ],
)
def test_a_wrong_input_is_refused(executor: LocalExecutor, inputs, says: str):
    with pytest.raises(SpecError, match=says):
        executor.run(inputs)


def test_every_layer_is_seen_in_its_shape(artifact: Artifact, executor: LocalExecutor):
    (inputs,) = seeded(artifact.manifest, 1)
    outputs = executor.layer_outputs(inputs)
    layers = artifact.manifest.layers
    assert [output.shape for output in outputs] == [layer.shape for layer in layers]
    np.testing.assert_array_equal(outputs[-1], executor.run(inputs)["y"])


def test_layers_are_timed_one_by_one(artifact: Artifact, executor: LocalExecutor):
    (inputs,) = seeded(artifact.manifest, 1)
    times = executor.layer_times_ms(inputs, 7)
    assert times.shape == (7, len(artifact.manifest.layers))
    assert (times > 0).all()


def test_looking_inside_leaves_nothing_behind(artifact: Artifact, executor: LocalExecutor):
    (inputs,) = seeded(artifact.manifest, 1)
    before = executor.run(inputs)["y"]
    executor.layer_times_ms(inputs, 2)
    executor.layer_outputs(inputs)
    np.testing.assert_array_equal(executor.run(inputs)["y"], before)
    assert len(executor.times_ms(inputs, 3)) == 3


def test_the_loop_and_tvms_own_timer_agree(artifact: Artifact, executor: LocalExecutor):
    import tvm

    (inputs,) = seeded(artifact.manifest, 1)
    # Minima, taken turn about: the machine may be busy with something else.
    loop, timer = [], []
    for _ in range(20):
        loop.append(min(executor.times_ms(inputs, 50)))
        evaluator = executor._vm.time_evaluator(
            "tvm_mobilenet_timed", tvm.cpu(), number=1, repeat=50
        )
        timer.append(executor._thread.call(evaluator).min * 1e3)
    # The loop adds about a microsecond.
    assert min(timer) * 0.9 <= min(loop) <= min(timer) * 1.1 + 0.003


def test_a_manifest_with_other_layers_is_noticed(artifact: Artifact):
    layers = artifact.manifest.layers
    manifest = artifact.manifest.model_copy(update={"layers": (layers[1], layers[0], *layers[2:])})
    (inputs,) = seeded(artifact.manifest, 1)
    with (
        LocalExecutor(Artifact(artifact.path, manifest), 1) as executor,
        pytest.raises(ManifestMismatchError, match=f"kernel call 0 is {layers[0].kernel}"),
    ):
        executor.layer_outputs(inputs)


def test_a_library_that_tvm_cannot_load(artifact: Artifact, tmp_path: Path):
    data = bytearray(artifact.library_path.read_bytes())
    data[64:4096] = bytes(4096 - 64)  # the program headers and what follows
    (tmp_path / "model.so").write_bytes(data)
    before = threading.active_count()
    with pytest.raises(ArtifactError, match="cannot be loaded by TVM"):
        LocalExecutor(Artifact(tmp_path, artifact.manifest), 1)
    assert threading.active_count() == before

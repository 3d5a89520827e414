"""The stages on a scripted device: what they ask of it, and what they make of its answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tvm_mobilenet.artifact import Artifact
from tvm_mobilenet.classify import classify
from tvm_mobilenet.errors import ArtifactError, DeviceError, DeviceTimeoutError, SpecError
from tvm_mobilenet.executor import LocalExecutor
from tvm_mobilenet.facts import BoardFacts, CpuFacts
from tvm_mobilenet.measure import measure
from tvm_mobilenet.rpc.fake import FakeDevice
from tvm_mobilenet.run import run
from tvm_mobilenet.verify.report import verify


def board(mhz: float, celsius: float = 50, **more) -> BoardFacts:
    cpu = CpuFacts(cpu=0, max_mhz=1500, cur_mhz=mhz, governor="ondemand")
    return BoardFacts(cpu="Cortex-A72", temperature_c=celsius, cpus=(cpu,), **more)


class TestMeasure:
    def test_what_the_device_says_is_what_is_reported(self, colour_dir: Path):
        device = FakeDevice(latencies_ms=(2.0, 3.0), facts_series=(board(1500),))
        found = measure(colour_dir, warmup=2, repeat=4, threads=2, cpus=(0, 1), device=device)
        assert found.timing.values_ms == (2.0, 3.0, 2.0, 3.0)
        assert found.timing.warmup_ms == (2.0, 3.0)
        assert found.threads == 2
        assert found.host.cpu == "Cortex-A72"
        assert found.host.governor == "ondemand"
        assert found.memory is not None
        assert found.memory.added_bytes == 2 << 20
        assert device.calls[1] == ("open", (colour_dir, 2, (0, 1)))
        assert device.opened == 0
        assert json.loads(json.dumps(found.to_dict()))["board"]["cpus"] == [0, 1]

    def test_the_profile_is_set_against_the_boards_clock(self, colour_dir: Path):
        device = FakeDevice(latencies_ms=(4.0,), facts_series=(board(1500),))
        profile = measure(colour_dir, repeat=3, profile=True, device=device).profile
        assert profile is not None
        assert profile.sum_ms == pytest.approx(4.0)
        assert profile.peak is not None
        assert "1500 MHz (reported by the board)" in (profile.peak_note or "")

    def test_an_emulated_board_has_no_peak(self, colour_dir: Path):
        device = FakeDevice(facts_series=(board(1500, emulated=True),))
        profile = measure(colour_dir, repeat=3, profile=True, device=device).profile
        assert profile is not None
        assert profile.peak is None
        assert profile.share_of_peak is None
        assert profile.peak_note == "an emulated board has no peak"

    def test_it_rests_between_bursts_and_not_before_the_first(self, colour_dir: Path):
        device = FakeDevice(latencies_ms=(1.0,))
        measure(colour_dir, warmup=1, repeat=5, profile=True, device=device, cool_down_s=0.5)
        steps = [step for step, _ in device.calls]
        assert steps[:4] == ["facts", "open", "run", "times"]
        assert steps[4] == "rest"
        assert {argument for step, argument in device.calls if step == "rest"} == {0.5}

    def test_a_clock_that_falls_is_said(self, colour_dir: Path):
        device = FakeDevice(facts_series=(board(1500), board(1000)))
        warnings = measure(colour_dir, device=device).warnings
        assert warnings[0].startswith("throttled: processor 0 fell from 1500 to 1000 MHz; cool")

    def test_heat_is_said(self, colour_dir: Path):
        device = FakeDevice(facts_series=(board(1500), board(1500, celsius=84)))
        assert "the board is at 84 C" in measure(colour_dir, device=device).warnings[0]

    def test_a_clock_that_rises_or_wavers_is_no_warning(self, colour_dir: Path):
        for before, after in ((600, 1500), (1500, 1450)):
            device = FakeDevice(facts_series=(board(before), board(after)))
            assert measure(colour_dir, device=device).warnings == ()

    @pytest.mark.parametrize("step", ["facts", "open", "run", "times", "layers"])
    def test_a_device_that_fails_is_let_go(self, colour_dir: Path, step: str):
        failure = DeviceTimeoutError("no answer", device="fake", step=step)
        device = FakeDevice(failures={step: failure})
        with pytest.raises(DeviceTimeoutError, match=f"device fake: {step}: no answer"):
            measure(colour_dir, profile=True, device=device)
        assert device.opened == 0

    def test_a_rest_below_nothing_is_refused(self, colour_dir: Path):
        with pytest.raises(SpecError, match="cool-down-s -1: give 0 or more"):
            measure(colour_dir, device=FakeDevice(), cool_down_s=-1)


class TestVerify:
    def test_what_the_device_computes_is_what_is_judged(self, artifact: Artifact):
        with LocalExecutor(artifact, 1) as executor:
            honest = FakeDevice(outputs=executor.run, layer_outputs=executor.layer_outputs)
            report = verify(artifact.path, inputs=2, drift=True, device=honest)
        assert report.is_within
        assert report.drift is not None
        assert report.drift.first_departed is None
        assert not verify(artifact.path, inputs=2, device=FakeDevice()).is_within

    def test_the_first_layer_that_a_board_computes_wrongly_is_found(self, artifact: Artifact):
        with LocalExecutor(artifact, 1) as executor:

            def wrong(inputs):
                layers = executor.layer_outputs(inputs)
                return [*layers[:1], *(layer + 1 for layer in layers[1:])]

            device = FakeDevice(outputs=executor.run, layer_outputs=wrong)
            report = verify(artifact.path, inputs=1, drift=True, device=device)
        assert report.drift is not None
        assert report.drift.first_departed is not None
        assert report.drift.first_departed.index == 1

    def test_a_device_that_goes_in_the_middle_is_an_error(self, artifact: Artifact):
        device = FakeDevice(failures={"run": DeviceError("gone", device="pi", step="run")})
        with pytest.raises(DeviceError, match="device pi: run: gone"):
            verify(artifact.path, inputs=2, device=device)
        assert device.opened == 0


def test_pictures_are_prepared_here_and_classified_there(artifact: Artifact, tmp_path: Path):
    path = tmp_path / "green.png"
    Image.new("RGB", (40, 40), (60, 200, 20)).save(path)
    seen: list[float] = []

    def outputs(inputs):
        (picture,) = inputs.values()
        seen.append(float(np.asarray(picture).max()))
        return {
            info.name: np.asarray([[0, 5, 0]], np.float32) for info in artifact.manifest.outputs
        }

    device = FakeDevice(outputs=outputs)
    (prediction,) = classify(artifact.path, [path], device=device)
    assert prediction.guesses[0].label == "green"
    assert seen == [pytest.approx(200 / 255, abs=0.01)]
    assert device.opened == 0


def test_a_library_for_another_machine_is_refused_before_the_device_is_asked(artifact: Artifact):
    device = FakeDevice(machine="aarch64")
    with pytest.raises(ArtifactError, match="the library is for"):
        measure(artifact.path, device=device)
    assert device.calls == []


def test_run_times_a_board_alone(colour_onnx: Path, tmp_path: Path):
    executors: list[LocalExecutor] = []

    def outputs_of(artifact: Artifact):
        executors.append(LocalExecutor(artifact, 1))
        return executors[-1].run

    class Board(FakeDevice):
        def open(self, artifact, threads=None, cpus=()):
            self.outputs = outputs_of(artifact)
            return super().open(artifact, threads, cpus)

    device = Board(latencies_ms=(7.0,), threads=4)
    try:
        report = run(colour_onnx, out=tmp_path / "out", device=device)
    finally:
        for executor in executors:
            executor.close()
    assert report.not_run is None
    assert [row.threads for row in report.timing] == [1, 4]
    assert [row.compiled.median_ms for row in report.timing] == [7.0, 7.0]
    assert report.timing[0].onnxruntime is None
    assert report.timing[0].ratio is None
    assert json.loads((tmp_path / "out/run.json").read_text())["timing"][0]["ratio"] is None

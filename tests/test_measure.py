"""Figures that say what they are: kept apart from warm-ups, with their threads, noise named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tvm_mobilenet import local_device as local_device_module
from tvm_mobilenet import peak as peak_module
from tvm_mobilenet import profile as profile_module
from tvm_mobilenet.artifact import open_artifact
from tvm_mobilenet.errors import ArtifactError, ManifestMismatchError, SpecError, TvmMobilenetError
from tvm_mobilenet.files import sha256_of
from tvm_mobilenet.measure import Measurement, Timing, measure
from tvm_mobilenet.peak import Peak, measure_peak
from tvm_mobilenet.profile import profile_from
from tvm_mobilenet.targets import load_target

CPUS = len(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def found(colour_dir: Path) -> Measurement:
    return measure(colour_dir, threads=1, warmup=3, repeat=17, profile=True)


class TestTiming:
    def test_statistics_are_of_the_values_alone(self):
        timing = Timing(warmup_ms=(90.0, 50.0), values_ms=tuple(float(v) for v in range(1, 102)))
        assert (timing.min_ms, timing.median_ms, timing.max_ms) == (1, 51, 101)
        assert (timing.percentile_ms(90), timing.percentile_ms(99)) == (91, 100)
        assert timing.mean_ms == 51
        assert timing.stdev_ms == pytest.approx(np.std(np.arange(1, 102), ddof=1))

    def test_a_single_value_has_no_spread(self):
        assert Timing((), (3.0,)).stdev_ms == 0
        assert Timing((), (3.0,)).warnings == ()

    def test_steady_values_raise_no_warning(self):
        assert Timing((9.0,), (1.0, 1.02, 0.99, 1.01, 1.0)).warnings == ()

    def test_a_wide_spread_is_said(self):
        (warning,) = Timing((), (1.0, 1.3, 0.8, 1.2, 0.75)).warnings
        assert warning.startswith("noisy: the standard deviation is ")
        assert "let the machine rest" in warning

    def test_an_outlier_is_said(self):
        (warning,) = Timing((), (*[1.0] * 99, 1.6)).warnings
        assert warning.startswith("noisy: the slowest run is +59% off the mean")

    def test_what_is_too_short_for_the_clock_is_said(self):
        (warning,) = Timing((), (0.005,) * 10).warnings
        assert warning.startswith("short: ")

    def test_json_holds_every_value(self):
        found = json.loads(json.dumps(Timing((2.0,), (1.0, 1.1)).to_dict(), allow_nan=False))
        assert found["warmup_ms"] == [2.0]
        assert found["values_ms"] == [1.0, 1.1]
        assert found["median_ms"] == pytest.approx(1.05)


class TestMeasure:
    def test_every_value_is_kept_with_what_it_was_taken_with(self, found, colour_dir: Path):
        assert len(found.timing.warmup_ms) == 3
        assert len(found.timing.values_ms) == 17
        assert all(value > 0 for value in found.timing.values_ms)
        assert found.threads == 1
        assert found.library_sha256 == sha256_of(colour_dir / "model.so")
        assert found.model == "colour"
        assert found.host.cpus == CPUS
        assert found.versions["tvm"].startswith("0.")
        assert found.load_ms > 0
        assert found.first_run_ms > 0

    def test_memory_is_what_the_model_adds(self, found):
        assert 0 < found.memory.added_bytes < 64 << 20
        assert found.memory.peak_bytes == found.memory.before_bytes + found.memory.added_bytes

    def test_the_profile_accounts_for_the_whole(self, found, colour_dir: Path):
        profile = found.profile
        manifest = open_artifact(colour_dir).manifest
        assert [layer.kernel for layer in profile.layers] == [
            record.kernel for record in manifest.layers
        ]
        assert sum(layer.share for layer in profile.layers) == pytest.approx(1)
        assert profile.sum_ms == pytest.approx(sum(layer.median_ms for layer in profile.layers))
        assert profile.whole_ms == found.timing.median_ms
        assert profile.peak.threads == 1
        for layer, record in zip(profile.layers, manifest.layers, strict=True):
            if record.macs:
                assert layer.gflops == pytest.approx(2 * record.macs / layer.median_ms / 1e6)
                assert 0 < layer.share_of_peak <= 1.05
            else:
                assert layer.gflops is None

    def test_json_is_complete(self, found):
        content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert content["memory"]["added_bytes"] == found.memory.added_bytes
        assert content["profile"]["peak"]["gflops"] > 0
        assert len(content["profile"]["layers"]) == len(found.profile.layers)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"repeat": 0}, "repeat 0: give 1 or more"),
            ({"warmup": -1}, "warmup -1: give 0 or more"),
            ({"threads": CPUS + 1}, f"threads {CPUS + 1}: .*give 1 to {CPUS}"),
        ],
    )
    def test_a_number_out_of_range(self, colour_dir: Path, options, says: str):
        with pytest.raises(SpecError, match=says):
            measure(colour_dir, **options)

    def test_a_damaged_artifact(self, colour_dir: Path, tmp_path: Path):
        copy = Path(shutil.copytree(colour_dir, tmp_path / "copy"))
        (copy / "model.so").write_bytes(b"")
        with pytest.raises(ManifestMismatchError, match="truncated"):
            measure(copy, threads=1)

    def test_an_error_in_the_other_process_comes_back_as_it_was(self, tmp_path: Path):
        request = {"artifact": str(tmp_path), "threads": 1}
        with pytest.raises(ArtifactError, match=r"it has no manifest\.json"):
            local_device_module._probe(request)

    def test_a_process_that_dies_is_explained(self, monkeypatch):
        def killed(command, environment):
            return subprocess.run(
                [sys.executable, "-c", "import os; os.kill(os.getpid(), 4)"],
                capture_output=True,
                text=True,
                check=False,
            )

        monkeypatch.setattr(local_device_module, "_run", killed)
        with pytest.raises(TvmMobilenetError, match="ended by SIGILL; is the library for this"):
            local_device_module._probe({"artifact": "a"})

    def test_a_process_that_fails_is_explained(self):
        with pytest.raises(TvmMobilenetError, match="the process that measures failed: TypeError"):
            local_device_module._probe({"artifact": None})


class TestProfile:
    def test_medians_and_shares(self, colour_dir: Path, monkeypatch):
        manifest = open_artifact(colour_dir).manifest
        monkeypatch.setattr(
            profile_module,
            "measure_peak",
            lambda target, threads: Peak(gflops=50.0, threads=threads, lanes=8, chains=12),
        )
        count = len(manifest.layers)
        rows = [[float(run + layer) for layer in range(1, count + 1)] for run in (0, 10, 20)]
        profile = profile_from(manifest, rows, whole_ms=100.0, threads=2)
        assert [layer.median_ms for layer in profile.layers] == [
            10.0 + layer for layer in range(1, count + 1)
        ]
        macs = sum(layer.macs for layer in manifest.layers)
        assert profile.gflops == pytest.approx(2 * macs / 100.0 / 1e6)
        assert profile.share_of_peak == pytest.approx(profile.gflops / 50)
        assert profile.unattributed_ms == pytest.approx(100.0 - profile.sum_ms)

    def test_without_a_compiler_the_peak_is_left_out_and_said(self, colour_dir, monkeypatch):
        def missing(target, threads):
            raise RuntimeError("no LLVM")

        monkeypatch.setattr(profile_module, "measure_peak", missing)
        manifest = open_artifact(colour_dir).manifest
        rows = [[1.0] * len(manifest.layers)]
        profile = profile_from(manifest, rows, whole_ms=9.0, threads=1)
        assert profile.peak is None
        assert profile.share_of_peak is None
        assert "no LLVM" in (profile.peak_note or "")
        assert all(layer.share_of_peak is None for layer in profile.layers)


class TestPeak:
    def test_a_core_does_more_than_a_gflop_and_is_measured_once(self):
        host = load_target("host")
        peak = measure_peak(host, 1)
        cpu = host.cpu
        # No core computes more than its units can start at five times the nominal clock.
        assert 1 < peak.gflops < 2 * peak.lanes * 4 * 5 * cpu.freq_mhz / 1e3
        assert measure_peak(host, 1) is peak

    def test_the_kernel_computes_what_it_claims(self):
        import tvm

        host = load_target("host")
        lanes, chains, rounds = host.cpu.lanes("float32"), 4, 3
        kernel = peak_module._build(host, 2, lanes, chains, rounds)
        x = np.concatenate([np.full(lanes, 0.5), np.full(lanes, 2.0), np.arange(chains * lanes)])
        y = tvm.runtime.tensor(np.zeros(2 * chains * lanes, np.float32))
        kernel["main"](tvm.runtime.tensor(x.astype(np.float32)), y)
        expected = x[2 * lanes :]
        for _ in range(rounds):
            expected = expected * 0.5 + 2.0
        np.testing.assert_allclose(y.numpy(), np.tile(expected, 2), rtol=1e-6)

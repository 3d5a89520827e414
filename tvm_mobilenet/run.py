"""The main job in one call: train or load, export, compile, verify, time beside ONNX Runtime."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.artifact import RUN_FILE, Artifact, open_artifact
from tvm_mobilenet.compute_thread import default_threads
from tvm_mobilenet.datasets import DIGITS, DIGITS_MODEL, Dataset, load_dataset
from tvm_mobilenet.elf import host_machine
from tvm_mobilenet.errors import ParityError, UsageError
from tvm_mobilenet.executor import LocalExecutor
from tvm_mobilenet.files import new_file
from tvm_mobilenet.inputs import seeded
from tvm_mobilenet.measure import measure
from tvm_mobilenet.models.spec import get_model_spec
from tvm_mobilenet.models.weight_file import describe_weights
from tvm_mobilenet.protocols import Device, NoProgress, Progress
from tvm_mobilenet.targets import load_target
from tvm_mobilenet.verify.engines import onnx_file, onnx_session
from tvm_mobilenet.verify.report import VerifyReport, verify
from tvm_mobilenet.workflow import compile_model

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

__all__ = ["DEFAULT_FOLDER", "EngineTimes", "RunReport", "TimingRow", "run"]

DEFAULT_FOLDER = Path("out")
"""Where a run is written if nothing is said: a folder in it for each model."""

_ROUNDS = 9
_BOARD_REPEAT = 30
_BURST_S = 0.1
_SETTLE_S = 0.25
"""A thread pool goes on spinning after an inference, TVM's for up to 185 ms: the other engine waits
until it sleeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTimes:
    """Latency of one engine, in milliseconds, warm-ups apart."""

    engine: str
    version: str
    median_ms: float
    """Median over the rounds of each round's median."""
    min_ms: float
    round_medians_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingRow:
    """Both engines at one number of threads, measured turn by turn."""

    threads: int
    compiled: EngineTimes
    onnxruntime: EngineTimes | None
    """None on a board, where it does not run."""
    ratio: float | None
    """Median over the rounds of compiled over ONNX Runtime: below 1 is faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """What a run did and found; saved beside the library as `run.json`."""

    artifact: str
    model: str
    weights: str
    is_random: bool
    target: str
    training: dict[str, Any] | None
    """`accuracy`, `epochs` and `seconds` of training, `reused` where it was done before."""
    verification: VerifyReport | None
    timing: tuple[TimingRow, ...]
    library_bytes: int
    not_run: str | None
    """Why the library was neither verified nor timed, or None."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        values = {
            "artifact": self.artifact,
            "model": self.model,
            "weights": self.weights,
            "is_random": self.is_random,
            "target": self.target,
            "training": self.training,
            "verification": self.verification.to_dict() if self.verification else None,
            "timing": [asdict(row) for row in self.timing],
            "library_bytes": self.library_bytes,
            "not_run": self.not_run,
        }
        return values


def run(
    model: str | Path | None = None,
    *,
    data: str | Path | None = None,
    weights: Path | str | None = None,
    target: str | Path = "host",
    out: Path | str | None = None,
    epochs: int | None = None,
    seed: int = 0,
    threads: Sequence[int] | None = None,
    use_logs: bool = True,
    device: Device | None = None,
    progress: Progress | None = None,
) -> RunReport:
    """Do everything from training to the comparison with ONNX Runtime, and save what was found.

    Args:
        model: a model of ours, a weight file or an ONNX file; None for the small model on digits.
        data: `digits` or a folder of pictures to train on, unless `weights` are given; accuracy is
            compared on its held-out fifth. None with `model` None stands for digits.
        weights: a weight file to use instead of training.
        target: what to compile for. A library for another machine is compiled and not run.
        out: the artifact folder; None for one named after the model under `out/`.
        epochs: of training; None for what the data needs.
        seed: of training, or of random weights.
        threads: the thread counts to time with; None for 1 and one for each core.
        use_logs: use recorded schedules where there are any.
        device: a board to verify and time the library on; None for this machine.
        progress: told of every stage.

    Raises:
        UsageError: the request cannot be met.
        ParityError: the compiled model disagrees with ONNX Runtime or PyTorch. The artifact and
            its `run.json` are left in place to look at.
    """
    progress = progress or NoProgress()
    spec = load_target(target)
    if model is None:
        model, data = DIGITS_MODEL, data or DIGITS
    name = str(model)
    folder = Path(out) if out is not None else DEFAULT_FOLDER / Path(name).stem
    if out is None and not name.endswith((".onnx", ".safetensors", ".pth")):
        folder = DEFAULT_FOLDER / name
    training, dataset = None, None
    if data is not None:
        if name.endswith(".onnx"):
            raise UsageError(f"data {data} was given with {name}: an ONNX file cannot be trained")
        described = describe_weights(name) if name.endswith(".safetensors") else None
        resolution = get_model_spec(described.model if described else name).resolution
        dataset = load_dataset(data, resolution=resolution, progress=progress)
        if weights is None and described is None:
            weights, training = _trained(name, dataset, data, folder, epochs, seed, progress)
    artifact = compile_model(
        model,
        out=folder,
        weights=weights,
        target=spec,
        seed=seed,
        use_logs=use_logs,
        progress=progress,
    )
    report = _examine(artifact, spec, weights, data, training, threads, device, progress)
    _save(artifact, report)
    if report.verification is not None:
        report.verification.check()
        _require_same_answers(report)
    return report


def _trained(
    name: str,
    dataset: Dataset,
    data: str | Path,
    folder: Path,
    epochs: int | None,
    seed: int,
    progress: Progress,
) -> tuple[Path, dict[str, Any]]:
    """Return trained weights beside the artifact folder: those of an equal run before, or new."""
    from tvm_mobilenet.training.classification import default_epochs
    from tvm_mobilenet.training.train import train

    path = folder.resolve().parent / f"{folder.name}.safetensors"
    wanted = epochs if epochs is not None else default_epochs(data)
    if path.exists():
        known = describe_weights(path)
        made = (known.training or {}) if known else {}
        if (
            known is not None
            and known.model == name
            and made.get("data_sha256") == dataset.fingerprint
            and made.get("seed") == seed
            and made.get("epochs") == wanted
        ):
            return path, {
                "accuracy": made.get("held_out_accuracy"),
                "epochs": wanted,
                "seconds": 0.0,
                "reused": True,
            }
    result = train(name, data, out=path, epochs=wanted, seed=seed, progress=progress)
    return path, {
        "accuracy": result.held_out_accuracy,
        "epochs": result.epochs,
        "seconds": result.seconds,
        "reused": False,
    }


def _examine(
    artifact: Artifact,
    target: TargetSpec,
    weights: Path | str | None,
    data: str | Path | None,
    training: dict[str, Any] | None,
    threads: Sequence[int] | None,
    device: Device | None,
    progress: Progress,
) -> RunReport:
    """Verify and time an artifact, on a board or if this machine can run it."""
    manifest = artifact.manifest
    not_run, verification = None, None
    timing: list[TimingRow] = []
    if device is None and manifest.library.machine != host_machine():
        not_run = (
            f"the library is for {manifest.library.machine} and this machine is {host_machine()}"
        )
    else:
        images = None
        if data is not None and manifest.preprocessing is not None:
            images = load_dataset(
                data,
                resolution=manifest.preprocessing.crop,
                preprocessing=manifest.preprocessing,
            ).held_out
        verification = verify(
            artifact.path, images=images, weights=weights, device=device, progress=progress
        )
        if device is not None:
            timing.extend(_time_on(device, artifact, threads, progress))
        else:
            for count in threads or sorted({1, default_threads()}):
                timing.append(_time_both(artifact, count, progress))
    return RunReport(
        artifact=str(artifact.path),
        model=manifest.model.name,
        weights=manifest.model.weights,
        is_random=manifest.model.is_random,
        target=target.name,
        training=training,
        verification=verification,
        timing=tuple(timing),
        library_bytes=manifest.library.size_bytes,
        not_run=not_run,
    )


def _time_on(
    device: Device, artifact: Artifact, threads: Sequence[int] | None, progress: Progress
) -> Iterator[TimingRow]:
    """Time the library on a board, with one thread and with the board's choice."""
    seen: set[int] = set()
    for count in threads or (1, None):
        progress.start(f"timing on {device.name}")
        found = measure(artifact.path, threads=count, repeat=_BOARD_REPEAT, device=device)
        progress.done()
        if found.threads in seen:
            continue
        seen.add(found.threads)
        compiled = EngineTimes(
            engine="compiled",
            version=artifact.manifest.versions.tvm_mobilenet,
            median_ms=found.timing.median_ms,
            min_ms=found.timing.min_ms,
            round_medians_ms=(found.timing.median_ms,),
        )
        yield TimingRow(threads=found.threads, compiled=compiled, onnxruntime=None, ratio=None)


def _time_both(artifact: Artifact, threads: int, progress: Progress) -> TimingRow:
    """Time the library and ONNX Runtime in turns, each while the other's threads sleep."""
    import onnxruntime

    inputs = next(seeded(artifact.manifest, 1))
    session = onnx_session(onnx_file(artifact), threads)
    names = [output.name for output in artifact.manifest.outputs]
    clock = time.perf_counter_ns

    def time_onnxruntime(repeat: int) -> list[float]:
        values = []
        for _ in range(repeat):
            begin = clock()
            session.run(names, inputs)
            values.append((clock() - begin) / 1e6)
        return values

    progress.start(f"timing with {threads} thread{'s' if threads > 1 else ''}", 2 * _ROUNDS)
    rounds: dict[str, list[float]] = {"compiled": [], "onnxruntime": []}
    best: dict[str, float] = {}
    with LocalExecutor(artifact, threads) as executor:
        engines: dict[str, Callable[[int], list[float]]] = {
            "compiled": lambda repeat: executor.times_ms(inputs, repeat),
            "onnxruntime": time_onnxruntime,
        }
        bursts = {}
        for engine, times in engines.items():
            once = min(times(3))
            bursts[engine] = max(3, round(_BURST_S * 1e3 / max(once, 1e-3)))
        for index in range(_ROUNDS):
            order = list(engines) if index % 2 == 0 else list(engines)[::-1]
            for engine in order:
                time.sleep(_SETTLE_S)
                warm_up = max(1, bursts[engine] // 5)
                found = engines[engine](warm_up + bursts[engine])[warm_up:]
                rounds[engine].append(statistics.median(found))
                best[engine] = min(best.get(engine, found[0]), *found)
                progress.advance()
    progress.done()

    def row(engine: str, version: str) -> EngineTimes:
        return EngineTimes(
            engine=engine,
            version=version,
            median_ms=statistics.median(rounds[engine]),
            min_ms=best[engine],
            round_medians_ms=tuple(rounds[engine]),
        )

    pairs = zip(rounds["compiled"], rounds["onnxruntime"], strict=True)
    return TimingRow(
        threads=threads,
        compiled=row("compiled", artifact.manifest.versions.tvm_mobilenet),
        onnxruntime=row("onnxruntime", onnxruntime.__version__),
        ratio=statistics.median(ours / theirs for ours, theirs in pairs),
    )


def _save(artifact: Artifact, report: RunReport) -> None:
    with new_file(artifact.path / RUN_FILE) as temporary:
        temporary.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    open_artifact(artifact.path, runnable=False)


def _require_same_answers(report: RunReport) -> None:
    """Raise where the compiled model names another class than a reference on some picture."""
    accuracy = report.verification.accuracy if report.verification else None
    if accuracy is None:
        return
    for reference, pictures in accuracy.disagreements.items():
        if pictures:
            raise ParityError(
                f"{report.model}: the compiled model and {reference} name different classes on "
                f"{len(pictures)} of {accuracy.images} pictures, first {pictures[0]}; "
                "`tvm-mobilenet verify DIR --drift` shows the layer where it begins",
                report.to_dict(),
            )

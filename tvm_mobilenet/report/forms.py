"""The records that a report reads, as far as it reads them.

A field that a newer version adds is passed over; one that is needed and missing is refused.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "AccuracyForm",
    "BoardForm",
    "CandidateForm",
    "ComparedEngineForm",
    "ComparedForm",
    "ComparisonForm",
    "CountForm",
    "CountedEngineForm",
    "CountedForm",
    "CountsForm",
    "DriftForm",
    "ExplorationForm",
    "HostForm",
    "LayerCountForm",
    "LayerDriftForm",
    "LayerTimeForm",
    "MeasurementForm",
    "MemoryForm",
    "ParityForm",
    "ProfileForm",
    "RunForm",
    "TaskForm",
    "TimingRowForm",
    "TrialForm",
    "TuningForm",
    "VerificationForm",
]


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


Positive = Annotated[float, Field(gt=0)]


class TimingForm(_Form):
    """One series of inferences."""

    warmup_ms: tuple[float, ...] = ()
    values_ms: tuple[Positive, ...] = Field(min_length=1)


class MemoryStepForm(_Form):
    """What was resident at the end of a step of a run, and the most up to it."""

    step: str
    resident_bytes: int
    peak_bytes: int


class MemoryForm(_Form):
    """Resident memory of the process that measured."""

    before_bytes: int
    peak_bytes: int
    steps: tuple[MemoryStepForm, ...] = ()


class HostForm(_Form):
    """The machine that measured."""

    cpu: str
    machine: str
    cpus: int
    governor: str | None = None
    load_average: float | None = None
    system: str = "unknown"


class BoardCpuForm(_Form):
    """One processor of a board."""

    cur_mhz: float | None = None
    max_mhz: float | None = None
    governor: str | None = None


class BoardFactsForm(_Form):
    """What a board said of itself."""

    board: str | None = None
    temperature_c: float | None = None
    memory_total_mib: float | None = None
    memory_free_mib: float | None = None
    cpus: tuple[BoardCpuForm, ...] = ()
    emulated: bool = False


class BoardForm(_Form):
    """The board that measured."""

    name: str
    cpus: tuple[int, ...] = ()
    cool_down_s: float = 0.0
    before: BoardFactsForm | None = None
    after: BoardFactsForm | None = None


class LayerTimeForm(_Form):
    """One kernel call of a profile."""

    index: int
    kernel: str
    family: str
    tensor: str | None = None
    median_ms: Positive
    gflops: Positive | None = None
    gbytes_per_s: Positive


class PeakForm(_Form):
    """What the machine can do at all."""

    gflops: Positive


class ProfileForm(_Form):
    """Every layer of an inference."""

    layers: tuple[LayerTimeForm, ...] = Field(min_length=1)
    repeat: int
    sum_ms: Positive
    whole_ms: Positive
    peak: PeakForm | None = None
    peak_note: str | None = None


class MeasurementForm(_Form):
    """What `measure --json` writes."""

    model: str
    is_random: bool = False
    target: str
    library_bytes: int
    threads: int
    timing: TimingForm
    load_ms: float
    first_run_ms: float
    memory: MemoryForm | None = None
    host: HostForm
    date: str
    versions: dict[str, str] = {}
    profile: ProfileForm | None = None
    board: BoardForm | None = None
    warnings: tuple[str, ...] = ()


class ThresholdForm(_Form):
    """How far outputs may be apart."""

    relative_l2: float


class ParityForm(_Form):
    """One output against one reference."""

    reference: str
    output: str
    dtype: str
    inputs: int
    max_abs_error: float | None
    relative_l2: float | None
    cosine: float | None = None
    snr_db: float | None = None
    top1_agreement: float | None = None
    threshold: ThresholdForm
    within: bool


class LayerDriftForm(_Form):
    """One layer's output against ONNX Runtime's."""

    index: int
    kernel: str
    family: str
    tensor: str | None = None
    relative_l2: float | None = None
    max_abs_error: float | None = None
    growth: float | None = None
    steps: int | None = None
    float_snr_db: float | None = None
    exceeds: bool


class DriftForm(_Form):
    """Every layer of one inference."""

    threshold: float
    first_departed: int | None = None
    layers: tuple[LayerDriftForm, ...]


class AccuracyForm(_Form):
    """Right answers by engine."""

    images: int
    accuracy: dict[str, float]


class VerificationForm(_Form):
    """What `verify --json` writes."""

    model: str
    weights: str = ""
    is_random: bool = False
    target: str
    threads: int
    source: str = ""
    inputs: int
    within: bool
    comparisons: tuple[ParityForm, ...]
    not_compared: dict[str, str] = {}
    accuracy: AccuracyForm | None = None
    drift: DriftForm | None = None


class EngineTimesForm(_Form):
    """One engine of a run."""

    engine: str
    version: str
    median_ms: Positive
    min_ms: float
    round_medians_ms: tuple[Positive, ...] = Field(min_length=1)


class TimingRowForm(_Form):
    """The engines of a run at one number of threads."""

    threads: int
    compiled: EngineTimesForm
    onnxruntime: EngineTimesForm | None = None
    ratio: float | None = None


class RunForm(_Form):
    """What `run` saves as run.json."""

    model: str
    weights: str = ""
    is_random: bool = False
    target: str
    training: dict[str, Any] | None = None
    verification: VerificationForm | None = None
    timing: tuple[TimingRowForm, ...]
    library_bytes: int
    not_run: str | None = None


class ComparedEngineForm(_Form):
    """One engine of a side-by-side run."""

    engine: str
    absence: str | None = None
    version: str = ""
    relative_l2: float | None = None
    median_ms: Positive | None = None
    min_ms: float | None = None
    p90_ms: float | None = None
    ratio: float | None = None
    gflops: Positive | None = None
    round_medians_ms: tuple[Positive, ...] = ()


class ComparedForm(_Form):
    """All engines on one model at one number of threads."""

    model: str
    threads: int
    macs: int
    peak_gflops: Positive | None = None
    fastest_peer: str | None = None
    warnings: tuple[str, ...] = ()
    engines: tuple[ComparedEngineForm, ...]


class ComparisonForm(_Form):
    """What benchmarks/compare.py writes."""

    date: str
    cpu: str
    processors: int | None = None
    system: str = "unknown"
    dtype: str = "float32"
    results: tuple[ComparedForm, ...]


class LayerCountForm(_Form):
    """What one kernel call retires."""

    index: int
    kernel: str
    family: str
    tensor: str | None = None
    instructions: int
    classes: dict[str, int]
    floor: float


class CountForm(_Form):
    """What `measure --count-instructions --json` writes."""

    model: str
    target: str
    emulated_cpu: str
    threads: int = 1
    instructions_per_inference: int = Field(gt=0)
    classes: dict[str, int]
    floor: Positive
    outside_layers: int
    layers: tuple[LayerCountForm, ...]
    date: str
    versions: dict[str, str] = {}


class CountedEngineForm(_Form):
    """One engine whose instructions were counted."""

    engine: str
    version: str = ""
    absence: str = ""
    instructions: int
    classes: dict[str, int] = {}


class CountedForm(_Form):
    """All engines on one model and target."""

    model: str
    target: str
    macs: int
    engines: tuple[CountedEngineForm, ...]


class CountsForm(_Form):
    """What benchmarks/count_instructions.py writes."""

    results: tuple[CountedForm, ...]


class TaskForm(_Form):
    """One kernel after a search."""

    name: str
    calls: int
    untuned: Positive | None = None
    best: Positive | None = None
    ratio: float | None = None
    floor: float | None = None
    trials: int
    status: str


class TuningForm(_Form):
    """What `tune --json` writes."""

    model: str
    target: str
    threads: int
    unit: str
    tasks: tuple[TaskForm, ...]
    trials: int
    seconds: float
    untuned: float
    best: float
    is_dry_run: bool = False


class ConditionsForm(_Form):
    """Where and how a candidate was measured."""

    device: str
    threads: int
    cost: str
    date: str


class TrialForm(_Form):
    """One line of a tuning log."""

    target: str
    family: str
    workload: dict[str, Any]
    dtype: str = "float32"
    verdict: str
    cost: Positive | None = None
    ratio: Positive | None = None
    conditions: ConditionsForm


class CandidateForm(_Form):
    """One model of an exploration."""

    model: str
    dtype: str = "float32"
    accuracy: float
    macs: int
    status: str
    reason: str = ""
    predicted: float | None = None
    cost: Positive | None = None
    low: Positive | None = None
    high: Positive | None = None
    size_bytes: int | None = None
    peak_bytes: int | None = None


class ExplorationForm(_Form):
    """What `explore --json` writes."""

    target: str
    device: str
    threads: int
    unit: str
    budget: float
    budget_mb: float | None = None
    accuracy_source: str
    best: str | None = None
    runner_up: str | None = None
    front: tuple[str, ...] = ()
    front_by_size: tuple[str, ...] = ()
    front_by_memory: tuple[str, ...] = ()
    candidates: tuple[CandidateForm, ...]
    is_emulated: bool = False
    complete: bool = True
    date: str
    notes: tuple[str, ...] = ()

"""What a model is compiled for: one TOML file a board, or the machine at hand.

A target names everything that the schedules are computed from (vector width, number of vector
registers, shape of the multiply-add, caches, cores; of a GPU, what is in `gpu`), what the code
generator and the linker are told, and where each figure comes from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tvm_mobilenet.errors import SpecError, UnknownTargetError, suggestion
from tvm_mobilenet.gpu import Gpu

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvm.target import Target

__all__ = [
    "FORMAT_VERSION",
    "HOST",
    "Cpu",
    "Emulation",
    "InstructionWeights",
    "Link",
    "TargetSpec",
    "TvmOptions",
    "list_targets",
    "load_target",
    "shipped_folder",
]

HOST = "host"
"""The name of the machine at hand, detected rather than read from a file."""

FORMAT_VERSION = 1
# History: 1, the first.

_DTYPE_BITS = re.compile(r"^[a-z]+?(\d+)")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class TvmOptions(_Section):
    """What TVM's code generator is told; the number of cores is added from `Cpu`."""

    kind: Literal["llvm", "opencl"] = "llvm"
    """`opencl`: kernels are OpenCL C for the target's `gpu`, and the rest is what LLVM makes."""
    mtriple: str
    """LLVM's name of architecture, vendor and ABI, `aarch64-linux-gnu`."""
    mcpu: str
    """LLVM's name of the processor."""
    mattr: tuple[str, ...] = ()
    """Features to add (`+dotprod`) or leave out (`-avx512f`) on top of what `mcpu` implies."""
    mfloat_abi: Literal["hard", "soft"] | None = Field(default=None, alias="mfloat-abi")
    """How floats are passed, on 32-bit Arm."""

    @model_validator(mode="after")
    def _signed_features(self) -> TvmOptions:
        for feature in self.mattr:
            if not re.fullmatch(r"[+-]\S+", feature):
                raise ValueError(f"mattr holds {feature!r}; write '+{feature}' or '-{feature}'")
        return self


class Link(_Section):
    """How the library is linked."""

    triple: str
    """In Zig's spelling, without the glibc version: `aarch64-linux-gnu`."""
    glibc: str = Field(pattern=r"^2\.\d+$")
    """Oldest glibc that the library must load with."""


class Cpu(_Section):
    """What schedules are computed from. Every figure has a source in the target's `sources`."""

    isa: Literal["avx512", "avx2", "neon", "armv7-neon", "generic"]
    vector_bits: int = Field(ge=64, le=2048, multiple_of=64)
    """Width of a vector register."""
    vector_registers: int = Field(ge=8, le=64)
    """Vector registers of that width that a kernel may use."""
    fma: Literal["broadcast", "by-lane", "none"]
    """How a scalar meets a vector in a multiply-add.

    `broadcast`: the scalar is first spread over a register, or is a memory operand that the
    instruction spreads. `by-lane`: the instruction takes one lane of a register. `none`: multiply
    and add are two instructions.
    """
    fma_units: int = Field(ge=1, le=4)
    """Multiply-adds of full vector width that one core can start per cycle."""
    cores: int = Field(ge=1, le=1024)
    """Physical cores that work on one inference."""
    l1d_kib: int = Field(ge=4)
    """First-level data cache of one core."""
    l1d_ways: int = Field(ge=1)
    """Associativity of the first-level data cache."""
    l2_kib: int = Field(ge=0)
    """Second-level cache, one core's share; 0 where there is none."""
    l3_kib: int = Field(ge=0)
    """Last-level cache that the cores share; 0 where there is none."""
    freq_mhz: int = Field(ge=1)
    """Nominal clock, for estimates only."""
    has_dot_product: bool = False
    """Four int8 products summed into an int32 lane by one instruction (VNNI, SDOT)."""
    has_fp16: bool = False
    """Vector arithmetic on float16."""
    has_bf16: bool = False
    """Two bfloat16 products summed into a float32 lane by one instruction (VDPBF16PS)."""
    has_i8mm: bool = False
    """int8 matrix instructions (SMMLA)."""

    def lanes(self, dtype: str) -> int:
        """Return how many values of `dtype` (`float32`, `int8`, ...) one vector register holds."""
        match = _DTYPE_BITS.match(dtype)
        if match is None:
            raise SpecError(f"dtype {dtype!r} names no width; use one like 'float32' or 'int8'")
        return self.vector_bits // int(match.group(1))


class Emulation(_Section):
    """How the board is emulated where there is none."""

    qemu_cpu: str
    """The emulator's `-cpu`."""


class InstructionWeights(_Section):
    """What instructions cost beside each other, by class; for tuning by counted instructions.

    The unit is that of a multiply-add of full vector width.
    """

    fma: float = Field(gt=0, le=100, allow_inf_nan=False)
    """Vector and floating-point multiply-adds."""
    simd: float = Field(gt=0, le=100, allow_inf_nan=False)
    """Every other vector or floating-point instruction."""
    load_store: float = Field(gt=0, le=100, allow_inf_nan=False)
    """Loads and stores of any register; in kernels nearly all are loads of full vectors."""
    branch: float = Field(gt=0, le=100, allow_inf_nan=False)
    other: float = Field(gt=0, le=100, allow_inf_nan=False)
    """Integer arithmetic, addresses and moves."""
    source: str = Field(min_length=1)
    """Where the weights come from: the core's published optimisation guide."""

    def by_class(self) -> dict[str, float]:
        """Return the weights alone, keyed by class."""
        return self.model_dump(exclude={"source"})


_FIGURES = tuple(name for name, field in Cpu.model_fields.items() if field.annotation is int)
_GPU_FIGURES = tuple(
    name for name, field in Gpu.model_fields.items() if field.annotation in (int, float, bool)
)


class TargetSpec(_Section):
    """One target: what its file says, checked."""

    format_version: Literal[1]
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    description: str
    host: str | None = None
    """The target that `link`, `cpu`, `emulation` and LLVM's options were taken from, if one was
    named: the machine that a GPU sits in."""
    tvm: TvmOptions
    link: Link
    cpu: Cpu
    gpu: Gpu | None = None
    """The OpenCL device, where `tvm.kind` is `opencl`."""
    emulation: Emulation | None = None
    instruction_weights: InstructionWeights | None = None
    sources: dict[str, str]
    """Where each figure of `cpu` comes from, keyed by its field."""
    gpu_sources: dict[str, str] = {}
    """Where each figure of `gpu` comes from, keyed by its field."""

    @model_validator(mode="after")
    def _gpu_where_there_is_opencl(self) -> TargetSpec:
        if self.tvm.kind == "opencl" and self.gpu is None:
            raise ValueError("tvm.kind is 'opencl' and there is no [gpu]; describe the device")
        if self.tvm.kind != "opencl" and self.gpu is not None:
            raise ValueError("there is a [gpu] and tvm.kind is not 'opencl'; write kind = 'opencl'")
        return self

    @model_validator(mode="after")
    def _every_figure_has_a_source(self) -> TargetSpec:
        for where, sources, section, figures in (
            ("sources", self.sources, Cpu, _FIGURES),
            ("gpu_sources", self.gpu_sources, Gpu, _GPU_FIGURES if self.gpu else ()),
        ):
            for key in sources:
                if key not in section.model_fields:
                    part = section.__name__.lower()
                    raise ValueError(f"{where}.{key} is no field of {part}{_closest(key, section)}")
            missing = [name for name in figures if not sources.get(name, "").strip()]
            if missing:
                raise ValueError(
                    f"{where} lacks {', '.join(missing)}; say where each figure is from"
                )
        return self

    @property
    def is_host(self) -> bool:
        """Whether its CPU is the machine at hand, as `tvm_mobilenet.host` describes it."""
        return HOST in (self.name, self.host)

    @property
    def device_kind(self) -> Literal["cpu", "opencl"]:
        """What a library for this target needs to run on."""
        return "opencl" if self.gpu is not None else "cpu"

    def tvm_options(self) -> dict[str, Any]:
        """Return the dictionary that `tvm.target.Target` takes."""
        if self.gpu is None:
            return self._llvm_options()
        options: dict[str, Any] = {
            "kind": "opencl",
            "max_num_threads": self.gpu.max_work_group,
            "max_threads_per_block": self.gpu.max_work_group,
            "max_shared_memory_per_block": self.gpu.local_kib * 1024,
            # Above 1 TVM puts a barrier inside of a divergent branch.
            "thread_warp_size": 1,
            "host": self._llvm_options(),
        }
        if self.gpu.architecture != "generic":
            options["device"] = "mali"
        return options

    def _llvm_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            "kind": "llvm",
            "mtriple": self.tvm.mtriple,
            "mcpu": self.tvm.mcpu,
            "num-cores": self.cpu.cores,
        }
        if self.tvm.mattr:
            options["mattr"] = list(self.tvm.mattr)
        if self.tvm.mfloat_abi:
            options["mfloat-abi"] = self.tvm.mfloat_abi
        return options

    def host_target(self) -> Target:
        """Return TVM's object for the CPU of this target."""
        from tvm.target import Target

        return Target(self._llvm_options())

    def tvm_target(self) -> Target:
        """Return TVM's object for this target."""
        from tvm.target import Target

        return Target(self.tvm_options())

    def fingerprint(self) -> str:
        """Return the sha256 of all that shapes the code; name, prose and clock do not."""
        # What came later than the first logs counts where it is there alone: they stay of use.
        left_out = {"freq_mhz"} if self.cpu.has_bf16 else {"freq_mhz", "has_bf16"}
        content: dict[str, Any] = {
            "tvm": self.tvm.model_dump(mode="json"),
            "link": self.link.model_dump(mode="json"),
            "cpu": self.cpu.model_dump(mode="json", exclude=left_out),
        }
        if self.gpu is not None:
            estimates = {"model", "freq_mhz", "bandwidth_gbs"}
            if not self.gpu.on_cpu:
                estimates.add("on_cpu")
            content["gpu"] = self.gpu.model_dump(mode="json", exclude=estimates)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def shipped_folder(name: str) -> Path:
    """Return a folder that comes with the project: `native`, `targets` or `tuning_logs`.

    An installed package carries it inside itself, a source checkout has it beside the package.
    """
    package = Path(__file__).resolve().parent
    inside = package / "_data" / name
    return inside if inside.is_dir() else package.parent / name


def list_targets() -> tuple[str, ...]:
    """Return the name of every target: `host`, then the shipped files in alphabetical order."""
    return (HOST, *sorted(path.stem for path in shipped_folder("targets").glob("*.toml")))


def load_target(name_or_path: str | Path) -> TargetSpec:
    """Return the target of that name, or the one described by that file.

    What ends in `.toml` or holds a path separator is a file; anything else is a name.

    Raises:
        UnknownTargetError: neither a known name nor a file that is there.
        SpecError: the file does not describe a target.
    """
    text = str(name_or_path)
    if text == HOST:
        from tvm_mobilenet.host import detect_host

        return detect_host()
    if isinstance(name_or_path, Path) or text.endswith(".toml") or os.sep in text:
        path = Path(name_or_path)
        if not path.is_file():
            raise UnknownTargetError(
                f"target file {text!r} does not exist; known names: {_names()}"
            )
        return _read_target(path)
    if text not in list_targets():
        raise UnknownTargetError(
            f"unknown target {text!r}{suggestion(text, list_targets())}; known: {_names()}; "
            "or give the path of a .toml file"
        )
    return _read_target(shipped_folder("targets") / f"{text}.toml")


def _names() -> str:
    return ", ".join(list_targets())


def _read_target(path: Path) -> TargetSpec:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise SpecError(f"target file {path} is not valid TOML: {err}") from err
    except OSError as err:
        raise SpecError(f"target file {path} cannot be read: {err.strerror}") from err
    if content.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        raise SpecError(
            f"target file {path} has format_version {content['format_version']!r}; "
            f"this version reads {FORMAT_VERSION}"
        )
    if content.get("name") == HOST:
        raise SpecError(f"target file {path}: the name 'host' is kept for the machine at hand")
    if "host" in content:
        content = _with_host(content, path)
    try:
        return TargetSpec.model_validate(content)
    except ValidationError as err:
        problems = "; ".join(_say(problem) for problem in err.errors()[:3])
        raise SpecError(f"target file {path}: {problems}") from err


def _with_host(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Fill in the CPU's side of a target from the target that its `host` names."""
    taken = ("link", "cpu", "emulation", "sources")
    for key in taken:
        if key in content:
            raise SpecError(
                f"target file {path}: {key} is given beside host = {content['host']!r}, which has "
                "its own; leave one of the two out"
            )
    if content["host"] not in list_targets() or content["host"] == content.get("name"):
        raise SpecError(
            f"target file {path}: host is {content['host']!r}; name a target with a CPU: {_names()}"
        )
    host = load_target(content["host"])
    if host.gpu is not None:
        raise SpecError(f"target file {path}: host {host.name!r} is a GPU; name one with a CPU")
    theirs = host.model_dump(mode="json", by_alias=True, exclude_none=True)
    tvm = {**theirs["tvm"], **content.get("tvm", {})}
    return {**content, "tvm": tvm, **{key: theirs[key] for key in taken if key in theirs}}


def _closest(key: str, section: type[BaseModel]) -> str:
    names = [field.alias or name for name, field in section.model_fields.items()]
    return suggestion(key, names) or f"; known: {', '.join(names)}"


def _say(problem: Mapping[str, Any]) -> str:
    """Turn one of pydantic's findings into a sentence that names field, value and remedy."""
    location = [str(part) for part in problem["loc"]]
    field = ".".join(location)
    if problem["type"] == "extra_forbidden":
        sections: dict[str, type[BaseModel]] = {
            "tvm": TvmOptions,
            "link": Link,
            "cpu": Cpu,
            "gpu": Gpu,
            "emulation": Emulation,
            "instruction_weights": InstructionWeights,
        }
        parent = sections.get(location[0], TargetSpec) if len(location) > 1 else TargetSpec
        return f"unknown key {field!r}{_closest(location[-1], parent)}"
    if problem["type"] == "missing":
        return f"{field} is missing"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not field:
        return message
    return f"{field} is {problem['input']!r}: {message}"

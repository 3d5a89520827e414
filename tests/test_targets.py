from __future__ import annotations

import re
from pathlib import Path

import pytest

from tvm_mobilenet.elf import library_machine
from tvm_mobilenet.errors import SpecError, UnknownTargetError
from tvm_mobilenet.targets import list_targets, load_target, shipped_folder

SHIPPED = [name for name in list_targets() if name != "host"]

WANTED = {
    "generic-aarch64",
    "generic-armv7",
    "opencl-generic",
    "jetson-orin-cpu",
    "rk3399",
    "rk3399-mali",
    "rk3588",
    "rk3588-mali",
    "rpi3",
    "rpi4",
    "rpi5",
    "vim3-mali",
    "x86-64-avx2",
    "x86-64-avx512-bf16",
    "x86-64-avx512-vnni",
    "x86-64-zen3",
}


def edited(tmp_path: Path, *edits: tuple[str, str], of: str = "rpi4") -> Path:
    text = (shipped_folder("targets") / f"{of}.toml").read_text()
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "board.toml"
    path.write_text(text)
    return path


def test_ships_the_boards_that_are_promised():
    assert set(SHIPPED) == WANTED
    assert list_targets()[0] == "host"


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_file_is_named_after_its_target(name: str):
    assert load_target(name).name == name


@pytest.mark.parametrize("name", SHIPPED)
def test_a_kernel_compiles_to_an_object_for_every_target(name: str, tmp_path: Path):
    import tvm
    from tvm import te

    spec = load_target(name)
    x = te.placeholder((64,), name="x", dtype="float32")
    y = te.compute((64,), lambda i: x[i] * x[i] + x[i], name="y")
    module = tvm.IRModule({"square_plus": te.create_prim_func([x, y])})
    library = tvm.compile(module, target=spec.host_target())
    path = tmp_path / "kernel.o"
    library.mod.write_to_file(str(path))

    wanted = {"x86_64": "x86-64", "aarch64": "aarch64", "armv7l": "arm"}
    assert library_machine(path) == wanted[spec.tvm.mtriple.split("-")[0]]


@pytest.mark.parametrize("name", list_targets())
def test_llvm_knows_the_processor(name: str):
    from tvm.target import codegen

    spec = load_target(name)
    assert codegen.llvm_is_valid_cpu(spec.tvm.mcpu, spec.tvm.mtriple)


def test_tvm_is_told_the_number_of_cores():
    spec = load_target("rpi4")
    assert spec.tvm_target().attrs["num-cores"] == spec.cpu.cores == 4


def test_lanes_follow_the_dtype():
    cpu = load_target("x86-64-avx512-vnni").cpu
    assert [cpu.lanes(t) for t in ("float32", "float16", "int8", "uint8")] == [16, 32, 64, 64]
    with pytest.raises(SpecError, match="names no width"):
        cpu.lanes("bool")


def test_fingerprint_sees_what_shapes_code_and_nothing_else(tmp_path: Path):
    rpi4 = load_target("rpi4").fingerprint()
    prose = edited(
        tmp_path, ('name = "rpi4"', 'name = "mine"'), ("freq_mhz = 1500", "freq_mhz = 1")
    )
    assert load_target(prose).fingerprint() == rpi4
    cache = edited(tmp_path, ("l2_kib = 256", "l2_kib = 128"))
    assert load_target(cache).fingerprint() != rpi4
    assert len({load_target(name).fingerprint() for name in SHIPPED}) == len(SHIPPED)


MALI = """format_version = 1
name = "my-mali"
description = "a board"
host = "rk3399"
[tvm]
kind = "opencl"
""" + (shipped_folder("targets") / "rk3399-mali.toml").read_text().split("[tvm]")[1].split(
    'kind = "opencl"'
)[1]


def described(tmp_path: Path, *edits: tuple[str, str]) -> Path:
    text = MALI
    for old, new in edits:
        assert old in text
        text = text.replace(old, new, 1)
    path = tmp_path / "mali.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", [name for name in SHIPPED if name.endswith("-mali")])
def test_a_mali_is_opencl_beside_an_arm_cpu(name: str):
    spec = load_target(name)
    target = spec.tvm_target()
    assert spec.device_kind == "opencl"
    assert target.kind.name == "opencl"
    assert "mali" in target.keys
    assert target.attrs["thread_warp_size"] == 1
    assert str(target.host.attrs["mtriple"]) == "aarch64-linux-gnu"
    assert str(target.host.attrs["mcpu"]) == spec.tvm.mcpu


def test_a_gpu_sits_in_the_machine_that_its_target_names():
    board, mali = load_target("rk3399"), load_target("rk3399-mali")
    assert (mali.cpu, mali.link, mali.emulation) == (board.cpu, board.link, board.emulation)
    generic, host = load_target("opencl-generic"), load_target("host")
    assert generic.is_host
    assert generic.cpu == host.cpu


def test_a_resolved_gpu_target_reads_back_as_itself():
    spec = load_target("rk3399-mali")
    assert type(spec).model_validate_json(spec.model_dump_json(by_alias=True)) == spec


def test_fingerprint_sees_the_gpu_and_not_its_clock(tmp_path: Path):
    shipped = load_target("rk3399-mali").fingerprint()
    assert load_target(described(tmp_path, ("freq_mhz = 800", "freq_mhz = 500"))).fingerprint() == (
        shipped
    )
    fewer = described(tmp_path, ("max_work_group = 256", "max_work_group = 128"))
    assert load_target(fewer).fingerprint() != shipped


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('kind = "opencl"', 'kind = "llvm"', r"there is a \[gpu\] and tvm.kind is not 'opencl'"),
        ("[gpu_sources]", "[cpu]\n[gpu_sources]", r"cpu is given beside host = 'rk3399'"),
        ('host = "rk3399"', 'host = "rk33"', r"host is 'rk33'; name a target with a CPU"),
        ('host = "rk3399"', 'host = "vim3-mali"', r"host 'vim3-mali' is a GPU"),
        ("warp = 1", "wrap = 1", r"unknown key 'gpu.wrap'; did you mean 'warp'"),
        ("cores = 4", "cores = 0", r"gpu.cores is 0"),
        ('warp = "', '# warp = "', r"gpu_sources lacks warp"),
        ('"midgard"', '"utgard"', r"gpu.architecture is 'utgard'"),
    ],
)
def test_a_wrong_gpu_target_is_one_clear_line(tmp_path: Path, old: str, new: str, says: str):
    with pytest.raises(SpecError, match=says) as caught:
        load_target(described(tmp_path, (old, new)))
    assert "\n" not in str(caught.value)


def test_unknown_name_suggests_the_closest():
    with pytest.raises(UnknownTargetError, match=r"unknown target 'rp4'; did you mean 'rpi4'\?"):
        load_target("rp4")


def test_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UnknownTargetError, match=r"target file .*/none\.toml. does not exist"):
        load_target(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("l2_kib = 256", "l2_kb = 256", r"unknown key 'cpu\.l2_kb'; did you mean 'l2_kib'"),
        ("[link]", "[linc]", r"unknown key 'linc'; did you mean 'link'"),
        ("glibc", "glib", r"unknown key 'link\.glib'; did you mean 'glibc'"),
        ("cores = 4", 'cores = "four"', r"cpu\.cores is 'four'"),
        ("cores = 4", "cores = 0", r"cpu\.cores is 0: .*greater than or equal to 1"),
        ('isa = "neon"', 'isa = "nean"', r"cpu\.isa is 'nean': .*'neon'"),
        ('l2_kib = "Rasp', '#l2_kib = "', r"sources lacks l2_kib"),
        ("freq_mhz = 1500", "", r"cpu\.freq_mhz is missing"),
        ("format_version = 1", "format_version = 2", r"format_version 2; this version reads 1"),
        ("format_version = 1", "", r"format_version is missing"),
        ("cores = 4", "cores = ", r"not valid TOML"),
        ('name = "rpi4"', 'name = "host"', r"kept for the machine at hand"),
        ('mcpu = "cortex-a72"', 'mcpu = "x"\nmattr = ["dotprod"]', r"write '\+dotprod'"),
        ("[sources]", '[sources]\nl4_kib = "?"', r"sources\.l4_kib is no field of cpu; did"),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path: Path, old: str, new: str, says: str):
    path = edited(tmp_path, (old, new))
    with pytest.raises(SpecError, match=says) as caught:
        load_target(str(path))
    assert "\n" not in str(caught.value) or "TOML" in str(caught.value)


def test_binary_file_is_no_toml(tmp_path: Path):
    path = tmp_path / "noise.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="not valid TOML"):
        load_target(path)


def test_spec_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        load_target("rpi4").name = "other"  # type: ignore[misc]


FULL_WIDTH_FMA = {
    "avx512": r"vfmadd\w+ps\s.*%zmm",
    "avx2": r"vfmadd\w+ps\s.*%ymm",
    "neon": r"fmla\s+v\d+\.4s",
    "armv7-neon": r"vfma\.f32\s+q\d+",
}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_vector_multiply_add_becomes_one_instruction_of_full_width(name: str):
    import tvm
    from tvm import te
    from tvm.s_tir import Schedule

    spec = load_target(name)
    a, b = (te.placeholder((1024,), name=n, dtype="float32") for n in "ab")
    c = te.compute((1024,), lambda i: a[i] * b[i] + a[i], name="c")
    schedule = Schedule(te.create_prim_func([a, b, c]))
    (loop,) = schedule.get_loops(schedule.get_sblock("c"))
    schedule.vectorize(schedule.split(loop, [None, spec.cpu.lanes("float32")])[1])
    library = tvm.compile(schedule.mod, target=spec.tvm_target())
    assert re.search(FULL_WIDTH_FMA[spec.cpu.isa], library.mod.inspect_source("asm"))


@pytest.mark.parametrize("name", SHIPPED)
def test_instruction_weights_have_a_source_and_change_no_code(name: str):
    spec = load_target(name)
    if spec.instruction_weights is None:
        assert spec.gpu is not None or not spec.tvm.mtriple.startswith("aarch64")
        return
    assert spec.instruction_weights.by_class()["fma"] == 1
    assert "Optimization Guide" in spec.instruction_weights.source
    silent = spec.model_copy(update={"instruction_weights": None})
    assert silent.fingerprint() == spec.fingerprint()


def test_instruction_weights_are_checked(tmp_path: Path):
    free = edited(tmp_path, ("load_store = 0.5", "load_store = 0"))
    with pytest.raises(SpecError, match=r"instruction_weights.load_store is 0: .* greater than 0"):
        load_target(free)
    odd = edited(tmp_path, ("load_store = 0.5", "loads = 0.5"))
    with pytest.raises(SpecError, match=r"unknown key 'instruction_weights.loads'.*load_store"):
        load_target(odd)

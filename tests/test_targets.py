from __future__ import annotations

from pathlib import Path

import pytest

from tvm_mobilenet import targets
from tvm_mobilenet.elf import library_machine
from tvm_mobilenet.errors import SpecError, UnknownTargetError
from tvm_mobilenet.targets import TargetSpec, list_targets, load_target, shipped_folder

SHIPPED = [name for name in list_targets() if name != "host"]

WANTED = {
    "generic-aarch64",
    "generic-armv7",
    "jetson-orin-cpu",
    "rk3399",
    "rk3588",
    "rpi3",
    "rpi4",
    "rpi5",
    "x86-64-avx2",
    "x86-64-avx512-vnni",
}

ZEN4_FLAGS = (
    "fma movbe popcnt sse4_1 sse4_2 ssse3 abm f16c avx avx2 bmi1 bmi2 avx512f avx512dq avx512cd "
    "avx512bw avx512vl avx512ifma avx512_bf16 avx512vbmi avx512_vbmi2 gfni vaes vpclmulqdq "
    "avx512_vnni avx512_bitalg avx512_vpopcntdq"
)


def edited(tmp_path: Path, *edits: tuple[str, str], of: str = "rpi4") -> Path:
    text = (shipped_folder("targets") / f"{of}.toml").read_text()
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "board.toml"
    path.write_text(text)
    return path


def machine(root: Path, cpuinfo: str, cpus: dict[str, str] | None = None) -> Path:
    """Lay out what detection reads under `root`: /proc/cpuinfo, and files below /sys's cpus."""
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text(cpuinfo)
    for name, text in (cpus or {}).items():
        path = root / "sys/devices/system/cpu" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


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
    library = tvm.compile(module, target=spec.tvm_target())
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


# --- detection ----------------------------------------------------------------------------------


def test_this_machine_is_described():
    host = load_target("host")
    assert host.is_host
    assert host is load_target("host")
    assert host.cpu.cores >= 1
    assert host.cpu.l1d_kib >= 16
    host.tvm_target()


def zen4(root: Path, flags: str = ZEN4_FLAGS) -> TargetSpec:
    block = "processor : {}\nvendor_id : AuthenticAMD\ncpu family : 25\nmodel name : EPYC\n"
    cpuinfo = "\n".join(block.format(i) + f"flags : {flags}\ncpu MHz : 2596.1\n" for i in range(4))
    files = {
        "cpu0/cache/index0/level": "1",
        "cpu0/cache/index0/type": "Data",
        "cpu0/cache/index0/size": "32K",
        "cpu0/cache/index0/ways_of_associativity": "8",
        "cpu0/cache/index1/level": "1",
        "cpu0/cache/index1/type": "Instruction",
        "cpu0/cache/index1/size": "64K",
        "cpu0/cache/index2/level": "2",
        "cpu0/cache/index2/type": "Unified",
        "cpu0/cache/index2/size": "1024K",
        "cpu0/cache/index2/shared_cpu_list": "0-1",
        "cpu0/cache/index3/level": "3",
        "cpu0/cache/index3/type": "Unified",
        "cpu0/cache/index3/size": "32M",
        **{f"cpu{i}/topology/thread_siblings_list": "0-1" if i < 2 else "2-3" for i in range(4)},
    }
    machine(root, cpuinfo, files)
    return targets._describe_host("x86_64", root, "znver4", (0, 1, 2, 3))


def test_two_threads_of_one_core_count_once(tmp_path: Path):
    host = zen4(tmp_path)
    assert host.cpu.cores == 2
    assert (host.cpu.l1d_kib, host.cpu.l2_kib, host.cpu.l3_kib) == (32, 1024, 32768)
    assert host.cpu.l1d_ways == 8
    assert (host.cpu.isa, host.cpu.vector_bits, host.cpu.vector_registers) == ("avx512", 512, 32)
    assert host.cpu.fma_units == 1
    assert host.cpu.has_dot_product
    assert (host.tvm.mcpu, host.tvm.mattr) == ("znver4", ())


def test_features_that_a_virtual_machine_masks_are_not_compiled_for(tmp_path: Path):
    flags = " ".join(f for f in ZEN4_FLAGS.split() if not f.startswith("avx512"))
    host = zen4(tmp_path, flags)
    assert (host.tvm.mcpu, host.cpu.isa, host.cpu.vector_registers) == ("x86-64-v3", "avx2", 16)
    assert "+vaes" in host.tvm.mattr
    assert not any("512" in feature for feature in host.tvm.mattr)


def test_a_plain_x86_has_no_fma(tmp_path: Path):
    host = zen4(tmp_path, "sse sse2 ssse3 sse4_1 sse4_2 popcnt")
    assert (host.tvm.mcpu, host.cpu.isa, host.cpu.fma) == ("x86-64-v2", "generic", "none")


def rockchip(root: Path) -> Path:
    parts = ["0xd05"] * 4 + ["0xd0b"] * 4
    blocks = (
        f"processor : {i}\nFeatures : fp asimd asimdhp asimddp\nCPU part : {part}\n"
        for i, part in enumerate(parts)
    )
    capacity = {f"cpu{i}/cpu_capacity": "414" if i < 4 else "1024" for i in range(8)}
    clock = {"cpu4/cpufreq/cpuinfo_max_freq": "2400000"}
    return machine(root, "\n".join(blocks), capacity | clock)


def test_the_big_cluster_of_an_arm_board_is_taken(tmp_path: Path, caplog):
    caplog.set_level("INFO")
    host = targets._describe_host("aarch64", rockchip(tmp_path), "cortex-a55", tuple(range(8)))
    assert (host.tvm.mcpu, host.cpu.cores, host.cpu.freq_mhz) == ("cortex-a76", 4, 2400)
    assert (host.cpu.fma, host.cpu.fma_units, host.cpu.vector_registers) == ("by-lane", 2, 32)
    assert (host.cpu.has_dot_product, host.cpu.has_fp16, host.cpu.has_i8mm) == (True, True, False)
    assert host.link.triple == "aarch64-linux-gnu"
    assert host.cpu.l1d_kib == 32
    assert "hides its caches" in host.sources["l2_kib"]
    assert "hides its caches" in caplog.text


def test_affinity_to_the_small_cluster_is_respected(tmp_path: Path):
    host = targets._describe_host("aarch64", rockchip(tmp_path), "cortex-a76", (0, 1))
    assert (host.tvm.mcpu, host.cpu.cores) == ("cortex-a55", 2)


def test_an_unknown_architecture_is_taken_for_plain_and_says_so(tmp_path: Path, caplog):
    root = machine(tmp_path, "processor : 0\n")
    host = targets._describe_host("riscv64", root, "", (0,))
    assert (host.cpu.isa, host.tvm.mtriple) == ("generic", "riscv64-linux-gnu")
    assert "riscv64" in caplog.text


def test_a_cpu_quota_limits_the_cores(tmp_path: Path):
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("150000 100000\n")
    host = targets._describe_host("riscv64", machine(tmp_path, ""), "", tuple(range(8)))
    assert host.cpu.cores == 2

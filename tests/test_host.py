from __future__ import annotations

from pathlib import Path

from tvm_mobilenet.host import _describe_host
from tvm_mobilenet.targets import TargetSpec, load_target

ZEN4_FLAGS = (
    "fma movbe popcnt sse4_1 sse4_2 ssse3 abm f16c avx avx2 bmi1 bmi2 avx512f avx512dq avx512cd "
    "avx512bw avx512vl avx512ifma avx512_bf16 avx512vbmi avx512_vbmi2 gfni vaes vpclmulqdq "
    "avx512_vnni avx512_bitalg avx512_vpopcntdq"
)


def machine(root: Path, cpuinfo: str, cpus: dict[str, str] | None = None) -> Path:
    """Lay out what detection reads under `root`: /proc/cpuinfo, and files below /sys's cpus."""
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text(cpuinfo)
    for name, text in (cpus or {}).items():
        path = root / "sys/devices/system/cpu" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


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
    return _describe_host("x86_64", root, "znver4", (0, 1, 2, 3))


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
    host = _describe_host("aarch64", rockchip(tmp_path), "cortex-a55", tuple(range(8)))
    assert (host.tvm.mcpu, host.cpu.cores, host.cpu.freq_mhz) == ("cortex-a76", 4, 2400)
    assert (host.cpu.fma, host.cpu.fma_units, host.cpu.vector_registers) == ("by-lane", 2, 32)
    assert (host.cpu.has_dot_product, host.cpu.has_fp16, host.cpu.has_i8mm) == (True, True, False)
    assert host.link.triple == "aarch64-linux-gnu"
    assert host.cpu.l1d_kib == 32
    assert "hides its caches" in host.sources["l2_kib"]
    assert "hides its caches" in caplog.text


def test_affinity_to_the_small_cluster_is_respected(tmp_path: Path):
    host = _describe_host("aarch64", rockchip(tmp_path), "cortex-a76", (0, 1))
    assert (host.tvm.mcpu, host.cpu.cores) == ("cortex-a55", 2)


def test_an_unknown_architecture_is_taken_for_plain_and_says_so(tmp_path: Path, caplog):
    root = machine(tmp_path, "processor : 0\n")
    host = _describe_host("riscv64", root, "", (0,))
    assert (host.cpu.isa, host.tvm.mtriple) == ("generic", "riscv64-linux-gnu")
    assert "riscv64" in caplog.text


def test_a_cpu_quota_limits_the_cores(tmp_path: Path):
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("150000 100000\n")
    host = _describe_host("riscv64", machine(tmp_path, ""), "", tuple(range(8)))
    assert host.cpu.cores == 2

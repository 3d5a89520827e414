"""The emulated board's root folder, and what is said where it cannot be made."""

from __future__ import annotations

import os
import re
import threading

import pytest

from tvm_mobilenet.boards import sysroot
from tvm_mobilenet.boards.sysroot import PACKAGES, board_root, emulator_command, missing_packages
from tvm_mobilenet.errors import DeviceError, SpecError
from tvm_mobilenet.targets import Emulation, list_targets, load_target


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(sysroot, "missing_packages", lambda: ())


def test_cpuinfo_describes_every_processor_as_an_arm_kernel_does():
    text = (board_root("cortex-a72") / "proc/cpuinfo").read_text()
    blocks = text.strip().split("\n\n")
    assert len(blocks) == os.cpu_count()
    fields = dict(re.split(r"\s*: ", line) for line in blocks[-1].splitlines())
    assert fields["processor"] == str(len(blocks) - 1)
    assert fields["CPU implementer"] == "0x41"
    assert fields["CPU part"] == "0xd08"
    assert {"fp", "asimd", "crc32"} <= set(fields["Features"].split())
    assert "asimddp" not in fields["Features"].split()


def test_a_newer_processor_has_dot_products():
    text = (board_root("cortex-a76") / "proc/cpuinfo").read_text()
    assert "asimddp" in text
    assert "0xd0b" in text


def test_the_libraries_are_the_distribution_s(tmp_path):
    assert str((board_root("cortex-a53") / "lib").readlink()) == "/usr/aarch64-linux-gnu/lib"


def test_it_is_made_once_and_repaired_where_it_is_old(tmp_path):
    root = board_root("cortex-a53")
    made = root.stat().st_ino
    assert board_root("cortex-a53") == root
    assert root.stat().st_ino == made
    (root / "proc/cpuinfo").write_text("something older")
    assert "0xd03" in (board_root("cortex-a53") / "proc/cpuinfo").read_text()
    assert [path.name for path in root.parent.iterdir()] == [root.name]


def test_two_that_make_it_at_once_get_the_same(tmp_path):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(board_root("cortex-a57"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert (found[0] / "proc/cpuinfo").exists()


def test_every_shipped_aarch64_target_names_a_known_processor(installed):
    for name in list_targets()[1:]:
        target = load_target(name)
        if target.link.triple.startswith("aarch64"):
            command = emulator_command(target)
            assert target.emulation is not None
            assert command[:3] == ["qemu-aarch64", "-cpu", target.emulation.qemu_cpu]


@pytest.mark.parametrize("name", ["x86-64-avx2", "generic-armv7"])
def test_refuses_a_target_of_another_architecture(name):
    with pytest.raises(SpecError, match="only aarch64 boards are emulated"):
        emulator_command(load_target(name))


def test_refuses_a_target_that_names_no_processor():
    target = load_target("rpi4").model_copy(update={"emulation": None})
    with pytest.raises(SpecError, match="names no processor to emulate"):
        emulator_command(target)


def test_refuses_a_processor_that_is_not_known():
    emulation = Emulation(qemu_cpu="cortex-a77")
    target = load_target("rpi4").model_copy(update={"emulation": emulation})
    with pytest.raises(SpecError, match="'cortex-a77', which is not known; did you mean"):
        emulator_command(target)


def test_names_what_is_missing_and_how_to_get_it(monkeypatch, tmp_path):
    absent = dict.fromkeys(PACKAGES, tmp_path / "absent")
    monkeypatch.setattr(sysroot, "PACKAGES", absent)
    assert missing_packages() == tuple(absent)
    with pytest.raises(DeviceError) as caught:
        emulator_command(load_target("rpi4"))
    assert str(caught.value) == (
        "emulated board rpi4: qemu-user, libc6-arm64-cross, libstdc++6-arm64-cross are not "
        "installed here; on Debian or Ubuntu: apt-get install qemu-user libc6-arm64-cross "
        "libstdc++6-arm64-cross"
    )
    assert caught.value.exit_code == 4


def test_the_emulator_is_looked_for_on_the_path(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "qemu-user" in missing_packages()

"""The archive that a product embeds: what is in it, that it is whole, and what is refused."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest

from tvm_mobilenet import bundle as bundle_module
from tvm_mobilenet.artifact import open_artifact
from tvm_mobilenet.bundle import Bundle, bundle_artifact
from tvm_mobilenet.bundle_trial import Trial, emulator, try_bundle
from tvm_mobilenet.elf import host_machine, library_machine, required_versions
from tvm_mobilenet.errors import (
    ArtifactError,
    ManifestMismatchError,
    OutputError,
    SpecError,
    UsageError,
)
from tvm_mobilenet.manifest import Manifest
from tvm_mobilenet.model_text import model_text
from tvm_mobilenet.records import Preprocessing, TensorInfo
from tvm_mobilenet.targets import load_target

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "native/embedded"


@pytest.fixture(scope="module")
def made(colour_dir: Path, tmp_path_factory) -> Bundle:
    return bundle_artifact(colour_dir, out=tmp_path_factory.mktemp("bundle") / "colour.tar.gz")


@pytest.fixture(scope="module")
def root(made: Bundle, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(made.path) as archive:
        archive.extractall(folder, filter="data")
    return folder / "colour-host"


@pytest.fixture
def manifest(colour_dir: Path) -> Manifest:
    return open_artifact(colour_dir).manifest


def test_it_holds_all_that_a_product_embeds(made: Bundle, root: Path):
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert files == {
        "CMakeLists.txt",
        "LICENSE",
        "README.md",
        "bin/classify",
        "include/dlpack/dlpack.h",
        "include/tvm/ffi/c_api.h",
        "include/tvm_mobilenet.h",
        "lib/libtvm_ffi.so",
        "lib/libtvm_runtime.so",
        "licenses/apache-tvm-ffi/LICENSE",
        "licenses/apache-tvm-ffi/LICENSE.libbacktrace",
        "licenses/apache-tvm-ffi/NOTICE",
        "licenses/apache-tvm/LICENSE",
        "licenses/apache-tvm/LICENSE.builtin_fp16.txt",
        "licenses/apache-tvm/NOTICE",
        "model/manifest.json",
        "model/model.so",
        "model/model.txt",
        *(str(p.relative_to(SOURCES)) for p in SOURCES.glob("s*/*") if p.is_file()),
    }
    assert "The Apache Software Foundation" in (root / "licenses/apache-tvm/NOTICE").read_text()
    assert library_machine(root / "bin/classify") == host_machine()


def test_the_archive_names_nobody_and_no_time(made: Bundle):
    with tarfile.open(made.path) as archive:
        members = archive.getmembers()
    assert {member.name.split("/")[0] for member in members} == {"colour-host"}
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members} == {
        (0, 0, "", "", 315_532_800)
    }
    modes = {m.name.split("/", 1)[-1]: m.mode for m in members}
    assert modes["bin/classify"] == modes["lib/libtvm_ffi.so"] == 0o755
    assert modes["README.md"] == modes["model/model.txt"] == 0o644


def test_the_same_artifact_gives_the_same_bytes(made: Bundle, colour_dir: Path, tmp_path: Path):
    again = bundle_artifact(colour_dir, out=tmp_path / "another-name.tgz")
    assert again.sha256 == made.sha256
    assert Path(again.path).read_bytes() == Path(made.path).read_bytes()


def test_its_model_is_an_artifact_without_the_onnx_file(root: Path, colour_dir: Path):
    inside, outside = open_artifact(root / "model"), open_artifact(colour_dir)
    assert inside.onnx_path is None
    assert inside.manifest == outside.manifest.model_copy(update={"onnx": None})


def test_sizes_and_the_trial_are_told(made: Bundle, root: Path):
    total = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    assert made.unpacked_bytes == total
    assert made.parts["model"] > (root / "model/model.so").stat().st_size
    assert made.parts["program"] == (root / "bin/classify").stat().st_size
    assert made.size_bytes == Path(made.path).stat().st_size
    assert made.trial.where == "this machine"
    assert not made.trial.is_emulated
    assert made.trial.start_ms is not None
    assert made.trial.start_ms > 0
    assert made.trial.peak_bytes is not None
    assert 1e6 < made.trial.peak_bytes < 1e9


def test_the_readme_says_what_the_machine_must_have(made: Bundle, root: Path):
    text = (root / "README.md").read_text()
    assert f"glibc {made.needs['GLIBC']} or newer" in text
    assert f"GLIBCXX_{made.needs['GLIBCXX']}" in text
    assert "$" not in text


def test_the_runtime_needs_the_c_and_cpp_libraries_alone(root: Path):
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed")
    for file in (root / "lib/libtvm_runtime.so", root / "lib/libtvm_ffi.so", root / "bin/classify"):
        said = subprocess.run(
            ["readelf", "--dynamic", str(file)], capture_output=True, text=True, check=True
        ).stdout
        needed = set(re.findall(r"\(NEEDED\).*\[(.+?)\]", said))
        system = r"lib(c|m|dl|pthread|rt|stdc\+\+|gcc_s)\.so\.\d+|ld-linux.*"
        own = {"libtvm_runtime.so", "libtvm_ffi.so"}
        assert all(name in own or re.fullmatch(system, name) for name in needed)
    assert own <= needed  # the program asks for both


def test_versions_are_read_as_readelf_reads_them(root: Path):
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed")
    for file in (root / "lib/libtvm_runtime.so", root / "bin/classify", root / "model/model.so"):
        said = subprocess.run(
            ["readelf", "--version-info", "--wide", str(file)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        expected: dict[str, tuple[int, ...]] = {}
        for name, text in re.findall(r"Name: ([A-Z]+)_([\d.]+)", said):
            version = tuple(map(int, text.split(".")))
            expected[name] = max(version, expected.get(name, version))
        assert expected or file.suffix == ".so"  # a model may ask for nothing
        assert required_versions(file) == expected


def test_versions_of_a_damaged_file_are_an_error(root: Path, tmp_path: Path):
    data = bytearray((root / "model/model.so").read_bytes())
    struct.pack_into("<Q", data, 40, len(data) - 3)  # e_shoff
    (tmp_path / "damaged.so").write_bytes(data)
    with pytest.raises(ArtifactError, match="its ELF tables cannot be read"):
        required_versions(tmp_path / "damaged.so")


@pytest.mark.arm
def test_a_boards_glibc_is_the_targets(colour_onnx: Path, tmp_path: Path):
    from tvm_mobilenet.workflow import compile_model

    target = load_target("rpi4")
    if emulator(target, "aarch64") is None:
        pytest.skip("qemu-aarch64 or /usr/aarch64-linux-gnu (libc6-arm64-cross) is not installed")
    compile_model(colour_onnx, target="rpi4", out=tmp_path / "artifact")
    made = bundle_artifact(tmp_path / "artifact", out=tmp_path / "rpi4.tar.gz")
    assert made.machine == "aarch64"
    assert tuple(map(int, made.needs["GLIBC"].split("."))) <= (2, 28)
    if host_machine() != "aarch64":
        assert made.trial.where == "emulated: qemu-aarch64 -cpu cortex-a72"
        assert made.trial.start_ms is None
    assert made.trial.peak_bytes is not None


def test_without_an_emulator_nothing_is_tried_and_that_is_said(root, manifest, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _name: None)
    other = "aarch64" if host_machine() != "aarch64" else "x86-64"
    library = manifest.library.model_copy(update={"machine": other})
    trial = try_bundle(
        root, "bin/classify", manifest.model_copy(update={"library": library}), load_target("rpi4")
    )
    assert trial.where.startswith("not tried: ")
    assert f"qemu-{other}" in trial.where
    assert trial.start_ms is trial.peak_bytes is None


def test_a_program_that_fails_is_not_shipped(colour_dir: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(bundle_module, "model_text", lambda _manifest: b"damaged\n")
    out = tmp_path / "colour.tar.gz"
    out.write_bytes(b"the one before")
    with pytest.raises(ArtifactError, match=r"trying .* ended with 1: .*model\.txt is truncated"):
        bundle_artifact(colour_dir, out=out)
    assert out.read_bytes() == b"the one before"
    assert [path.name for path in tmp_path.iterdir()] == ["colour.tar.gz"]


def test_a_failure_while_writing_leaves_what_was_there(colour_dir, tmp_path, monkeypatch):
    def no_space(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle_module, "try_bundle", lambda *_: Trial(where="not tried"))
    monkeypatch.setattr(tarfile.TarFile, "addfile", no_space)
    out = tmp_path / "colour.tar.gz"
    out.write_bytes(b"the one before")
    with pytest.raises(OutputError, match="the disk is full"):
        bundle_artifact(colour_dir, out=out)
    assert out.read_bytes() == b"the one before"
    assert [path.name for path in tmp_path.iterdir()] == ["colour.tar.gz"]


def test_another_kind_of_archive_is_refused(colour_dir: Path, tmp_path: Path):
    with pytest.raises(SpecError, match=r"product\.zip: .* end it in \.tar\.gz"):
        bundle_artifact(colour_dir, out=tmp_path / "product.zip")


def test_a_damaged_artifact_is_refused(colour_dir: Path, tmp_path: Path):
    copy = Path(shutil.copytree(colour_dir, tmp_path / "copy"))
    data = bytearray((copy / "model.so").read_bytes())
    data[1000] ^= 1
    (copy / "model.so").write_bytes(data)
    with pytest.raises(ManifestMismatchError, match=r"model\.so is altered"):
        bundle_artifact(copy, out=tmp_path / "product.tar.gz")
    assert not (tmp_path / "product.tar.gz").exists()


def test_a_target_without_a_published_runtime_is_refused(colour_onnx: Path, tmp_path: Path):
    from tvm_mobilenet.workflow import compile_model

    compile_model(colour_onnx, target="generic-armv7", out=tmp_path / "armv7")
    with pytest.raises(UsageError, match="TVM publishes no runtime for arm"):
        bundle_artifact(tmp_path / "armv7", out=tmp_path / "product.tar.gz")


def test_names_survive_whatever_is_in_them(manifest: Manifest):
    names = ("two\nlines", "back\\slash", "carriage\rreturn", "ünïcödé 猫", "", " spaces ")
    lines = model_text(manifest.model_copy(update={"class_names": names})).decode().split("\n")
    assert lines[lines.index("classes 6") + 1 :][:6] == [
        r"class two\nlines",
        r"class back\\slash",
        r"class carriage\rreturn",
        "class ünïcödé 猫",
        "class ",
        "class  spaces ",
    ]


def test_numbers_are_spelled_by_their_bits(manifest: Manifest):
    how = Preprocessing(resize=40, crop=32, mean=(0.485, 0.5, 1), std=(0.1, 1, 2))
    text = model_text(manifest.model_copy(update={"preprocessing": how})).decode()
    assert "\nresize 40\ncrop 32\nmean 3ef851ec 3f000000 3f800000\nstd 3dcccccd 3f800000 " in text
    assert text.endswith("\n")
    assert re.fullmatch(r"end [0-9a-f]{64}", text.splitlines()[-1])


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"class_names": ("a\0b",)}, "a zero character"),
        ({"class_names": ("x" * (17 << 20),)}, "shorten the class names"),
        (
            {"preprocessing": Preprocessing(resize=30, crop=32, mean=(0, 0, 0), std=(1, 1, 1))},
            "the crop must not be the larger",
        ),
        (
            {"inputs": (TensorInfo(name="x", shape=(1,), dtype="bfloat16", layout="any"),)},
            r"tensor 'x': bfloat16 \(1,\); a bundle takes bool, float16",
        ),
        (
            {"inputs": (TensorInfo(name="x", shape=(1,) * 9, dtype="int8", layout="any"),)},
            "of up to 8 dimensions",
        ),
        (
            {"inputs": (TensorInfo(name="x", shape=(1,), dtype="int8", layout="any"),) * 65},
            "65 inputs; a bundle takes up to 64",
        ),
    ],
)
def test_what_c_has_no_place_for_is_refused(manifest: Manifest, update, message):
    with pytest.raises(SpecError, match=message):
        model_text(manifest.model_copy(update=update))


def test_the_licence_beside_the_c_sources_is_the_projects():
    assert (SOURCES / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()

"""An artifact folder is whole or not there, and nothing doubtful is opened."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tvm_mobilenet.artifact import OutputFolder, open_artifact, write_artifact
from tvm_mobilenet.elf import host_machine, library_machine
from tvm_mobilenet.errors import ArtifactError, ManifestMismatchError, OutputError
from tvm_mobilenet.files import sha256_of
from tvm_mobilenet.manifest import Description, FileRecord, description_json, read_description

AARCH64 = 183  # e_machine


@pytest.fixture
def copy(colour_dir: Path, tmp_path: Path) -> Path:
    """An artifact that may be damaged."""
    return Path(shutil.copytree(colour_dir, tmp_path / "copy"))


def edit_manifest(folder: Path, change) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def reseal(folder: Path, **library: str) -> None:
    """Make the manifest fit a library that was altered."""
    record = FileRecord.of(folder / "model.so").model_dump() | library
    edit_manifest(folder, lambda content: content["library"].update(record))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def rewrite(folder: Path, out: Path) -> None:
    """Write the artifact in `folder` again, to `out`."""
    found = open_artifact(folder)
    write_artifact(out, found.library_path, found.manifest.description(), found.onnx_path)


class TestOpening:
    def test_manifest_and_library_say_the_same(self, colour_dir: Path):
        found = open_artifact(colour_dir)
        assert found.manifest.model.name == "colour"
        assert found.manifest.class_names == ("red", "green", "blue")
        assert found.manifest.library.machine == host_machine()
        assert found.onnx_path is not None
        assert found.manifest.source.sha256 == sha256_of(found.onnx_path)
        assert read_description(found.library_path) == found.manifest.description()

    def test_the_library_returns_its_description_when_it_is_run(self, colour_dir: Path):
        import tvm
        from tvm.runtime.vm import VirtualMachine

        found = open_artifact(colour_dir)
        vm = VirtualMachine(tvm.runtime.load_module(str(found.library_path)), tvm.cpu())
        assert str(vm["description"]()) == description_json(found.manifest)

    def test_layers_sum_up_in_the_schedule(self, colour_dir: Path):
        manifest = open_artifact(colour_dir).manifest
        counts = manifest.schedule
        assert counts.computed + counts.tuned + counts.fallback == len(manifest.layers) > 0

    def test_no_such_folder(self, tmp_path: Path):
        with pytest.raises(ArtifactError, match="there is no such folder"):
            open_artifact(tmp_path / "none")

    def test_a_folder_without_a_manifest(self, tmp_path: Path):
        with pytest.raises(ArtifactError, match=r"it has no manifest\.json"):
            open_artifact(tmp_path)

    def test_a_file_in_place_of_the_folder(self, copy: Path):
        with pytest.raises(ArtifactError, match="no such folder"):
            open_artifact(copy / "model.so")

    @pytest.mark.parametrize("file", ["model.so", "model.onnx"])
    def test_a_truncated_file(self, copy: Path, file: str):
        path = copy / file
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ManifestMismatchError, match=f"{file} is truncated"):
            open_artifact(copy)

    @pytest.mark.parametrize("file", ["model.so", "model.onnx"])
    def test_one_changed_byte(self, copy: Path, file: str):
        data = bytearray((copy / file).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / file).write_bytes(data)
        with pytest.raises(ManifestMismatchError, match=f"{file} is altered: sha256"):
            open_artifact(copy)

    @pytest.mark.parametrize("file", ["model.so", "model.onnx"])
    def test_a_missing_file(self, copy: Path, file: str):
        (copy / file).unlink()
        with pytest.raises(ArtifactError, match=f"{file} cannot be read: No such file"):
            open_artifact(copy)

    def test_another_schema_version_is_named_with_its_writer(self, copy: Path):
        def later(content):
            content["schema_version"] = 7
            content["versions"]["tvm_mobilenet"] = "9.8.7"

        edit_manifest(copy, later)
        with pytest.raises(ManifestMismatchError, match=r"version 7 \(written by .* 9\.8\.7\)"):
            open_artifact(copy)

    def test_a_manifest_that_is_cut_off(self, copy: Path):
        path = copy / "manifest.json"
        path.write_text(path.read_text()[:200])
        with pytest.raises(ArtifactError, match=r"manifest\.json: not valid JSON"):
            open_artifact(copy)

    def test_an_unknown_field_is_named(self, copy: Path):
        edit_manifest(copy, lambda content: content.update(surprise=1))
        with pytest.raises(ArtifactError, match="field surprise"):
            open_artifact(copy)

    def test_a_missing_field_is_named(self, copy: Path):
        edit_manifest(copy, lambda content: content["library"].pop("sha256"))
        with pytest.raises(ArtifactError, match=r"field library\.sha256"):
            open_artifact(copy)

    def test_a_library_outside_the_folder_is_refused(self, copy: Path):
        edit_manifest(copy, lambda content: content["library"].update(file="../other/model.so"))
        with pytest.raises(ArtifactError, match=r"library\.file.*without a folder"):
            open_artifact(copy)

    def test_a_manifest_of_another_library(self, copy: Path):
        edit_manifest(copy, lambda content: content["class_names"].__setitem__(0, "pink"))
        with pytest.raises(ManifestMismatchError, match="description inside the library differ"):
            open_artifact(copy)

    def test_a_library_that_is_none(self, copy: Path):
        (copy / "model.so").write_text("not a library, but of the right size and hash")
        reseal(copy)
        with pytest.raises(ArtifactError, match="not an ELF shared library"):
            open_artifact(copy)

    def test_a_library_without_a_description(self, copy: Path):
        data = (copy / "model.so").read_bytes()
        (copy / "model.so").write_bytes(data.replace(b"tvm_mobilenet_description", b"x" * 25))
        reseal(copy)
        with pytest.raises(ArtifactError, match="no description found"):
            open_artifact(copy)

    def test_the_header_of_another_machine(self, copy: Path):
        data = bytearray((copy / "model.so").read_bytes())
        struct.pack_into("<H", data, 18, AARCH64)
        (copy / "model.so").write_bytes(data)
        reseal(copy)
        with pytest.raises(ManifestMismatchError, match="the library is for aarch64"):
            open_artifact(copy)

    def test_a_library_for_a_board_can_be_looked_at_but_not_run(
        self, colour_onnx: Path, tmp_path: Path
    ):
        from tvm_mobilenet.workflow import compile_model

        written = compile_model(colour_onnx, out=tmp_path / "board", target="rpi4")
        assert library_machine(written.library_path) == "aarch64"
        with pytest.raises(ArtifactError, match=rf"for aarch64 \(target rpi4\).*{host_machine()}"):
            open_artifact(written.path)
        assert open_artifact(written.path, runnable=False).manifest == written.manifest
        assert read_description(written.library_path).target.name == "rpi4"


class TestWriting:
    def test_the_same_input_gives_the_same_bytes(self, colour_onnx, colour_dir, tmp_path):
        from tvm_mobilenet.workflow import compile_model

        compile_model(colour_onnx, out=tmp_path / "again")
        for name in ("model.so", "manifest.json", "model.onnx"):
            assert (tmp_path / "again" / name).read_bytes() == (colour_dir / name).read_bytes()

    def test_parents_are_made_and_nothing_else_is_left(self, colour_dir: Path, tmp_path: Path):
        rewrite(colour_dir, tmp_path / "a" / "b" / "out")
        assert names(tmp_path / "a" / "b") == {"out"}
        assert names(tmp_path / "a" / "b" / "out") == names(colour_dir)
        open_artifact(tmp_path / "a" / "b" / "out")

    def test_the_onnx_file_can_be_left_out(self, colour_dir: Path, tmp_path: Path):
        found = open_artifact(colour_dir)
        write_artifact(tmp_path / "out", found.library_path, found.manifest.description())
        assert open_artifact(tmp_path / "out").onnx_path is None
        assert names(tmp_path / "out") == {"model.so", "manifest.json"}

    def test_weights_beside_the_onnx_file_are_taken_in(self, colour_dir: Path, tmp_path: Path):
        import onnx

        found = open_artifact(colour_dir)
        assert found.onnx_path is not None
        model = onnx.load(found.onnx_path)
        apart = tmp_path / "apart" / "m.onnx"
        apart.parent.mkdir()
        onnx.save(model, apart, save_as_external_data=True, location="m.data", size_threshold=0)
        assert (tmp_path / "apart" / "m.data").exists()
        written = write_artifact(
            tmp_path / "out", found.library_path, found.manifest.description(), apart
        )
        assert written.onnx_path is not None
        kept = onnx.load(written.onnx_path, load_external_data=False)
        assert all(tensor.raw_data for tensor in kept.graph.initializer)

    @pytest.mark.parametrize("can_exchange", [True, False])
    def test_an_artifact_is_replaced_in_one_piece(
        self, colour_dir: Path, copy: Path, monkeypatch, can_exchange: bool
    ):
        if not can_exchange:
            monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())
        (copy / "run.json").write_text("{}")
        (copy / "manifest.json").write_text("damaged")
        rewrite(colour_dir, copy)
        assert names(copy) == names(colour_dir)
        assert names(copy.parent) == {"copy"}
        open_artifact(copy)

    def test_an_empty_folder_is_filled(self, colour_dir: Path, tmp_path: Path):
        (tmp_path / "out").mkdir()
        rewrite(colour_dir, tmp_path / "out")
        assert names(tmp_path) == {"out"}
        open_artifact(tmp_path / "out")

    def test_the_current_folder_stays_the_current_folder(self, colour_dir, copy, monkeypatch):
        monkeypatch.chdir(copy)
        before = copy.stat().st_ino
        rewrite(colour_dir, Path())
        assert copy.stat().st_ino == before
        assert names(copy) == names(colour_dir)
        open_artifact(copy)

    def test_a_folder_of_somebody_else_is_refused(self, colour_dir: Path, tmp_path: Path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("years of work")
        with pytest.raises(OutputError, match=r"no artifact \(thesis\.tex is in it\)"):
            rewrite(colour_dir, tmp_path / "out")
        assert names(tmp_path / "out") == {"thesis.tex"}
        assert names(tmp_path) == {"out"}

    def test_an_artifact_with_a_file_of_somebody_else_is_refused(self, colour_dir, copy: Path):
        (copy / "notes.txt").write_text("mine")
        with pytest.raises(OutputError, match=r"notes\.txt is in it"):
            rewrite(colour_dir, copy)
        open_artifact(copy)

    def test_a_model_file_alone_makes_no_artifact(self, colour_dir: Path, tmp_path: Path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "model.onnx").write_text("the only copy")
        with pytest.raises(OutputError, match=r"model\.onnx is in it"):
            rewrite(colour_dir, tmp_path / "out")
        assert (tmp_path / "out" / "model.onnx").read_text() == "the only copy"

    def test_a_file_in_the_way(self, colour_dir: Path, tmp_path: Path):
        (tmp_path / "out").write_text("")
        with pytest.raises(OutputError, match="it is a file"):
            rewrite(colour_dir, tmp_path / "out")

    @pytest.mark.parametrize("place", ["/proc/nothing/out", "/dev/null/out"])
    def test_a_place_that_cannot_be_written(self, colour_dir: Path, place: str):
        with pytest.raises(OutputError, match="cannot write"):
            rewrite(colour_dir, Path(place))

    def test_a_folder_without_permission(self, colour_dir: Path):
        found = open_artifact(colour_dir)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)  # nobody: root may write everywhere
        try:
            with pytest.raises(OutputError, match=r"cannot write /usr/out: permission denied"):
                write_artifact("/usr/out", found.library_path, found.manifest.description())
        finally:
            if is_root:
                os.seteuid(0)

    @pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
    def test_an_interruption_leaves_what_was_there(self, copy: Path, tmp_path: Path, error):
        def interrupted(out: Path) -> None:
            with OutputFolder(out) as folder:
                (folder.staging / "half.so").write_text("half")
                raise error

        for out in (copy, tmp_path / "new" / "deep" / "out"):
            with pytest.raises(error):
                interrupted(out)
        assert names(tmp_path) == {"copy"}
        open_artifact(copy)

    def test_a_disk_that_fills_up_leaves_what_was_there(self, colour_dir, copy, monkeypatch):
        def full(_source: Path, _target: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("shutil.copyfile", full)
        with pytest.raises(OutputError, match="the disk is full; free some space"):
            rewrite(colour_dir, copy)
        assert names(copy.parent) == {"copy"}
        open_artifact(copy)

    def test_a_disk_that_is_really_full(self, colour_dir: Path, tmp_path: Path):
        disk = tmp_path / "disk"
        disk.mkdir()
        script = tmp_path / "fill.py"
        script.write_text(f"""
from pathlib import Path
from tvm_mobilenet.artifact import open_artifact, write_artifact
from tvm_mobilenet.errors import OutputError
found, disk = open_artifact({str(colour_dir)!r}), Path({str(disk)!r})
(disk / "ballast").write_bytes(bytes(50_000))
try:
    write_artifact(disk / "out", found.library_path, found.manifest.description())
except OutputError as err:
    print(err, [path.name for path in disk.iterdir()])
""")
        # A mount namespace of its own: nothing to unmount, whatever happens.
        mount = f"mount -t tmpfs -o size=64k tmpfs {disk} || exit 77; {sys.executable} {script}"
        command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount]
        if shutil.which("unshare") is None:
            pytest.skip("no `unshare` to mount a small disk with")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 77 or "unshare failed" in done.stderr:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
        assert "the disk is full; free some space" in done.stdout, done.stderr
        assert done.stdout.strip().endswith("['ballast']")

    def test_a_library_with_another_description_is_refused(self, colour_dir: Path, tmp_path: Path):
        found = open_artifact(colour_dir)
        other = found.manifest.description().model_copy(update={"class_names": None})
        with pytest.raises(ArtifactError, match="does not carry the description"):
            write_artifact(tmp_path / "out", found.library_path, other)
        assert list(tmp_path.iterdir()) == []


HOLDER = """
import sys, time
from tvm_mobilenet.artifact import OutputFolder
with OutputFolder(sys.argv[1]) as folder:
    (folder.staging / "half.so").write_text("half")
    print("holding", flush=True)
    time.sleep(60)
"""


class TestTwoWriters:
    def test_the_second_is_turned_away_and_the_first_goes_on(self, colour_dir, tmp_path: Path):
        found = open_artifact(colour_dir)
        with OutputFolder(tmp_path / "out") as first:
            with pytest.raises(OutputError, match="another compilation is writing to it"):
                rewrite(colour_dir, tmp_path / "out")
            first.commit(found.library_path, found.manifest.description())
        open_artifact(tmp_path / "out")
        assert names(tmp_path) == {"out"}

    def test_two_folders_do_not_meet(self, colour_dir: Path, tmp_path: Path):
        with OutputFolder(tmp_path / "out"):
            rewrite(colour_dir, tmp_path / "out2")
        open_artifact(tmp_path / "out2")

    def test_a_killed_writer_blocks_nobody_and_is_cleaned_up_after(self, colour_dir, tmp_path):
        out = tmp_path / "out"
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(out)], stdout=subprocess.PIPE, text=True
        )
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "holding\n"
            with pytest.raises(OutputError, match="another compilation"):
                rewrite(colour_dir, out)
        finally:
            holder.send_signal(signal.SIGKILL)
            holder.communicate()
        assert names(tmp_path) != set()
        rewrite(colour_dir, out)
        assert names(tmp_path) == {"out"}
        open_artifact(out)


def test_description_survives_its_json(colour_dir: Path):
    description = open_artifact(colour_dir).manifest.description()
    text = description_json(description)
    assert text.isascii()
    assert "\n" not in text
    content = json.loads(text)["tvm_mobilenet_description"]
    assert Description.model_validate(content) == description


def test_description_with_names_in_every_script(colour_dir: Path, tmp_path: Path):
    description = open_artifact(colour_dir).manifest.description()
    described = description.model_copy(update={"class_names": ('naïve "猫"', "\x7f\n", "blue")})
    library = tmp_path / "library.so"
    library.write_bytes(b"\x7fELF..." + description_json(described).encode() + b"\x05more")
    assert read_description(library) == described
    library.write_bytes(library.read_bytes()[:60])
    with pytest.raises(ArtifactError, match="the description in it is damaged"):
        read_description(library)

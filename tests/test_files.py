from __future__ import annotations

import errno
import hashlib
import subprocess
import sys

import pytest

from tvm_mobilenet.errors import OutputError
from tvm_mobilenet.files import new_file, sha256_of


def test_the_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "folder" / "x.txt"
    with new_file(path) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == path.parent
        assert temporary.suffix == path.suffix
        assert not path.exists()
    assert path.read_text() == "whole"
    assert [entry.name for entry in path.parent.iterdir()] == ["x.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path, error):
    path = tmp_path / "x.txt"
    path.write_text("old")

    def fail_halfway():
        with new_file(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail_halfway()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.txt"]


def test_others_may_read_it_as_far_as_the_umask_lets_them(tmp_path):
    (tmp_path / "plain").write_text("")
    with new_file(tmp_path / "x") as temporary:
        temporary.write_text("")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_in_its_place_is_an_output_error(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(OutputError, match="x: it is a folder; choose"), new_file(tmp_path / "x"):
        pass


def test_a_file_where_a_folder_should_be_is_an_output_error(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*y:"), new_file(tmp_path / "x" / "y"):
        pass


def test_a_full_disk_is_named(tmp_path):
    with pytest.raises(OutputError, match="the disk is full; free"), new_file(tmp_path / "x"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_really_full_is_named_and_left_as_it_was(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    code = f"""
from pathlib import Path
from tvm_mobilenet.errors import OutputError
from tvm_mobilenet.files import new_file
disk = Path({str(disk)!r})
try:
    with new_file(disk / "x.bin") as temporary:
        temporary.write_bytes(bytes(200_000))
except OutputError as err:
    print(err, sorted(disk.iterdir()))
"""
    script = tmp_path / "fill.py"
    script.write_text(code)
    mounted = f"mount -t tmpfs -o size=64k tmpfs {disk} && exec {sys.executable} {script}"
    try:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", mounted], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("needs unshare, to mount a small file system")
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip(f"may not mount a small file system here: {done.stderr.strip()}")
    assert done.stdout.startswith(f"cannot write {disk / 'x.bin'}: the disk is full;")
    assert done.stdout.strip().endswith("[]")


def test_sha256_is_that_of_the_content(tmp_path):
    content = bytes(range(256)) * 10_000
    (tmp_path / "x").write_bytes(content)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(content).hexdigest()

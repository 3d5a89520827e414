"""The artifact folder: how it is written in one piece, and what is checked before it is used.

    DIR/
      model.so        the library, parameters inside, packed
      manifest.json   what it is, what it was made from, and the hashes of the files beside it
      model.onnx      the model it was made from, for `verify`; may be left out

A folder is either the old artifact or the new one, never half of each.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import secrets
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tvm_mobilenet.elf import host_machine, library_machine
from tvm_mobilenet.errors import ArtifactError, ManifestMismatchError, OutputError
from tvm_mobilenet.files import output_error, sha256_of
from tvm_mobilenet.manifest import (
    Description,
    FileRecord,
    LibraryRecord,
    Manifest,
    description_json,
    parse_manifest,
    read_description,
)

__all__ = [
    "LIBRARY_FILE",
    "MANIFEST_FILE",
    "ONNX_FILE",
    "OWN_FILES",
    "Artifact",
    "OutputFolder",
    "open_artifact",
    "write_artifact",
    "wrong_machine",
]

logger = logging.getLogger(__name__)

LIBRARY_FILE = "model.so"
MANIFEST_FILE = "manifest.json"
ONNX_FILE = "model.onnx"
RUN_FILE = "run.json"
OWN_FILES = frozenset({LIBRARY_FILE, MANIFEST_FILE, ONNX_FILE, RUN_FILE})
"""What a folder may hold and still be replaced; any other file makes it somebody else's."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact folder whose manifest, hashes and embedded description belong together."""

    path: Path
    manifest: Manifest

    @property
    def library_path(self) -> Path:
        """The compiled library."""
        return self.path / self.manifest.library.file

    @property
    def onnx_path(self) -> Path | None:
        """The model as ONNX, or None where it was not kept."""
        return self.path / self.manifest.onnx.file if self.manifest.onnx else None


def open_artifact(
    path: Path | str, *, runnable: bool = True, machine: str | None = None
) -> Artifact:
    """Check an artifact folder and return it; nothing in it has been loaded or executed.

    Args:
        path: the folder that `compile` wrote.
        runnable: refuse a library for another architecture than `machine`.
        machine: where it is to run, in `library_machine`'s words; None for this machine.

    Raises:
        ArtifactError: no artifact there, a file missing, truncated or altered, or a library for
            another machine.
        ManifestMismatchError: another schema version, or files that do not belong together.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    library = path / manifest.library.file
    _check_file(library, manifest.library)
    if manifest.onnx is not None:
        _check_file(path / manifest.onnx.file, manifest.onnx)
    found = library_machine(library)
    if found != manifest.library.machine:
        raise ManifestMismatchError(
            f"artifact {path}: the manifest says {manifest.library.machine}, the library is for "
            f"{found}; compile the model again"
        )
    if runnable and found != (machine or host_machine()):
        raise wrong_machine(Artifact(path, manifest), machine)
    if description_json(read_description(library)) != description_json(manifest):
        raise ManifestMismatchError(
            f"artifact {path}: the manifest and the description inside the library differ; "
            "compile the model again"
        )
    return Artifact(path, manifest)


def wrong_machine(
    artifact: Artifact, machine: str | None = None, *, on_board: bool = False
) -> ArtifactError:
    """Word that an artifact's library is not for `machine`, or None for this one."""
    library, target = artifact.manifest.library, artifact.manifest.target
    found = f"{library.machine} (target {target.name})"
    head = f"artifact {artifact.path}: the library is for {found}, "
    if not on_board:
        return ArtifactError(
            f"{head}this machine is {machine or host_machine()}; run it there, or compile with "
            "--target host"
        )
    return ArtifactError(
        f"{head}the board is {machine}; compile with the board's --target "
        "(`tvm-mobilenet targets` lists them)"
    )


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST_FILE
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as err:
        found = "there is no such folder" if not path.is_dir() else f"it has no {MANIFEST_FILE}"
        raise ArtifactError(
            f"artifact {path}: {found}; give a folder that `tvm-mobilenet compile` wrote"
        ) from err
    except (OSError, UnicodeDecodeError) as err:
        raise ArtifactError(f"artifact {path}: {MANIFEST_FILE} cannot be read: {err}") from err
    return parse_manifest(text, f"artifact {path}: {MANIFEST_FILE}")


def _check_file(path: Path, record: FileRecord) -> None:
    where = f"artifact {path.parent}: {path.name}"
    try:
        size = path.stat().st_size
        if size != record.size_bytes:
            word = "truncated" if size < record.size_bytes else "altered"
            raise ManifestMismatchError(
                f"{where} is {word}: {size} bytes, the manifest says {record.size_bytes}; "
                "copy the folder again, or compile the model again"
            )
        found = sha256_of(path)
    except OSError as err:
        raise ArtifactError(
            f"{where} cannot be read: {err.strerror}; compile the model again"
        ) from err
    if found != record.sha256:
        raise ManifestMismatchError(
            f"{where} is altered: sha256 {found[:12]}..., the manifest says "
            f"{record.sha256[:12]}...; copy the folder again, or compile the model again"
        )


def write_artifact(
    out_dir: Path | str, library: Path, description: Description, onnx: Path | None = None
) -> Artifact:
    """Write an artifact folder in one piece; see `OutputFolder` for what is refused."""
    with OutputFolder(out_dir) as folder:
        return folder.commit(library, description, onnx)


class OutputFolder:
    """A claim on a folder that an artifact is to be written to.

    Enter it before the work begins: what cannot be written is refused at once, and a second
    compilation into the same folder is turned away for as long as the claim is held. Work in
    `staging`, then `commit`. Whatever way the block is left, only a complete artifact or the
    folder as it was remains.

    The staging folder is a hidden sibling, renamed into place; an artifact already there is
    exchanged with it in one system call. Where the folder itself cannot be renamed, because it is
    a mount point or the current directory, the files are moved into it one at a time, the manifest
    last.

    Raises:
        OutputError: no permission, no space, another writer, or files of somebody else's.
    """

    def __init__(self, out_dir: Path | str) -> None:
        self.path = Path(out_dir).resolve()
        self.staging = Path()
        """Hidden folder on the same file system, there while the block is entered."""
        self._moves_into = False
        self._made: list[Path] = []
        self._lock = -1
        self._lock_path = Path()

    def __enter__(self) -> OutputFolder:
        try:
            self._claim()
        except OSError as err:
            self._release()
            raise output_error(self.path, err) from err
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._release()

    def _claim(self) -> None:
        self._check_replaceable()
        self._moves_into = self.path.is_dir() and (
            self.path.is_mount() or self.path.samefile(Path.cwd())
        )
        base = self.path if self._moves_into else self.path.parent
        self._make_folders(base)
        self._lock_path = base / f".{self.path.name}.lock"
        self._lock = _take_lock(self._lock_path, self.path)
        # Only the holder of the lock stages here: what a killed process left can go.
        for stale in base.glob(f".{self.path.name}.part-*"):
            shutil.rmtree(stale, ignore_errors=True)
        self.staging = base / f".{self.path.name}.part-{secrets.token_hex(4)}"
        self.staging.mkdir()

    def _check_replaceable(self) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise OutputError(f"output {self.path}: it is a file; give a folder")
        hidden = (f".{self.path.name}.lock", f".{self.path.name}.part-")
        names = {entry.name for entry in self.path.iterdir() if not entry.name.startswith(hidden)}
        foreign = sorted(names - OWN_FILES)
        if foreign or (names and MANIFEST_FILE not in names):
            found = foreign[0] if foreign else sorted(names)[0]
            raise OutputError(
                f"output {self.path}: the folder is not empty and no artifact "
                f"({found} is in it); give another folder, or empty this one"
            )

    def _make_folders(self, folder: Path) -> None:
        missing = [part for part in (folder, *folder.parents) if not part.exists()]
        for part in reversed(missing):
            part.mkdir()
            self._made.append(part)

    def _release(self) -> None:
        if self.staging != Path():
            shutil.rmtree(self.staging, ignore_errors=True)
        if self._lock >= 0:
            # Unlinked while still held: a waiting process finds that its file is gone and retries.
            with suppress(OSError):
                self._lock_path.unlink()
            os.close(self._lock)
            self._lock = -1
        for folder in reversed(self._made):
            with suppress(OSError):  # not empty: the artifact is in it
                folder.rmdir()
        self._made.clear()

    def commit(self, library: Path, description: Description, onnx: Path | None = None) -> Artifact:
        """Put library, manifest and ONNX file in place and return them as an artifact.

        `library` may lie in `staging` already, or anywhere else; it is not changed.
        """
        try:
            return self._commit(library, description, onnx)
        except OSError as err:
            raise output_error(self.path, err) from err

    def _commit(self, library: Path, description: Description, onnx: Path | None) -> Artifact:
        finished = self.staging / "artifact"
        finished.mkdir()
        target = finished / LIBRARY_FILE
        _copy(library, target)
        if onnx is not None:
            _copy_onnx(onnx, finished / ONNX_FILE)
        manifest = Manifest(
            **description.model_dump(),
            library=LibraryRecord(
                **FileRecord.of(target).model_dump(), machine=library_machine(target)
            ),
            onnx=FileRecord.of(finished / ONNX_FILE) if onnx is not None else None,
        )
        if description_json(read_description(target)) != description_json(description):
            raise ArtifactError(
                f"output {self.path}: the library does not carry the description it was given; "
                "this is a fault of tvm-mobilenet, please report it"
            )
        text = manifest.model_dump_json(indent=2) + "\n"
        _write_synced(finished / MANIFEST_FILE, text.encode())
        self._put_in_place(finished)
        logger.info("artifact written to %s", self.path)
        return Artifact(self.path, manifest)

    def _put_in_place(self, finished: Path) -> None:
        if self._moves_into:
            (self.path / MANIFEST_FILE).unlink(missing_ok=True)
            for name in (LIBRARY_FILE, ONNX_FILE, RUN_FILE):
                if (finished / name).exists():
                    (finished / name).replace(self.path / name)
                else:
                    (self.path / name).unlink(missing_ok=True)
            (finished / MANIFEST_FILE).replace(self.path / MANIFEST_FILE)
        elif self.path.exists() and any(self.path.iterdir()):
            _exchange(finished, self.path)  # the old artifact goes with the staging folder
        else:
            finished.rename(self.path)


def _take_lock(lock_path: Path, output: Path) -> int:
    while True:
        handle = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            os.close(handle)
            raise OutputError(
                f"output {output}: another compilation is writing to it; wait for it to end, "
                "or give another folder"
            ) from err
        except OSError:
            os.close(handle)
            raise
        try:
            if os.fstat(handle).st_ino == lock_path.stat().st_ino:
                return handle
        except FileNotFoundError:
            pass
        os.close(handle)  # the file went away while we locked it: its holder has just finished


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())


def _copy_onnx(source: Path, target: Path) -> None:
    """Copy an ONNX file; weights that it keeps in files beside it are taken into the copy."""
    import onnx
    from onnx.external_data_helper import uses_external_data

    skeleton = onnx.load(str(source), load_external_data=False)
    if any(uses_external_data(tensor) for tensor in skeleton.graph.initializer):
        _write_synced(target, onnx.load(str(source)).SerializeToString())
    else:
        _copy(source, target)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders; in one step where the system can."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # no such call in this C library
        renameat2 = None
    if renameat2 is not None:
        done = renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE)
        if done == 0:
            return
        number = ctypes.get_errno()
        if number not in (errno.ENOSYS, errno.EINVAL):
            raise OSError(number, os.strerror(number), str(old))
    aside = new.with_name("replaced")
    old.rename(aside)
    try:
        new.rename(old)
    except BaseException:
        aside.rename(old)
        raise

"""Writing files so that a reader sees the whole result or nothing, and hashing them."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from tvm_mobilenet.errors import OutputError

__all__ = ["new_file", "output_error", "sha256_of", "write_tar_gz"]

_CHUNK_BYTES = 1 << 20
_ARCHIVED_AT_S = 315_532_800
"""Every file's time in an archive: 1980, the earliest that zip knows. tar doubts 1970."""


@contextlib.contextmanager
def new_file(path: Path, *, executable: bool = False) -> Iterator[Path]:
    """Hand out a temporary path in the same folder; on success it takes the place of `path`.

    Missing parent folders are made. When the block raises, Ctrl-C included, the temporary file is
    removed and whatever was at `path` stays as it was. `executable` says whether the result is a
    program, which whoever may read it may also run.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
        # mkstemp's name is its own, so that two writers do not meet in one file.
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=f".part{path.suffix}"
        )
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod((0o777 if executable else 0o666) & ~_umask())
        temporary.replace(path)
    except OSError as err:
        raise output_error(path, err) from err
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_tar_gz(path: Path, entries: Iterable[tuple[str, bytes, int]]) -> None:
    """Write (name, content, mode) entries; nothing in the archive tells when, where or by whom.

    Raises:
        OutputError: `path` cannot be written.
    """
    with (
        new_file(path) as unfinished,
        unfinished.open("wb") as file,
        gzip.GzipFile("", "wb", 9, file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, content, mode in entries:
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(content), mode, _ARCHIVED_AT_S
            archive.addfile(info, io.BytesIO(content))


def output_error(path: Path, err: OSError) -> OutputError:
    """Word the reason why `path` cannot be written."""
    if err.errno == errno.ENOSPC:
        return OutputError(f"cannot write {path}: the disk is full; free some space and try again")
    reason = (err.strerror or str(err) or type(err).__name__).lower()
    return OutputError(f"cannot write {path}: {reason}; choose another place")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _umask() -> int:
    """Read the process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask

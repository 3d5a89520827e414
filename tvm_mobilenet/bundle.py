"""What a product embeds, made of an artifact: library, runtime, C interface and a sample program.

    NAME-TARGET/
      README.md  LICENSE  licenses/   what it is, what the board must have, whose work is in it
      model/                          model.so, manifest.json, and model.txt for the C runtime
      lib/                            libtvm_runtime.so and libtvm_ffi.so for the target
      include/  src/  sample/         the C interface, its implementation, the sample program
      CMakeLists.txt                  builds them
      bin/classify                    the sample program, built

There is no RPC in it and no Python.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from string import Template
from typing import Any

from tvm_mobilenet.artifact import LIBRARY_FILE, MANIFEST_FILE, Artifact, open_artifact
from tvm_mobilenet.bundle_trial import Trial, try_bundle
from tvm_mobilenet.elf import required_versions
from tvm_mobilenet.errors import SpecError, ToolchainError, error_context
from tvm_mobilenet.files import output_error, sha256_of, write_tar_gz
from tvm_mobilenet.manifest import Manifest
from tvm_mobilenet.model_text import MODEL_TEXT_FILE, model_text
from tvm_mobilenet.native_build import build_native
from tvm_mobilenet.protocols import NoProgress, Progress
from tvm_mobilenet.runtime_libs import RuntimeLibs, runtime_libs
from tvm_mobilenet.targets import TargetSpec, shipped_folder

__all__ = ["Bundle", "bundle_artifact"]

PROGRAM = "bin/classify"

# Of the tree in native/embedded, what goes into a bundle as it is.
_VERBATIM = ("CMakeLists.txt", "LICENSE", "include", "sample", "src")
# Of the headers that come with TVM, the two that the implementation includes.
_TVM_HEADERS = ("tvm/ffi/c_api.h", "dlpack/dlpack.h")
# The sample program is prebuilt without libjpeg and libpng, which a board may not have.
_OPTIONAL = ("picture_jpeg.c", "picture_png.c")
# Whose work is in the two runtime libraries: the package, and where the text lies in it.
_LICENSES = (
    ("apache-tvm", "tvm/LICENSE"),
    ("apache-tvm", "tvm/NOTICE"),
    ("apache-tvm", "tvm/licenses/LICENSE.builtin_fp16.txt"),
    ("apache-tvm-ffi", "licenses/LICENSE"),
    ("apache-tvm-ffi", "licenses/NOTICE"),
    ("apache-tvm-ffi", "3rdparty/libbacktrace/LICENSE"),
)


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An archive that was written, and what its sample program needs."""

    path: str
    size_bytes: int
    """Of the archive."""
    sha256: str
    parts: dict[str, int]
    """Bytes of each part as it lies unpacked on the board."""
    model: str
    target: str
    machine: str
    needs: dict[str, str]
    """The oldest version of each system interface that everything in it loads with."""
    trial: Trial
    """What the prebuilt program took when it was tried."""

    @property
    def unpacked_bytes(self) -> int:
        """All parts together."""
        return sum(self.parts.values())

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {**asdict(self), "unpacked_bytes": self.unpacked_bytes}


def bundle_artifact(
    path: Path | str, *, out: Path | str, progress: Progress | None = None
) -> Bundle:
    """Make of an artifact an archive that a product can embed.

    The prebuilt program is tried before the archive is written: natively where this machine can run
    it, else in qemu's user emulation where that is installed. The same artifact gives the same
    bytes; the archive appears whole or not at all.

    Args:
        path: the folder that `compile` wrote.
        out: the `.tar.gz` to write; one already there is replaced.
        progress: told of every step.

    Raises:
        ArtifactError: the artifact is damaged, or the program does not run with it.
        SpecError: `out` is no `.tar.gz`, or the model holds what C has no place for.
        UsageError: TVM publishes no runtime for the target's architecture.
        ToolchainError: there is no compiler for the target, or its runtime cannot be fetched.
        OutputError: `out` cannot be written.
    """
    out = Path(out)
    if not out.name.endswith((".tar.gz", ".tgz")):
        raise SpecError(f"output {out}: a bundle is a gzipped tar archive; end it in .tar.gz")
    progress = progress or NoProgress()
    artifact = open_artifact(path, runnable=False)
    manifest = artifact.manifest
    target = TargetSpec.model_validate(manifest.target.spec)
    with (
        error_context(stage="bundle", model=manifest.model.name, target=target.name),
        tempfile.TemporaryDirectory(prefix="tvm-mobilenet-bundle-") as scratch,
    ):
        root = Path(scratch) / _folder_name(manifest)
        progress.start(f"bundling for {target.name}")
        try:
            needs = _assemble(artifact, target, root)
        except OSError as err:
            raise output_error(root, err) from err
        progress.done(f"{len(list(root.rglob('*')))} files")
        progress.start("trying the program")
        trial = try_bundle(root, PROGRAM, manifest, target)
        progress.done(trial.where)
        write_tar_gz(out, _entries(root))
        return Bundle(
            path=str(out),
            size_bytes=out.stat().st_size,
            sha256=sha256_of(out),
            parts=_parts(root),
            model=manifest.model.name,
            target=target.name,
            machine=manifest.library.machine,
            needs=needs,
            trial=trial,
        )


def _folder_name(manifest: Manifest) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", f"{manifest.model.name}-{manifest.target.name}")


def _assemble(artifact: Artifact, target: TargetSpec, root: Path) -> dict[str, str]:
    """Lay the bundle out in `root`; return what it needs of the board."""
    manifest = artifact.manifest
    sources = shipped_folder("native") / "embedded"
    libraries = runtime_libs(target)
    root.mkdir()
    for name in _VERBATIM:
        copy = shutil.copytree if (sources / name).is_dir() else shutil.copyfile
        copy(sources / name, root / name)
    for header in _TVM_HEADERS:
        _copy(_find(libraries.include, header), root / "include" / header)
    for library in (libraries.tvm_runtime, libraries.tvm_ffi):
        _copy(library, root / "lib" / library.name)
    _write_model(artifact, root / "model")
    for package, file in _LICENSES:
        source = _license(package, file)
        _copy(source, root / "licenses" / package / _flat_name(file))
    _build_program(sources, libraries, target, root / PROGRAM)
    needs = _needs([*root.glob("lib/*"), root / PROGRAM, root / "model" / LIBRARY_FILE])
    (root / "README.md").write_text(_readme(sources, manifest, needs), encoding="utf-8")
    return needs


def _write_model(artifact: Artifact, folder: Path) -> None:
    # Without the ONNX file: the folder is still an artifact, only `verify` has nothing to look at.
    manifest = artifact.manifest.model_copy(update={"onnx": None})
    _copy(artifact.library_path, folder / LIBRARY_FILE)
    (folder / MODEL_TEXT_FILE).write_bytes(model_text(manifest))
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _build_program(
    sources: Path, libraries: RuntimeLibs, target: TargetSpec, program: Path
) -> None:
    files = sorted([*sources.glob("src/*.c"), *sources.glob("sample/*.c")])
    build_native(
        [file for file in files if file.name not in _OPTIONAL],
        program,
        target,
        kind="program",
        include=(sources / "include", *libraries.include),
        # libtvm_runtime is found through what it registers, not through symbols.
        libraries=(
            "-Wl,--no-as-needed",
            libraries.tvm_runtime,
            libraries.tvm_ffi,
            "-lm",
            "-lpthread",
        ),
        rpath="$ORIGIN/../lib",
        flags=("-ffp-contract=off",),
    )


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _find(folders: Iterable[Path], name: str) -> Path:
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise ToolchainError(f"{name}: not among TVM's headers here; install tvm-mobilenet again")


def _license(package: str, name: str) -> Path:
    """Return a licence that an installed package carries; the texts are every platform's."""
    for file in metadata.files(package) or []:
        if file.as_posix().endswith(name):
            return Path(str(file.locate()))
    raise ToolchainError(
        f"{package}: the licence {name} is not installed with it; install tvm-mobilenet again"
    )


def _flat_name(file: str) -> str:
    parts = Path(file).parts
    return f"{parts[-1]}.{parts[-2]}" if "3rdparty" in parts else parts[-1]


def _needs(files: Iterable[Path]) -> dict[str, str]:
    newest: dict[str, tuple[int, ...]] = {}
    for file in files:
        for name, version in required_versions(file).items():
            newest[name] = max(version, newest.get(name, version))
    return {name: ".".join(map(str, newest[name])) for name in sorted(newest)}


# What the versions of an interface are called where people look for them.
_PROVIDERS = {
    "GLIBC": "glibc {} or newer",
    "GLIBCXX": "libstdc++.so.6 with GLIBCXX_{}",
    "CXXABI": "CXXABI_{}",
    "GCC": "libgcc_s.so.1 with GCC_{}",
}


def _readme(sources: Path, manifest: Manifest, needs: dict[str, str]) -> str:
    found = [text.format(needs[name]) for name, text in _PROVIDERS.items() if name in needs]
    template = Template((sources / "README.md.in").read_text(encoding="utf-8"))
    return template.substitute(
        model=manifest.model.name,
        target=manifest.target.name,
        machine=manifest.library.machine,
        needs=", ".join(found),
        tvm=manifest.versions.tvm,
        weights=manifest.model.weights,
    )


def _parts(root: Path) -> dict[str, int]:
    def size(*names: str) -> int:
        files = (file for name in names for file in (root / name, *(root / name).rglob("*")))
        return sum(file.stat().st_size for file in files if file.is_file())

    parts = {
        "model": size("model"),
        "runtime": size("lib"),
        "program": size("bin"),
        "sources": size("include", "src", "sample", "CMakeLists.txt"),
    }
    everything = size(*(entry.name for entry in root.iterdir()))
    return {**parts, "texts": everything - sum(parts.values())}


def _entries(root: Path) -> Iterator[tuple[str, bytes, int]]:
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        name = path.relative_to(root.parent).as_posix()
        is_program = name.endswith(PROGRAM) or ".so" in name
        yield name, path.read_bytes(), 0o755 if is_program else 0o644

"""What an artifact says about itself: the manifest beside the library, the description inside it.

The description is everything that is known before the library is linked; it is embedded in the
library as one line of JSON. The manifest is the description and what is known only afterwards:
name, size and hash of the files in the folder.
"""

from __future__ import annotations

import json
import mmap
import re
from collections import Counter
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, ValidationError

from tvm_mobilenet import __version__
from tvm_mobilenet.errors import ArtifactError, ManifestMismatchError
from tvm_mobilenet.files import sha256_of
from tvm_mobilenet.records import (
    ClassList,
    FloatIsland,
    LayerRecord,
    ModelOrigin,
    Preprocessing,
    Record,
    TensorInfo,
)

__all__ = [
    "SCHEMA_VERSION",
    "Description",
    "FileRecord",
    "Manifest",
    "ScheduleSummary",
    "SourceRecord",
    "TargetRecord",
    "Versions",
    "description_json",
    "parse_manifest",
    "read_description",
]

# History of the schema:
#   1  first version
SCHEMA_VERSION: Literal[1] = 1

# The description's JSON begins with these bytes, so that it can be found in a library's file
# without loading it. The Relax VM keeps string constants verbatim in its serialised bytecode.
_MARKER = b'{"tvm_mobilenet_description":'
_PRINTABLE = re.compile(rb"[\x20-\x7e]*")


def _plain_name(name: str) -> str:
    if not name or name != Path(name).name or name in (".", ".."):
        raise ValueError("must be a file name without a folder")
    return name


_Kind = TypeVar("_Kind", bound=Record)

FileName = Annotated[str, AfterValidator(_plain_name)]
"""Name of a file in the artifact's own folder; anything that leads out of it is refused."""

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class TargetRecord(Record):
    """What a library was compiled for."""

    name: str
    fingerprint: str
    """Hash of everything in the target that the schedules depend on."""
    spec: dict[str, Any]
    """The resolved target description, as its file spells it."""


class Versions(Record):
    """The packages that made an artifact."""

    tvm_mobilenet: str
    tvm: str
    tvm_ffi: str
    onnx: str

    @classmethod
    def current(cls) -> Versions:
        """Return the versions installed here."""
        return cls(
            tvm_mobilenet=__version__,
            tvm=_installed("apache-tvm"),
            tvm_ffi=_installed("apache-tvm-ffi"),
            onnx=_installed("onnx"),
        )


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


class SourceRecord(Record):
    """The ONNX file that was compiled."""

    file: str
    """Its name, without the folder it was in."""
    sha256: Sha256

    @classmethod
    def of(cls, path: Path) -> SourceRecord:
        """Describe the file at `path`."""
        return cls(file=path.name, sha256=sha256_of(path))


class ScheduleSummary(Record):
    """How many layers got their schedule from where."""

    computed: int = 0
    tuned: int = 0
    fallback: int = 0

    @classmethod
    def of(cls, layers: Iterable[LayerRecord]) -> ScheduleSummary:
        """Count the origins of `layers`."""
        counts = Counter(layer.origin for layer in layers)
        return cls(computed=counts["computed"], tuned=counts["tuned"], fallback=counts["fallback"])


class FileRecord(Record):
    """One file of an artifact's folder."""

    file: FileName
    sha256: Sha256
    size_bytes: int

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Describe the file at `path`."""
        return cls(file=path.name, sha256=sha256_of(path), size_bytes=path.stat().st_size)


class LibraryRecord(FileRecord):
    """The compiled library."""

    machine: str
    """`x86-64`, `aarch64`, `arm`, ...: from the ELF header."""


class Description(Record):
    """Everything about a compiled model that is known before its library is linked.

    It holds no time, no host name and no path, so that the same input gives the same library.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    model: ModelOrigin
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    preprocessing: Preprocessing | None = None
    class_names: ClassList | None = None
    target: TargetRecord
    versions: Versions
    source: SourceRecord
    layers: tuple[LayerRecord, ...]
    schedule: ScheduleSummary
    dtype: Literal["float32", "float16", "bfloat16", "int8"] = "float32"
    """What the convolutions multiply; `int8` where the ONNX file is a quantized one."""
    accumulate: Literal["float32", "float16"] | None = None
    """Of a float model in 16 bits: the type of its sums."""
    float_islands: tuple[FloatIsland, ...] = ()
    """What an int8 model still computes in float32."""


class Manifest(Description):
    """A description and the files that it describes."""

    library: LibraryRecord
    onnx: FileRecord | None = None
    """The model as ONNX, kept for `verify`; None where it was asked not to be."""

    def description(self) -> Description:
        """Return the part that the library carries too."""
        return Description.model_validate(self.model_dump(exclude={"library", "onnx"}))


def description_json(description: Description) -> str:
    """Spell `description` as the one line of JSON that goes into the library.

    Keys are sorted and the text is ASCII: equal descriptions are equal bytes.
    """
    payload = description.model_dump(mode="json", exclude={"library", "onnx"})
    return json.dumps({"tvm_mobilenet_description": payload}, sort_keys=True, separators=(",", ":"))


def read_description(library: Path) -> Description:
    """Read the description out of a compiled library, whatever machine it is for.

    The file is searched, not loaded: nothing in it is executed.

    Raises:
        ArtifactError: the file cannot be read, or holds no description.
        ManifestMismatchError: the description has another schema version.
    """
    text = _embedded_json(library)
    try:
        payload, _ = json.JSONDecoder().raw_decode(text)
        content = payload["tvm_mobilenet_description"]
    except (ValueError, KeyError) as err:
        raise ArtifactError(
            f"library {library}: the description in it is damaged; compile the model again"
        ) from err
    return _validate(Description, content, f"library {library}")


def _embedded_json(library: Path) -> str:
    try:
        with (
            library.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            start = data.find(_MARKER)
            if start < 0:
                raise ArtifactError(
                    f"library {library}: no description found in it; "
                    "was it compiled by tvm-mobilenet?"
                )
            match = _PRINTABLE.match(data, start)
            assert match is not None  # the marker itself is printable
            return match[0].decode("ascii")
    except (OSError, ValueError) as err:
        raise ArtifactError(f"library {library}: cannot be read: {err}") from err


def parse_manifest(text: str, where: str) -> Manifest:
    """Read a manifest's JSON; `where` names the file in errors.

    Raises:
        ArtifactError: no JSON, or fields that are missing, unknown or of another type.
        ManifestMismatchError: another schema version.
    """
    try:
        content = json.loads(text)
    except ValueError as err:
        raise ArtifactError(f"{where}: not valid JSON ({err}); compile the model again") from err
    return _validate(Manifest, content, where)


def _validate(kind: type[_Kind], content: Any, where: str) -> _Kind:
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version != SCHEMA_VERSION:
        writer = content.get("versions")
        written_by = writer.get("tvm_mobilenet", "?") if isinstance(writer, dict) else "?"
        raise ManifestMismatchError(
            f"{where}: schema version {version} (written by tvm-mobilenet {written_by}), this "
            f"tvm-mobilenet {__version__} reads version {SCHEMA_VERSION}; compile the model again, "
            "or use the version that wrote it"
        )
    try:
        return kind.model_validate(content)
    except ValidationError as err:
        first = err.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "(whole)"
        raise ArtifactError(
            f"{where}: field {field}: {first['msg']}; compile the model again"
        ) from err

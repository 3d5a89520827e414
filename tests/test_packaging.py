"""The wheel, and the rules on who may import what."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tvm_mobilenet"
MODULES = sorted(PACKAGE.rglob("*.py"))

MAY_IMPORT_TORCH = ("models/", "training/", "qat.py", "export.py")
MAY_NOT_NEED_TVM = (
    "__init__.py",
    "cli/",
    "datasets.py",
    "detection/",
    "elf.py",
    "errors.py",
    "exploration/",
    "export.py",
    "files.py",
    "host.py",
    "manifest.py",
    "models/",
    "native_build.py",
    "protocols.py",
    "records.py",
    "report/",
    "runtime_libs.py",
    "targets.py",
    "toolchain.py",
    "training/",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_carries_targets_logs_and_native_sources(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("native", "targets", "tuning_logs"):
        files = [p for p in (ROOT / folder).rglob("*") if p.is_file()]
        assert files
        for path in files:
            assert f"tvm_mobilenet/_data/{path.relative_to(ROOT)}" in names
    assert not any(name.startswith(("tests/", "benchmarks/", "docs/")) for name in names)


def test_wheel_has_the_command_and_one_version(wheel: Path):
    from tvm_mobilenet import __version__

    archive = zipfile.ZipFile(wheel)
    info = f"tvm_mobilenet-{__version__}.dist-info"
    assert (
        "tvm-mobilenet = tvm_mobilenet.cli.app:main"
        in archive.read(f"{info}/entry_points.txt").decode()
    )
    assert f"Version: {__version__}\n" in archive.read(f"{info}/METADATA").decode()


def test_what_is_installed_finds_its_data(wheel: Path, tmp_path: Path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import tvm_mobilenet.targets as t; from tvm_mobilenet.models.spec import list_models;"
        "print(t.__file__, t.shipped_folder('tuning_logs').is_dir(), len(list_models()),"
        " t.load_target('rpi4').name)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.stdout.split() == [f"{tmp_path}/tvm_mobilenet/targets.py", "True", "53", "rpi4"]


def imports(path: Path, *, at_module_level: bool) -> Iterator[str]:
    """Return the top-level packages that a module imports (for type checking alone: left out)."""
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and at_module_level:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]
        todo.extend(ast.iter_child_nodes(node))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_import_what_their_place_allows(path: Path):
    name = str(path.relative_to(PACKAGE))
    at_once = set(imports(path, at_module_level=True))
    if not name.startswith("cli/"):
        everywhere = set(imports(path, at_module_level=False))
        assert not everywhere & {"rich", "typer"}, "rich and typer belong to cli/"
    if not name.startswith(MAY_IMPORT_TORCH):
        assert "torch" not in at_once, "import torch in the function that needs it"
    if name.startswith(MAY_NOT_NEED_TVM):
        assert "tvm" not in at_once, "import tvm in the function that needs it"
    if name.startswith("cli/"):
        heavy = {"numpy", "onnx", "onnxruntime", "PIL", "sklearn"}
        assert not heavy & at_once, "import it in the command that needs it"


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, tvm_mobilenet;"
        "sys.exit(bool({'numpy', 'onnx', 'rich', 'torch', 'tvm', 'typer'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_function_of_the_package_is_there_and_no_module_hides_it():
    import tvm_mobilenet

    modules = {path.stem for path in PACKAGE.iterdir()}
    for name in tvm_mobilenet._EXPORTS:
        assert callable(getattr(tvm_mobilenet, name))
        assert name not in modules
    assert set(tvm_mobilenet._EXPORTS) <= set(dir(tvm_mobilenet))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tvm_mobilenet.nothing

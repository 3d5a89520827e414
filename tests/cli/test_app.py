from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tvm_mobilenet
from tvm_mobilenet.cli import app as app_module
from tvm_mobilenet.errors import DeviceError, ParityError, TvmMobilenetError, UsageError


def raising(error: BaseException):
    def body(as_json: bool = False) -> None:
        raise error

    return body


@pytest.fixture
def broken_models(monkeypatch):
    """Make `models` raise what the test says."""

    def put(error: BaseException) -> None:
        commands = app_module.app.registered_commands
        command = next(c for c in commands if c.callback and c.callback.__name__ == "models")
        monkeypatch.setattr(command, "callback", raising(error))
        monkeypatch.setattr(command, "name", "models")

    return put


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("one line"), 2),
        (ParityError("one line"), 3),
        (DeviceError("one line"), 4),
        (TvmMobilenetError("one\nline"), 1),
    ],
)
def test_every_error_is_one_line_and_its_exit_code(cli, broken_models, error, code):
    broken_models(error)
    assert cli("models").fails(code) == "one line"


def test_the_trace_is_shown_when_asked_for(cli, broken_models):
    broken_models(UsageError("one line"))
    result = cli("-vv", "models")
    assert "Traceback" in result.err
    assert result.code == 2


def test_ctrl_c_ends_with_130(cli, broken_models):
    broken_models(KeyboardInterrupt())
    assert "interrupted" in cli("models").fails(130)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_what_the_system_refuses_is_one_line(cli, broken_models, number):
    broken_models(OSError(number, os.strerror(number), "out/f"))
    assert cli("models").fails(1) == f"out/f: {os.strerror(number).lower()}"


def test_a_mistake_of_ours_is_not_hidden(broken_models):
    broken_models(ZeroDivisionError("ours"))
    with pytest.raises(ZeroDivisionError):
        app_module.run_command(["models"])


def test_version(cli):
    assert cli("--version").out == f"tvm-mobilenet {tvm_mobilenet.__version__}\n"


@pytest.mark.parametrize("words", [("modls",), ("models", "--bogus"), ("targets", "shw")])
def test_a_wrong_word_is_a_usage_error(cli, words):
    result = cli(*words)
    assert result.code == 2
    assert result.out == ""
    assert "--help" in result.err or "-h" in result.err


def test_the_list_of_commands_needs_neither_torch_nor_tvm():
    code = (
        "import sys; from tvm_mobilenet.cli.app import run_command; run_command(['models']);"
        "sys.exit(bool({'torch', 'tvm', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_a_reader_that_goes_away_is_no_error():
    command = f"{sys.executable} -m tvm_mobilenet models --json | head -c 1"
    result = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("[", "")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
def test_a_training_that_is_stopped_leaves_its_checkpoint_alone(tmp_path: Path, number, code):
    weights, model = tmp_path / "w.safetensors", "mobilenet_v1_0.25_32"
    words = ["train", model, "--data", "digits", "-o", str(weights)]
    with subprocess.Popen(
        [sys.executable, "-m", "tvm_mobilenet", *words],
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in the background with SIGINT ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        deadline = time.monotonic() + 60
        while not Path(f"{weights}.checkpoint").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("error: interrupted")
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors.checkpoint"]

from __future__ import annotations

import json

import pytest

from tests.exploration.conftest import CONDITIONS, ScriptedProber


@pytest.fixture
def scripted(monkeypatch):
    prober = ScriptedProber(conditions=CONDITIONS.model_copy(update={"target": "rpi4"}))
    monkeypatch.setattr("tvm_mobilenet.exploration.probing.TimingProber", lambda *_, **__: prober)
    monkeypatch.setattr("tvm_mobilenet.exploration.explorer._check_runs_here", lambda spec: None)
    return prober


def test_the_answer_is_printed_and_kept(cli, tmp_path, scripted):
    out = cli("explore", "--target", "rpi4", "--budget-ms", "8", "-o", tmp_path / "e")
    assert out.code == 0
    kept = json.loads((tmp_path / "e/explore.json").read_text())
    lines = out.out.splitlines()
    assert any(line.startswith(f"best      {kept['best']}: ") for line in lines)
    assert any(line.startswith(f"runner-up {kept['runner_up']}: ") for line in lines)
    assert f"compile {kept['best']} --weights FILE --target rpi4" in lines[-1]


def test_json_is_what_is_kept(cli, tmp_path, scripted):
    words = ("explore", "--target", "rpi4", "--budget-ms", "8", "--families", "v2, v3")
    found = cli(*words, "-o", tmp_path / "e", "--json").json
    assert found == json.loads((tmp_path / "e/explore.json").read_text())
    assert {one["family"].split("_")[1] for one in found["candidates"]} == {"v2", "v3"}


def test_nothing_fits_is_an_answer(cli, tmp_path, scripted):
    out = cli("explore", "--target", "rpi4", "--budget-ms", "0.0001", "-o", tmp_path / "e")
    assert out.code == 0
    assert "no model fits 0.0001 ms" in out.out


def test_times_of_an_emulated_board_are_not_asked_for(cli, tmp_path):
    said = cli("explore", "--target", "rpi4", "--emulated", "--budget-ms", "8").fails(2)
    assert "give --budget-minstr" in said
    said = cli("explore", "--target", "rpi4", "--budget-minstr", "8").fails(2)
    assert "add --emulated" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give one of --budget-ms"),
        (("--budget-ms", "5", "--families", "v8"), "family 'v8'"),
        (("--budget-ms", "5", "--dtype", "int5"), "dtype 'int5'"),
        (("--budget-ms", "5", "--accuracy", "none.csv"), "none.csv: no such file"),
        (("--budget-ms", "5", "--key", "x"), "no board was named"),
        (("--budget-ms", "5"), "does not run on this machine"),
    ],
)
def test_what_cannot_be_explored_is_a_usage_error(words, said, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in cli("explore", "--target", "rpi4", *words).fails(2)

"""A session of TVM's own client, from upload to output, and the agent's own functions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.boards.agents import Agent, Program, bounded, eventually, hello, receive, running


@dataclass
class Opened:
    """A small network on an agent, ready to be run, with its inputs set."""

    session: Any
    vm: Any
    inputs: np.ndarray
    symbols: str
    layers: int

    def board(self, name: str, *args: Any) -> Any:
        """Call a function of the agent's own."""
        function = bounded(lambda: self.session.get_function(f"tvm_mobilenet.board.{name}"))
        return bounded(lambda: function(*args))

    def output(self) -> np.ndarray:
        bounded(lambda: self.vm.invoke_stateful("main"))
        found = bounded(lambda: self.vm.get_outputs("main"))
        tensor = found if hasattr(found, "numpy") else found[0]
        return np.asarray(bounded(tensor.numpy))


@pytest.fixture(scope="module")
def artifacts(colour_onnx: Path, tmp_path_factory: pytest.TempPathFactory, programs) -> Any:
    """The network compiled for each kind of agent."""
    from tvm_mobilenet.workflow import compile_model

    made: dict[str, Path] = {}

    def artifact(program: Program) -> Path:
        name = program.target.name
        if name not in made:
            made[name] = tmp_path_factory.mktemp("artifact") / name
            compile_model(colour_onnx, out=made[name], target=program.target)
        return made[name]

    return artifact


@pytest.fixture
def opened(agent: Agent, artifacts) -> Opened:
    import tvm
    from tvm.runtime.vm import VirtualMachine

    folder = artifacts(agent.program)
    manifest = json.loads((folder / "manifest.json").read_text())
    layers = [layer["kernel"] for layer in manifest["layers"]]
    session = agent.connect()
    content = bytearray((folder / "model.so").read_bytes())
    bounded(lambda: session.upload(content, "model.so"))
    library = bounded(lambda: session.load_module("model.so"))
    vm = bounded(lambda: VirtualMachine(library, session.cpu()))
    inputs = np.random.default_rng(3).normal(size=(1, 3, 32, 32)).astype(np.float32)
    tensor = bounded(lambda: tvm.runtime.tensor(inputs, session.cpu()))
    bounded(lambda: vm.set_input("main", tensor))
    return Opened(session, vm, inputs, "\n".join(layers), len(layers))


def test_it_computes_what_onnx_runtime_does(opened: Opened, colour_onnx: Path):
    import onnxruntime

    reference = onnxruntime.InferenceSession(colour_onnx).run(None, {"x": opened.inputs})[0]
    np.testing.assert_allclose(opened.output(), reference, rtol=1e-4, atol=1e-5)


def test_times_of_runs_and_of_kernels(opened: Opened):
    runs = np.frombuffer(opened.board("time_runs", opened.vm.module, "main", 7), "<i8")
    assert runs.shape == (7,)
    assert (runs > 0).all()
    layers = opened.board("time_layers", opened.vm.module, "main", opened.symbols, 5)
    times = np.frombuffer(layers, "<i8").reshape(5, opened.layers)
    assert (times > 0).all()


def test_what_every_kernel_wrote(opened: Opened):
    count = opened.board("capture_layers", opened.vm.module, "main", opened.symbols)
    assert count == opened.layers
    last = opened.board("captured", count - 1)
    np.testing.assert_array_equal(np.asarray(bounded(last.numpy)), opened.output())
    from tvm.error import RPCError

    with pytest.raises(RPCError, match=rf"index is {count}; give 0 to {count - 1}"):
        opened.board("captured", count)


def test_kernels_that_come_in_another_order_are_refused(opened: Opened):
    from tvm.error import RPCError

    backwards = "\n".join(reversed(opened.symbols.split("\n")))
    with pytest.raises(RPCError, match=r"board: kernel call 0 is .* was expected"):
        opened.board("time_layers", opened.vm.module, "main", backwards, 1)
    more = f"{opened.symbols}\nno_such_kernel"
    with pytest.raises(RPCError, match="is the end, where no_such_kernel was expected"):
        opened.board("time_layers", opened.vm.module, "main", more, 1)
    opened.board("time_layers", opened.vm.module, "main", opened.symbols, 1)


def test_threads_and_their_processors(opened: Opened):
    chosen = json.loads(opened.board("configure_threads", 1, "0"))
    assert chosen == {"threads": 1, "cpus": [0]}
    from tvm.error import RPCError

    for threads, cpus, message in (
        (1, "0,0", "0 is twice there"),
        (1, "0;1", "give numbers with commas"),
        (1, "9999", "9999 is twice there, or not one that may be used"),
        (200, "", "board: threads 200: there are"),
    ):
        with pytest.raises(RPCError, match=message):
            opened.board("configure_threads", threads, cpus)


def test_memory_and_its_peak(opened: Opened):
    first = json.loads(opened.board("memory", 0))
    assert first["peak_bytes"] >= first["rss_bytes"] > 1 << 20
    bounded(lambda: opened.session.upload(bytearray(64 << 20), "large"))
    second = json.loads(opened.board("memory", 1))
    assert second["peak_bytes"] >= first["peak_bytes"] + (64 << 20)
    third = json.loads(opened.board("memory", 0))
    assert third["peak_bytes"] < second["peak_bytes"]


def test_counting_needs_a_counter(opened: Opened):
    from tvm.error import RPCError

    with pytest.raises(RPCError, match="this board has no instruction counter; an emulated one"):
        opened.board("count_instructions", opened.vm.module, "main", opened.symbols, 1)


def test_the_functions_say_what_they_take(opened: Opened):
    from tvm.error import RPCError

    for name, args, message in (
        ("time_runs", (opened.vm.module, "main"), "2 arguments were given, it takes 3"),
        ("time_runs", (1, "main", 1), "vm: give a module"),
        ("time_runs", (opened.vm.module, "main", 0), "count is 0; give 1 to"),
        ("time_runs", (opened.vm.module, "x" * 300, 1), "function: .* longer than 255 bytes"),
        ("time_runs", (opened.vm.module, "nothing", 1), "nothing"),
        ("time_layers", (opened.vm.module, "main", "", 1), "symbols: 0 kernels"),
    ):
        with pytest.raises(RPCError, match=message):
            opened.board(name, *args)


def test_the_facts(agent: Agent):
    session = agent.connect()
    facts = json.loads(bounded(session.get_function("tvm_mobilenet.board.facts")))
    assert facts["emulated"] == (agent.program.target.name == "rpi4")
    if facts["emulated"]:
        assert (facts["cpu"], facts["machine"]) == ("Cortex-A72", "aarch64")
        assert "asimd" in facts["features"]
    assert facts["cores"] == len(facts["cpus"]) > 0
    assert facts["memory_total_mib"] >= facts["memory_free_mib"] > 0
    assert facts["tvm"] == "0.27.0.post1"
    assert {"kernel", "glibc", "temperature_c", "board"} <= set(facts)


def test_files_of_a_session(agent: Agent):
    from tvm.error import RPCError

    session = agent.connect()
    bounded(lambda: session.upload(bytearray(b"one\0two"), "a.bin"))
    bounded(lambda: session.upload(bytearray(), "empty"))
    assert sorted(bounded(lambda: session.listdir("")).split(",")) == ["a.bin", "empty"]
    assert bytes(bounded(lambda: session.download("a.bin"))) == b"one\0two"
    assert bytes(bounded(lambda: session.download("empty"))) == b""
    bounded(lambda: session.remove("a.bin"))
    with pytest.raises(RPCError, match=r"board: cannot read a\.bin: No such file"):
        bounded(lambda: session.download("a.bin"))
    with pytest.raises(RPCError, match="there is no linker here"):
        bounded(lambda: session.load_module("model.tar"))
    with pytest.raises(RPCError, match=r"none\.so"):
        bounded(lambda: session.load_module("none.so"))


@pytest.mark.parametrize("name", ["../escape", "/tmp/escape", "..", ".", "a/b", "", "x" * 256])
def test_a_file_has_a_name_and_no_place(native_agent: Agent, name: str):
    from tvm.error import RPCError

    session = native_agent.connect()
    upload = bounded(lambda: session.get_function("tvm.rpc.server.upload"))
    with pytest.raises(RPCError, match=r"board: file name|file name: holds a zero byte"):
        bounded(lambda: upload(name, bytearray(b"x")))
    assert bounded(lambda: session.listdir("")) == ""


def test_a_link_is_not_followed(native_agent: Agent, tmp_path: Path):
    from tvm.error import RPCError

    outside = tmp_path / "outside"
    outside.write_text("secret")
    session = native_agent.connect()
    (folder,) = native_agent.workdir.glob("*/*")
    (folder / "link").symlink_to(outside)
    with pytest.raises(RPCError, match="cannot make link"):
        bounded(lambda: session.upload(bytearray(b"x"), "link"))
    with pytest.raises(RPCError, match="cannot read link"):
        bounded(lambda: session.download("link"))
    session = None
    eventually(lambda: not native_agent.leftovers(), "the folder's end")
    assert outside.read_text() == "secret"


def test_who_comes_second_waits_and_sees_who_holds_the_board(native_agent: Agent):
    first = native_agent.socket(hello("client: -user=ada -session=one"))
    receive(first, 8 + len("server:"))
    second = native_agent.socket(hello("client: -user=bob"))
    third = native_agent.socket(hello("client: -user=cay"))
    status = eventually(
        lambda: (s := native_agent.status())["queue"] == 2 and s, "two in the queue"
    )
    assert (status["state"], status["holder"]) == ("busy", "ada")
    third.close()
    eventually(lambda: native_agent.status()["queue"] == 1, "one has left the queue")
    first.close()
    assert receive(second, 8 + len("server:"))[8:] == b"server:"
    status = native_agent.status()
    assert (status["holder"], status["queue"]) == ("bob", 0)
    assert [(s["id"], s["user"], s["end"]) for s in status["sessions"]] == [
        ("one", "ada", "closed")
    ]


def test_another_key_is_told_so(native: Program, tmp_path: Path):
    from tvm.error import InternalError

    with running(native, tmp_path / "agent", "--key", "rpi4") as agent:
        with pytest.raises(InternalError, match="cannot find server that matches key"):
            agent.connect("rpi5")
        assert bounded(lambda: agent.connect("rpi4").listdir("")) == ""
        assert agent.status()["key"] == "rpi4"


def test_a_library_beside_the_agent_is_loaded(native: Program, tmp_path: Path):
    """TVM's extra runtime comes that way, and one that cannot be loaded is left out."""
    side = Path(native.command[-1]).parent / "sidelibs"
    (side / "libbroken_side.so").write_text("no library")
    try:
        with running(native, tmp_path / "agent") as agent:
            session = agent.connect()
            found = bounded(lambda: session.get_function("tvm.contrib.random.uniform"))
            assert found is not None
            assert "libbroken_side.so is left out" in agent.log.read_text()
    finally:
        (side / "libbroken_side.so").unlink()

"""The comparison itself: statistics, the ncnn converter, parity before timing. No test on time."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import compare
from benchmarks.absence import EngineUnavailableError
from benchmarks.agreement import Reference
from benchmarks.cases import quantize
from benchmarks.comparison import Entry
from benchmarks.engine import Job
from benchmarks.engines import OURS, PEAK
from benchmarks.ncnn_convert import convert
from benchmarks.onnx_graph import GraphError, read_graph, seeded_inputs
from benchmarks.series import Series, fastest, paired_ratio
from benchmarks.table import FORMAT_VERSION
from benchmarks.workers import BurstPlan, Worker
from tests.test_compiler import Graph


def _network(path: Path, *, extra: list[onnx.NodeProto] | None = None, channels: int = 8) -> Path:
    """Write a MobileNet in small: stem, depthwise with a residual around it, pool, classifier."""
    rng = np.random.default_rng(1)
    c = channels

    def constant(name, *shape):
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)

    constants = [
        constant("stem.w", c, 3, 3, 3),
        constant("stem.b", c),
        constant("dw.w", c, 1, 3, 3),
        constant("pw.w", c, c, 1, 1),
        constant("pw.b", c),
        constant("fc.w", 5, c),
        constant("fc.b", 5),
        numpy_helper.from_array(np.array(0, np.float32), "zero"),
        numpy_helper.from_array(np.array(6, np.float32), "six"),
        numpy_helper.from_array(np.array([2, 3]), "spatial"),
        numpy_helper.from_array(np.array([1, c]), "row"),
    ]
    nodes = [
        helper.make_node(
            "Conv", ["x", "stem.w", "stem.b"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]
        ),
        helper.make_node("Clip", ["a", "zero", "six"], ["b"]),
        helper.make_node("Conv", ["b", "dw.w"], ["d"], group=c, pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("Conv", ["e", "pw.w", "pw.b"], ["f"]),
        helper.make_node("Add", ["f", "b"], ["g"]),
        *(extra or []),
        helper.make_node("ReduceMean", ["g", "spatial"], ["h"], keepdims=1),
        helper.make_node("Reshape", ["h", "row"], ["i"]),
        helper.make_node("Gemm", ["i", "fc.w", "fc.b"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


@pytest.fixture(name="small")
def _small(tmp_path):
    return _network(tmp_path / "small.onnx")


def test_counts_the_multiply_adds_of_convolutions_and_products(small):
    by_hand = 8 * 36 * 27 + 8 * 36 * 9 + 8 * 36 * 8 + 5 * 8
    assert read_graph(small).macs == by_hand


def test_inputs_are_the_same_at_every_call(small):
    graph = read_graph(small)
    first, second = seeded_inputs(graph), seeded_inputs(graph)
    assert first["x"].shape == (1, 3, 12, 12)
    np.testing.assert_array_equal(first["x"], second["x"])
    assert not np.array_equal(first["x"], seeded_inputs(graph, seed=1)["x"])


def test_refuses_what_is_no_onnx_file(tmp_path):
    path = tmp_path / "noise.onnx"
    path.write_bytes(b"\x00not a model")
    with pytest.raises(GraphError, match="not a readable ONNX file"):
        read_graph(path)


def test_refuses_a_shape_that_is_not_fixed(tmp_path):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [out])
    onnx.save(helper.make_model(graph), str(tmp_path / "open.onnx"))
    with pytest.raises(GraphError, match="x has no fixed shape"):
        read_graph(tmp_path / "open.onnx")


def test_ncnn_text_folds_activations_and_splits_shared_blobs(small):
    lines = [line.split() for line in convert(read_graph(small)).param.splitlines()]
    assert lines[0] == ["7767517"]
    kinds = [words[0] for words in lines[2:]]
    assert kinds == [
        "Input",
        "Convolution",
        "Split",  # the clipped stem is read by the depthwise layer and by the sum
        "ConvolutionDepthWise",
        "Convolution",
        "BinaryOp",
        "Pooling",
        "Flatten",
        "InnerProduct",
    ]
    stem = lines[3]
    assert "9=3" in stem
    assert any(word.startswith("-23310=2,0.0") for word in stem)
    assert int(lines[1][0]) == len(kinds)
    blobs = {blob for words in lines[2:] for blob in _outputs(words)}
    assert int(lines[1][1]) == len(blobs)


def _outputs(words: list[str]) -> list[str]:
    ins, outs = int(words[2]), int(words[3])
    return words[4 + ins : 4 + ins + outs]


def test_ncnn_convolutions_of_a_pooled_pixel_are_inner_products(tmp_path):
    graph = Graph(1, 8, 6, 6)
    means = graph.add("GlobalAveragePool", "x")
    gate = graph.add("Relu", graph.conv(means, 4, 8, 1))
    gate = graph.add("HardSigmoid", graph.conv(gate, 8, 4, 1))
    y = graph.conv(graph.add("Mul", "x", gate), 4, 8, 1)
    model = convert(read_graph(graph.save(tmp_path / "gate.onnx", y)))
    kinds = [line.split()[0] for line in model.param.splitlines()[2:]]
    assert kinds == [
        "Input",
        "Split",
        "Pooling",
        "InnerProduct",
        "InnerProduct",
        "HardSigmoid",
        "BinaryOp",
        "Convolution",
    ]


def test_ncnn_weights_are_flag_weight_bias_in_order(small):
    graph = read_graph(small)
    blob = convert(graph).weights
    stem = graph.constants["stem.w"].tobytes() + graph.constants["stem.b"].tobytes()
    assert blob[:4] == bytes(4)
    assert blob[4 : 4 + len(stem)] == stem
    sizes = [8 * 27 + 8, 8 * 9, 64 + 8, 40 + 5]
    assert len(blob) == 4 * (sum(sizes) + len(sizes))


def test_ncnn_names_an_operator_it_cannot_translate(tmp_path):
    odd = helper.make_node("Erf", ["g"], ["unused"], name="odd_one")
    path = _network(tmp_path / "odd.onnx", extra=[odd])
    with pytest.raises(GraphError, match="no translation for Erf node 'odd_one'"):
        convert(read_graph(path))


def test_ratio_is_of_rounds_not_of_medians():
    # The machine was three times slower in two rounds out of three, for both.
    slow, fast = Series(((2.0,), (6.0,), (6.0,))), Series(((1.0,), (3.0,), (3.0,)))
    assert paired_ratio(slow, fast) == pytest.approx(2.0)
    assert fastest([slow, fast]) == 1


def test_series_takes_the_median_of_round_medians():
    series = Series(((1.0, 1.0, 50.0), (2.0, 2.0, 2.0), (3.0, 3.0, 3.0)))
    assert series.median_ms == 2.0
    assert series.min_ms == 1.0
    assert series.p90_ms == 3.0 + (50.0 - 3.0) * 0.2
    assert series.is_noisy
    assert not Series(((1.0,), (1.01,), (1.0,))).is_noisy


MODULES = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "ncnn": "ncnn",
    "mnn": "MNN",
    "litert": "ai_edge_litert",
}


@pytest.mark.parametrize("engine", MODULES)
def test_every_peer_computes_what_onnx_runtime_does(engine, small):
    if importlib.util.find_spec(MODULES[engine]) is None:
        pytest.skip(f"{engine} is not installed (pip install 'tvm-mobilenet[bench]')")
    import onnxruntime

    inputs = seeded_inputs(read_graph(small))
    session = onnxruntime.InferenceSession(str(small), providers=["CPUExecutionProvider"])
    expected = session.run(None, inputs)
    with Worker(engine, 1) as worker:
        loaded = worker.load(Job(small, inputs, threads=1))
        burst = worker.burst(BurstPlan(warmup_ms=0, measured_ms=0))
        again = worker.outputs()  # MNN, left alone, computes from what its last run left behind
    assert len(burst.latencies_ms) >= 5
    assert min(burst.latencies_ms) > 0
    np.testing.assert_allclose(loaded.outputs[0], expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(again[0], expected[0], rtol=1e-4, atol=1e-5)


def test_a_worker_that_dies_is_absent_with_a_reason(small):
    with Worker("onnxruntime", 1) as worker:
        worker.load(Job(small, seeded_inputs(read_graph(small)), threads=1))
        worker._process.kill()
        with pytest.raises(EngineUnavailableError, match="its process died"):
            worker.burst(BurstPlan())


def test_an_engine_that_cannot_start_says_why(small):
    with Worker(OURS, 1) as worker, pytest.raises(EngineUnavailableError, match="nothing compiled"):
        worker.load(Job(small, {}, threads=1))


def test_wrong_outputs_are_not_timed():
    reference = Reference((np.ones((1, 4)),), None)
    assert "relative L2 1.0e-01" in reference.judge([np.full((1, 4), 1.1)]).failure
    assert reference.judge([np.full((1, 4), np.nan)]).failure
    assert "shapes [(4,)]" in reference.judge([np.ones(4)]).failure
    assert not reference.judge([np.ones((1, 4))]).failure


def test_int8_outputs_are_judged_in_quantization_steps():
    reference = Reference((np.array([[3.0, 2.0, 1.0, 0.0]]),), (0.01,))
    near = reference.judge([np.array([[3.01, 1.99, 1.0, 0.0]])])
    assert not near.failure
    assert not near.remark
    assert near.steps_max == pytest.approx(1.0)
    off = reference.judge([np.array([[3.0, 2.0, 1.05, 0.11]])])
    assert not off.failure
    assert "4.0 quantization steps off on average (at most 11)" in off.remark
    other = reference.judge([np.array([[2.97, 2.99, 1.0, 0.0]])])
    assert other.top1 is False
    assert "allowed are 8" in reference.judge([np.full((1, 4), 5.0)]).failure


def test_an_engine_whose_output_changes_while_it_is_timed_is_taken_out():
    class Drifting(Worker):
        def __init__(self):
            pass  # no process

        def outputs(self, timeout_s=0.0):
            return (np.array([2.0]),)

    entry = Entry("mnn", 1, turns=[(1.0,)])
    compare._check_again(Drifting(), entry, Reference((np.array([1.0]),), None))
    assert entry.absence == "after its turns the output differs: relative L2 1.0e+00"
    assert not entry.turns


def test_one_run_prints_a_table_and_writes_json(small, tmp_path, capsys):
    out = tmp_path / "result.json"
    flags = ["--threads", "1", "--rounds", "2", "--peers", "onnxruntime", "--json", str(out)]
    assert compare.main([str(small), *flags]) == 0
    table = capsys.readouterr().out
    assert "1 thread, 2 rounds" in table
    (result,) = json.loads(out.read_text())["results"]
    engines = {e["engine"]: e for e in result["engines"]}
    assert PEAK not in engines
    assert engines["onnxruntime"]["ratio"] == 1.0
    assert len(engines["onnxruntime"]["round_medians_ms"]) == 2
    assert result["macs"] == read_graph(small).macs
    assert result["fastest_peer"] == "onnxruntime"
    assert [p.name for p in tmp_path.iterdir() if "result" in p.name] == ["result.json"]


def test_an_int8_run_reports_steps_and_names_who_cannot(small, tmp_path, capsys):
    quantized, out = quantize(small), tmp_path / "result.json"
    flags = ["--dtype", "int8", "--threads", "1", "--rounds", "1", "--json", str(out)]
    flags += ["--peers", "onnxruntime", "ncnn", "--ours", str(tmp_path)]
    assert compare.main(["--onnx", str(quantized), *flags]) == 0
    assert "int8, batch 1, 1 thread" in capsys.readouterr().out
    document = json.loads(out.read_text())
    assert document["format_version"] == FORMAT_VERSION
    assert document["dtype"] == "int8"
    engines = {e["engine"]: e for e in document["results"][0]["engines"]}
    assert engines["onnxruntime"]["steps_mean"] <= 2.5
    assert engines["onnxruntime"]["top1_agrees"]
    assert "int8" in engines["ncnn"]["absence"]
    assert "holds no artifact" in engines[OURS]["absence"]


def test_a_file_of_the_other_dtype_is_one_line(small, capsys):
    assert compare.main([str(small), "--dtype", "int8"]) == 2
    assert "no QuantizeLinear in it" in capsys.readouterr().err
    assert compare.main([str(quantize(small))]) == 2
    assert "compare it with --dtype int8" in capsys.readouterr().err


def test_the_families_come_in_one_command():
    args = compare._parse(["--families"])
    assert {name.split("_")[1] for name in args.models} == {"v2", "v3", "v4"}
    assert compare._parse(["a.onnx", "--families"]).models[0] == "a.onnx"
    assert compare._parse([]).models == list(compare.DEFAULT_MODELS)


def test_a_missing_file_is_one_line(capsys):
    assert compare.main(["nowhere.onnx"]) == 2
    assert capsys.readouterr().err == "compare: nowhere.onnx: no such file\n"


def test_a_peer_that_is_not_installed_is_listed_as_absent(monkeypatch):
    from importlib import metadata

    from benchmarks import engine, peers

    def missing(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(engine.metadata, "version", missing)
    with pytest.raises(EngineUnavailableError, match=r"not installed \(pip install openvino\)"):
        peers.OpenVino(Job(Path("x.onnx"), {}, 1))

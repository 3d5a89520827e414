from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tvm_mobilenet.errors import OnnxFileError
from tvm_mobilenet.onnx_file import METADATA_KEY, read_exported


def build(inputs, outputs, nodes, initializers=(), **props):
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, props)
    return model


def floats(name, shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def relu(input_shape=(1, 3, 8, 8), output_shape=(1, 3, 8, 8), **props):
    return build(
        [floats("x", input_shape)],
        [floats("y", output_shape)],
        [helper.make_node("Relu", ["x"], ["y"], name="r")],
        **props,
    )


@pytest.fixture
def saved(tmp_path):
    def save(model, name="net.onnx"):
        onnx.save(model, tmp_path / name)
        return tmp_path / name

    return save


def test_reads_any_network_and_names_it_after_its_file(saved):
    exported = read_exported(saved(relu(), "My Net.onnx"))
    assert exported.origin.name == "My Net"
    assert exported.origin.weights == "My Net.onnx"
    assert not exported.origin.is_random
    assert exported.inputs[0].model_dump() == {
        "name": "x",
        "shape": (1, 3, 8, 8),
        "dtype": "float32",
        "layout": "NCHW",
    }
    assert exported.preprocessing is None
    assert exported.class_names is None
    assert len(exported.sha256) == 64


def test_reads_several_inputs_and_outputs_in_order(saved):
    model = build(
        [
            floats("a", (2, 3)),
            helper.make_tensor_value_info("b", TensorProto.INT64, (2, 3)),
            floats("w", (2, 3)),
        ],
        [floats("s", (2, 3)), helper.make_tensor_value_info("c", TensorProto.INT64, (2, 3))],
        [helper.make_node("Add", ["a", "w"], ["s"]), helper.make_node("Abs", ["b"], ["c"])],
        [onnx.numpy_helper.from_array(np.ones((2, 3), np.float32), "w")],
    )
    exported = read_exported(saved(model))
    assert [(t.name, t.dtype, t.layout) for t in exported.inputs] == [
        ("a", "float32", "any"),
        ("b", "int64", "any"),
    ]
    assert [t.name for t in exported.outputs] == ["s", "c"]
    assert exported.origin.num_classes is None


def test_a_classifier_tells_its_class_count(saved):
    model = build(
        [floats("x", (1, 4))], [floats("y", (1, 7))],
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [onnx.numpy_helper.from_array(np.ones((4, 7), np.float32), "w")],
    )  # fmt: skip
    assert read_exported(saved(model)).origin.num_classes == 7


@pytest.mark.parametrize("shape", [None, (None, None, None, None), ("n", "c", "h", "w")])
def test_works_out_an_output_shape_that_the_file_leaves_open(saved, shape):
    assert read_exported(saved(relu(output_shape=shape))).outputs[0].shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        (("batch", 3, 8, 8), r"\[batch, 3, 8, 8\]"),
        ((None, 3, 8, 8), r"\[\?, 3, 8, 8\]"),
        ((1, 3, "height", "width"), r"\[1, 3, height, width\]"),
        ((1, 3, 0, 8), r"\[1, 3, 0, 8\]"),
    ],
)
def test_a_shape_that_is_not_fixed_is_refused(saved, shape, found):
    path = saved(relu(input_shape=shape, output_shape=None))
    with pytest.raises(OnnxFileError, match=f"input 'x' is {found}.*fixed shape"):
        read_exported(path)


def test_an_input_without_any_shape_is_refused(saved):
    with pytest.raises(OnnxFileError, match=r"net\.onnx: .*shape"):
        read_exported(saved(relu(input_shape=None, output_shape=None)))


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_a_file_cut_short_is_refused_in_one_line(saved, kept):
    path = saved(relu())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(OnnxFileError, match=r"ONNX file .*net\.onnx: ") as caught:
        read_exported(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"hello", b"PK\x03\x04zip", bytes(1000), bytes(range(256))])
def test_another_kind_of_file_is_refused(tmp_path, content):
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(OnnxFileError, match=r"x\.onnx"):
        read_exported(tmp_path / "x.onnx")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(OnnxFileError, match="there is no such file"):
        read_exported(tmp_path / "none.onnx")
    with pytest.raises(OnnxFileError, match="it is a folder"):
        read_exported(tmp_path)


def test_an_invalid_graph_is_refused(saved):
    model = relu()
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(OnnxFileError, match="it is not valid"):
        read_exported(saved(model))


def test_an_input_that_is_no_tensor_is_refused(saved):
    sequence = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, (1, 3))
    model = build(
        [sequence], [floats("y", (1, 3))],
        [helper.make_node("ConcatFromSequence", ["x"], ["y"], axis=0)],
    )  # fmt: skip
    with pytest.raises(OnnxFileError, match="input 'x' is no tensor"):
        read_exported(saved(model))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "metadata is damaged"),
        ("[]", "metadata is damaged"),
        (json.dumps({"format_version": 1}), "metadata is damaged"),
        (json.dumps({"format_version": 9}), "format version 9"),
    ],
)
def test_metadata_that_is_not_ours_to_read_is_refused(saved, text, match):
    with pytest.raises(OnnxFileError, match=match):
        read_exported(saved(relu(**{METADATA_KEY: text})))

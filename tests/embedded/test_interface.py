"""The C interface, built as a product builds it: with CMake, against an unpacked bundle."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import PIL
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tests.embedded.conftest import Place, make_place
from tvm_mobilenet.model_text import model_text
from tvm_mobilenet.models.preprocess import load_image
from tvm_mobilenet.records import Preprocessing

ARGUMENT, TENSOR, STATE = 1, 2, 3  # tmn_status


def test_the_bundle_builds_and_installs_by_itself(place: Place, tmp_path: Path):
    folder = place.build(place.root, "alone", "-DCMAKE_C_FLAGS=-Werror")
    subprocess.run(
        ["cmake", "--install", str(folder), "--prefix", str(tmp_path / "product")],
        check=True,
        capture_output=True,
    )
    product = tmp_path / "product"
    said = place.run(product / "bin/classify", product / "model", "--describe")
    assert "model    colour\n" in said.stdout


def test_every_wrong_call_says_what_was_given_and_what_is_taken(place: Place):
    lines = place.run(place.checks(), "errors", place.model).stdout.splitlines()
    said = {name: (int(code), text) for name, code, _, text in (x.split("\t") for x in lines)}
    expected = {
        "threads": (ARGUMENT, "threads 100000: this process may use "),
        "cpus": (ARGUMENT, "cpus: processor 0 is named twice"),
        "no-place": (ARGUMENT, "tmn_open: the folder and the place for the model are needed"),
        "no-model": (ARGUMENT, "tmn_run: the model is NULL; open one first"),
        "not-set": (STATE, "input 'x' has not been set"),
        "not-run": (STATE, "output 'y': nothing has been computed; call tmn_run first"),
        "dtype": (TENSOR, "input 'x': uint8 1x3x32x32 was given, the model takes float32 "),
        "rank": (TENSOR, "input 'x': float32 1x3x32 was given, the model takes "),
        "shape": (TENSOR, "input 'x': float32 1x4x32x32 was given, the model takes "),
        "size": (TENSOR, "input 'x': 12287 bytes were given, float32 1x3x32x32 takes 12288"),
        "null": (ARGUMENT, "input 'x': the tensor, its shape or its data is NULL"),
        "index": (ARGUMENT, "input 7: the model has 1, counted from 0"),
        "still-not-set": (STATE, "input 'x' has not been set"),
        "room": (TENSOR, "output 'y': room for 4 bytes was given, it has 12"),
        "output": (ARGUMENT, "output 9: the model has 1, counted from 0"),
        "empty": (ARGUMENT, "picture of 0 x 1 pixels"),
        "slot": (ARGUMENT, "picture 5: the model has 1, counted from 0"),
        "narrow": (ARGUMENT, "picture of 1 x 1048576 pixels: too long and narrow"),
        "stride": (ARGUMENT, "picture of 1 x 1 pixels, a row every 2 bytes"),
    }
    assert said.keys() == expected.keys()
    for name, (code, text) in expected.items():
        assert said[name][0] == code, name
        assert said[name][1].startswith(text)


@pytest.mark.parametrize("check", ["threads", "moved", "twins"])
def test_models_do_not_get_into_each_others_way(place: Place, check: str):
    assert place.run(place.checks(), check, place.model).stdout == "good\n"


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        ("host", 10_000),
        pytest.param("arm", 2_000, marks=pytest.mark.arm),
        pytest.param("arm", 10_000, marks=[pytest.mark.arm, pytest.mark.slow]),
    ],
)
def test_ten_thousand_inferences_leave_nothing_behind(request, name: str, runs: int):
    place: Place = request.getfixturevalue(f"{name}_place")
    said = place.run(place.checks(), "growth", place.model, runs).stdout
    early_kib, late_kib = map(int, said.split())
    # Between a tenth of the runs and all of them: thirty bytes an inference would show.
    assert late_kib - early_kib < 256 * runs // 10_000 + 64


def test_a_hundred_openings_leave_nothing_behind(host_place: Place):
    said = host_place.run(host_place.checks(), "reopen", host_place.model, 100).stdout
    early_kib, late_kib = map(int, said.split())
    # Half of one thread's arena in the C library; each opening reads the whole library.
    assert late_kib - early_kib < 8 * 1024


PREPARATIONS = [
    Preprocessing(resize=37, crop=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    Preprocessing(
        resize=36,
        crop=32,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        interpolation="bicubic",
    ),
    Preprocessing(
        resize=32,
        crop=32,
        mean=(0.1, 0.2, 0.3),
        std=(1, 2, 3),
        interpolation="lanczos",
        channel_order="BGR",
    ),
    Preprocessing(resize=41, crop=32, mean=(0, 0, 0), std=(1, 1, 1), interpolation="nearest"),
]
SIZES = [(41, 41), (32, 500), (501, 33), (640, 480), (123, 457), (9, 7), (37, 36), (41, 82)]


@pytest.mark.parametrize("how", PREPARATIONS, ids=lambda how: how.interpolation)
def test_pictures_are_prepared_bit_for_bit_as_by_pillow(place, copy_of_model, tmp_path, how):
    manifest = place.artifact.manifest.model_copy(update={"preprocessing": how})
    (copy_of_model / "model.txt").write_bytes(model_text(manifest))
    for width, height in SIZES:
        if height > 2 * width and int(PIL.__version__.split(".")[0]) < 13:
            continue  # an older Pillow resizes tall pictures in the other order
        rng = np.random.default_rng([width, height])
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "p.ppm")
        found = prepare(place, copy_of_model, tmp_path / "p.ppm", tmp_path / "x.bin")
        expected = load_image(tmp_path / "p.ppm", how)
        assert np.array_equal(found, expected), (width, height)


def prepare(place: Place, model: Path, path: Path, file: Path) -> np.ndarray:
    place.run(place.checks(), "prepared", model, path, file)
    return np.frombuffer(file.read_bytes(), np.float32).reshape(1, 3, 32, 32)


def test_batches_and_layout_are_the_descriptions(host_place: Place, colour_onnx, tmp_path):
    """A picture goes into a tensor of the other layout too, where the description says so."""
    manifest = host_place.artifact.manifest
    (info,) = manifest.inputs
    nhwc = info.model_copy(update={"shape": (1, 32, 32, 3), "layout": "NHWC"})
    model = Path(shutil.copytree(host_place.model, tmp_path / "model"))
    changed = manifest.model_copy(update={"inputs": (nhwc,)})
    (model / "model.txt").write_bytes(model_text(changed))
    Image.fromarray(np.arange(75, dtype=np.uint8).reshape(5, 5, 3)).save(tmp_path / "p.ppm")
    found = prepare(host_place, model, tmp_path / "p.ppm", tmp_path / "x.bin")
    assert manifest.preprocessing is not None
    expected = load_image(tmp_path / "p.ppm", manifest.preprocessing)
    assert np.array_equal(found.reshape(1, 32, 32, 3), expected.transpose(0, 2, 3, 1))


def test_several_inputs_and_outputs_keep_their_order(tmp_path: Path):
    from tvm_mobilenet.artifact import open_artifact
    from tvm_mobilenet.executor import LocalExecutor
    from tvm_mobilenet.inputs import seeded
    from tvm_mobilenet.workflow import compile_model

    save_two_and_two(tmp_path / "two.onnx")
    compile_model(tmp_path / "two.onnx", out=tmp_path / "two")
    place = make_place(tmp_path / "two", tmp_path)
    artifact = open_artifact(tmp_path / "two")
    (inputs,) = seeded(artifact.manifest, 1)
    files = []
    for info in artifact.manifest.inputs:
        files.append(tmp_path / f"{info.name}.bin")
        files[-1].write_bytes(inputs[info.name].tobytes())
    with LocalExecutor(artifact, 1) as executor:
        expected = np.concatenate([array.ravel() for array in executor.run(inputs).values()])
    assert len(artifact.manifest.outputs) == 2
    said = place.classify(place.model, "--logits", "--raw", *files).stdout
    assert np.allclose([float(line) for line in said.split()], expected, atol=1e-6)
    result = place.classify(place.model, "--logits", "--raw", files[0], code=1)
    assert "the model takes another number of inputs" in result.stderr
    result = place.classify(place.model, "--raw", *files, code=1)
    assert "not one score for each class" in result.stderr
    picture = tmp_path / "p.ppm"
    Image.new("RGB", (8, 8)).save(picture)
    result = place.classify(place.model, picture, code=1)
    assert "its description does not say how to prepare one" in result.stderr


def save_two_and_two(path: Path) -> None:
    rng = np.random.default_rng(3)
    weights = numpy_helper.from_array(rng.normal(size=(8, 3, 3, 3)).astype(np.float32), "w")
    shape = [1, 3, 8, 8]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["a", "w"], ["left"], "left", pads=[1] * 4),
            helper.make_node("Conv", ["b", "w"], ["right"], "right", pads=[1] * 4),
            helper.make_node("Relu", ["left"], ["y"], "relu"),
            helper.make_node("Add", ["left", "right"], ["z"], "add"),
        ],
        "two",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "ab"],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8, 8, 8]) for name in "yz"],
        [weights],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path
    )


def bmp(kind: str, path: Path) -> None:
    rng = np.random.default_rng(1)
    pixels = Image.fromarray(rng.integers(0, 256, (35, 37, 3), np.uint8))
    if kind == "1-bit":
        pixels.convert("1").save(path)
    elif kind == "palette":
        pixels.convert("P", palette=Image.Palette.ADAPTIVE, colors=17).save(path)
    elif kind == "32-bit":
        pixels.convert("RGBA").save(path)
    else:
        # The same file with its rows the other way round.
        pixels.save(path)
        data = bytearray(path.read_bytes())
        data[22:26] = (-35).to_bytes(4, "little", signed=True)
        path.write_bytes(data)


@pytest.mark.parametrize("kind", ["1-bit", "palette", "32-bit", "top-down"])
def test_every_kind_of_bmp_is_read_as_pillow_reads_it(host_place: Place, tmp_path: Path, kind):
    bmp(kind, tmp_path / "p.bmp")
    found = prepare(host_place, host_place.model, tmp_path / "p.bmp", tmp_path / "x.bin")
    how = host_place.artifact.manifest.preprocessing
    assert how is not None
    # As RGB: what is see-through in a BMP is not, for either.
    with Image.open(tmp_path / "p.bmp") as image:
        image.convert("RGB").save(tmp_path / "p.ppm")
    assert np.array_equal(found, load_image(tmp_path / "p.ppm", how))


def test_png_is_read_as_pillow_reads_it(host_place: Place, tmp_path: Path):
    if not has_library(host_place, "PNG"):
        pytest.skip("libpng's headers are not installed")
    rng = np.random.default_rng(2)
    Image.fromarray(rng.integers(0, 256, (50, 40, 3), np.uint8)).save(tmp_path / "p.png")
    found = prepare(host_place, host_place.model, tmp_path / "p.png", tmp_path / "x.bin")
    how = host_place.artifact.manifest.preprocessing
    assert how is not None
    assert np.array_equal(found, load_image(tmp_path / "p.png", how))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_is_turned_as_its_exif_data_says(host_place: Place, tmp_path: Path, orientation):
    if not has_library(host_place, "JPEG"):
        pytest.skip("libjpeg's headers are not installed")
    ramp = np.zeros((40, 60, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, 60)
    ramp[..., 1] = np.linspace(0, 255, 40)[:, None]
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(ramp).save(tmp_path / "p.jpg", quality=95, exif=exif.tobytes())
    found = prepare(host_place, host_place.model, tmp_path / "p.jpg", tmp_path / "x.bin")
    how = host_place.artifact.manifest.preprocessing
    assert how is not None
    # Two versions of libjpeg may round differently.
    assert np.abs(found - load_image(tmp_path / "p.jpg", how)).max() <= 2 / 255


def has_library(place: Place, name: str) -> bool:
    place.checks()
    cache = (place.built["checks"] / "CMakeCache.txt").read_text()
    return f"{name}_LIBRARY_RELEASE:FILEPATH=/" in cache


@pytest.mark.parametrize("kind", ["description", "picture.ppm", "picture.bmp"])
def test_damaged_files_do_no_harm(sanitized: Place, tmp_path: Path, kind: str):
    source = sanitized.model / "model.txt"
    if kind != "description":
        source = tmp_path / kind
        image = Image.fromarray(np.zeros((9, 11, 3), np.uint8))
        image.convert("P").save(source) if kind.endswith("bmp") else image.save(source)
    check = kind.split(".")[0]
    said = sanitized.run(sanitized.checks(), check, source, tmp_path / "scratch", 3000).stdout
    accepted, refused = (int(word.rstrip(",")) for word in said.split()[1::2])
    assert accepted + refused == 3000
    assert accepted > 100
    assert refused > 100


@pytest.fixture(scope="session")
def sanitized(host_place: Place, tmp_path_factory) -> Place:
    """The checks built to stop at the first wrong access, undefined operation or leak."""
    flags = "-g -fsanitize=address,undefined -fno-sanitize-recover=all"
    scratch = tmp_path_factory.mktemp("sanitized")
    probe = scratch / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    command = ["cc", *flags.split(), str(probe), "-o", str(scratch / "probe")]
    if shutil.which("cc") is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("the C compiler has no sanitizers")
    place = Place("host", host_place.root, [], scratch)
    source = Path(__file__).parent
    place.build(source, "checks", *place.checks_options(), f"-DCMAKE_C_FLAGS={flags}")
    return place


@pytest.mark.parametrize("check", ["errors", "threads", "moved", "twins", "growth", "reopen"])
def test_sanitizers_find_nothing(sanitized: Place, check: str):
    count = {"growth": [200], "reopen": [10]}.get(check, [])
    result = sanitized.run(sanitized.checks(), check, sanitized.model, *count)
    assert result.stderr == ""
    assert result.stdout


@pytest.mark.parametrize("damage", ["truncated", "altered", "foreign"])
def test_sanitizers_find_nothing_where_opening_fails(sanitized: Place, tmp_path: Path, damage):
    model = Path(shutil.copytree(sanitized.model, tmp_path / "model"))
    data = bytearray((model / "model.so").read_bytes())
    if damage == "truncated":
        del data[1000:]
    else:
        data[18 if damage == "foreign" else 5000] ^= 0xFF
    (model / "model.so").write_bytes(data)
    result = sanitized.run(sanitized.checks(), "moved", model, code=1)
    assert result.stderr.startswith("checks: tmn_open: ")
    assert len(result.stderr.splitlines()) == 1


def test_the_program_of_the_documents_runs(place: Place, tmp_path: Path):
    program = place.checks().with_name("embedding")
    Image.new("RGB", (32, 32), (10, 200, 10)).save(tmp_path / "p.ppm")
    pixels = np.asarray(Image.open(tmp_path / "p.ppm"))
    (tmp_path / "frame.rgb").write_bytes(pixels.tobytes())
    said = place.run(program, place.model, tmp_path / "frame.rgb", 32, 32).stdout
    assert said.split()[0] == "green"

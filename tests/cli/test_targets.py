from __future__ import annotations

from tvm_mobilenet.targets import list_targets, load_target, shipped_folder


def test_table_has_a_line_for_each_target(cli):
    result = cli("targets")
    lines = result.out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(list_targets())


def test_json_holds_what_the_files_hold(cli):
    rows = cli("targets", "--json").json
    assert [row["name"] for row in rows] == list(list_targets())
    rpi4 = next(row for row in rows if row["name"] == "rpi4")
    assert rpi4["cpu"] == load_target("rpi4").cpu.model_dump(mode="json")


def test_show_gives_every_figure_its_source(cli):
    out = cli("targets", "show", "rpi4").out
    spec = load_target("rpi4")
    for source in spec.sources.values():
        assert source in out
    assert spec.fingerprint()[:16] in out


def test_show_reads_a_file_of_the_user(cli, tmp_path):
    path = tmp_path / "mine.toml"
    text = (shipped_folder("targets") / "rpi4.toml").read_text()
    path.write_text(text.replace('name = "rpi4"', 'name = "mine"'))
    shown = cli("targets", "show", path, "--json").json
    assert shown["name"] == "mine"
    assert shown["fingerprint"] == load_target("rpi4").fingerprint()


def test_unknown_name_suggests_the_closest(cli):
    assert "did you mean 'rpi4'" in cli("targets", "show", "rp4").fails(2)


def test_predict_says_what_a_gpu_allows_each_kernel(cli, colour_onnx):
    kernels = cli("targets", "predict", "rk3399-mali", colour_onnx, "--json").json
    assert {"conv", "depthwise", "pointwise", "pool", "dense"} == {k["family"] for k in kernels}
    assert all(k["ms"] == max(k["compute_ms"], k["memory_ms"]) > 0 for k in kernels)
    shown = cli("targets", "predict", "rk3399-mali", colour_onnx).out
    assert "Mali-T860 MP4: 51 GFLOP/s and 12.8 GB/s at best" in shown


def test_predict_needs_a_gpu(cli, colour_onnx):
    said = cli("targets", "predict", "rpi4", colour_onnx).fails(2)
    assert "target rpi4: it has no GPU" in said

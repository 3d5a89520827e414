from __future__ import annotations

import tarfile
from pathlib import Path


def test_a_bundle_is_written_and_described(cli, colour_dir: Path, tmp_path: Path):
    out = tmp_path / "new" / "product.tar.gz"
    result = cli("bundle", colour_dir, "-o", out)
    assert result.code == 0, result.err
    assert f"bundle    {out}  " in result.out
    assert "tried     this machine" in result.out
    assert "memory    " in result.out
    assert "start-up  " in result.out
    assert "bundling for host" in result.err
    with tarfile.open(out) as archive:
        assert "colour-host/bin/classify" in archive.getnames()


def test_its_description_comes_as_json(cli, colour_dir: Path, tmp_path: Path):
    result = cli("bundle", colour_dir, "-o", tmp_path / "product.tar.gz", "--json")
    assert result.code == 0, result.err
    assert result.json["model"] == "colour"
    assert result.json["unpacked_bytes"] == sum(result.json["parts"].values())
    assert result.json["trial"]["where"] == "this machine"


def test_a_folder_without_an_artifact_is_one_line(cli, tmp_path: Path):
    message = cli("bundle", tmp_path, "-o", tmp_path / "p.tar.gz").fails(1)
    assert message.startswith(f"artifact {tmp_path}: it has no manifest.json")


def test_an_output_that_is_no_archive_is_a_usage_error(cli, colour_dir: Path, tmp_path: Path):
    assert "end it in .tar.gz" in cli("bundle", colour_dir, "-o", tmp_path / "p").fails(2)

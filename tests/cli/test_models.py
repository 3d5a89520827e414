from __future__ import annotations


def test_table_holds_all_families_and_explains_what_differs(cli):
    result = cli("models")
    rows = [line for line in result.out.splitlines() if line.startswith("mobilenet_v1_")]
    assert len([row for row in rows if row.split()[0].count("_") == 3]) == 16
    listed = result.out
    for name in (
        "mobilenet_v2_0.35_96",
        "mobilenet_v3_large_1.0_224",
        "mobilenet_v4_conv_large_384",
    ):
        assert name in listed
    assert " ".join(rows[0].split()) == "mobilenet_v1_1.0_224 4.23 M 569 M 70.9 % top-1 17.0 MB"
    assert "(1) published multiply-adds" in result.out
    assert result.err == ""


def test_json_has_plain_integers(cli):
    rows = cli("models", "--json").json
    assert len(rows) == 53
    first = rows[0]
    assert first["name"] == "mobilenet_v1_1.0_224"
    assert type(first["params"]) is int
    assert type(first["macs"]) is int
    assert first["published_top1"] == 70.9
    assert rows[-1]["published_top5"] is None

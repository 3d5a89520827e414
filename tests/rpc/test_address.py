from __future__ import annotations

import pytest

from tvm_mobilenet.errors import UsageError
from tvm_mobilenet.rpc.address import Address, parse_address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:9190", "127.0.0.1", 9190), ("pi.lan:1", "pi.lan", 1), ("[::1]:9090", "::1", 9090)],
)
def test_an_address_is_read_and_spelled_the_same(text: str, host: str, port: int):
    found = parse_address(text)
    assert found == Address(host, port)
    assert str(found) == text
    assert parse_address(found) is found


@pytest.mark.parametrize("text", ["", "9190", "pi", "pi:", ":9190", "pi:x", "pi:-1", "pi:١"])
def test_what_is_no_address_is_refused(text: str):
    with pytest.raises(UsageError, match=r"tracker .*: give HOST:PORT, as in 127\.0\.0\.1:9190"):
        parse_address(text, "tracker")


@pytest.mark.parametrize("port", ["0", "65536", "99999999999"])
def test_a_port_out_of_range_is_refused(port: str):
    with pytest.raises(UsageError, match="does not exist; give 1 to 65535"):
        parse_address(f"pi:{port}")


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("pi.lan", False),
    ],
)
def test_only_this_machines_own_addresses_are_loopback(host: str, is_loopback: bool):
    assert Address(host, 1).is_loopback is is_loopback

"""Where something listens: `HOST:PORT`, read and written."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from tvm_mobilenet.errors import UsageError

__all__ = ["LOOPBACK", "Address", "parse_address"]

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Address:
    """A host, by name or number, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it. A name other than `localhost` is not trusted."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(text: str | Address, option: str = "address") -> Address:
    """Read `HOST:PORT`; an IPv6 number stands in brackets.

    Args:
        text: what was given.
        option: how it was given, for the error.

    Raises:
        UsageError: not of that form, or a port out of range.
    """
    if isinstance(text, Address):
        return text
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit():
        raise UsageError(f"{option} {text!r}: give HOST:PORT, as in {LOOPBACK}:9190")
    if not 1 <= int(port) <= 65535:
        raise UsageError(f"{option} {text!r}: port {port} does not exist; give 1 to 65535")
    return Address(host, int(port))

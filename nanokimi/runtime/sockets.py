"""Where a server of ours listens."""

from __future__ import annotations

import ipaddress
import socket

from nanokimi.errors import UserError


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises UserError if it cannot."""
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen at {host} port {port} ({reason}): choose another") from None
    return listener


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches the address."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def address_of(listener: socket.socket) -> str:
    """host:port as an address on the web has it."""
    address, port = listener.getsockname()[:2]
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"

"""Where the health listener may listen on TCP: this machine alone, and by number, for a name may lead elsewhere."""

from __future__ import annotations

import ipaddress

WANTED = "use 127.0.0.1:9464 or [::1]:9464"


def loopback(text: str) -> tuple[str, int]:
    """(address, port). ValueError: what is wrong and what would be right.

    Other addresses are refused, always: what health says has no password. A proxy may pass it on, and so may a socket
    unit of systemd, whose address is the operator's word.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError(f"{text!r} has no port from 1 to 65535; {WANTED}")
    try:
        address = ipaddress.ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    except ValueError:
        raise ValueError(f"{host!r} is no address; {WANTED}") from None
    if (address.version == 6) != host.startswith("["):
        raise ValueError(f"{text!r} is not understood; {WANTED}")
    if not address.is_loopback:
        raise ValueError(f"{address} can be reached from other machines, and health has no password; {WANTED}")
    return str(address), int(port)

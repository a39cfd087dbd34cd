"""All stages · dispatcher and clients · where Redis is, out of redis.url.

    redis://[user:password@]host[:port][/db]                     one server
    rediss://…[?ssl_ca_certs=…&ssl_cert_reqs=none&ssl_certfile=…&ssl_keyfile=…]        the same, with TLS
    unix://[user:password@]/path[?db=0]                          one server on this host
    sentinel://[user:password@]host[:port][,host[:port]…]/NAME[/db][?sentinel_user=…&sentinel_password=…]
    cluster://[user:password@]host[:port][,host[:port]…]         any nodes of the cluster, the others are learnt

sentinel:// and cluster:// take `?tls=1` and the options of rediss://. User and password are those of the servers.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field, replace
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from metamusesd.errors import ConfigError

PORT, SENTINEL_PORT = 6379, 26379
SHAPES = "redis://host:port/db, rediss://…, unix:///path, sentinel://host:port,…/NAME or cluster://host:port,…"


@dataclass(frozen=True, slots=True)
class Address:
    """Where one server is and how to enter. `path`: a UNIX socket, else host and port."""

    path: str = ""
    host: str = "localhost"
    port: int = PORT
    db: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the queue's server can be asked for. `entry`: how to enter it once its host and port are known."""

    kind: str  # server, sentinel or cluster
    doors: tuple[Address, ...]  # the server itself, the sentinels, or nodes of the cluster
    entry: Address
    name: str = ""  # of the master, as the sentinels know it

    def __str__(self) -> str:
        shown = ",".join(map(str, self.doors))
        return shown if self.kind == "server" else f"{self.kind} {shown}{'/' if self.name else ''}{self.name}"


def parse_place(url: str) -> Place:
    """Any redis.url but `embedded`. Raises ConfigError with the remedy."""
    try:
        parts = urlsplit(url)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        if parts.scheme in ("redis", "rediss", "unix"):
            address = _one(parts, query)
            return Place("server", (address,), address)
        if parts.scheme == "sentinel":
            return _sentinels(parts, query)
        if parts.scheme == "cluster":
            entry = _entry(parts, query)
            return Place("cluster", _hosts(parts, entry, PORT), entry)
        raise ValueError(f"unknown scheme {parts.scheme!r}")
    except (ValueError, OSError) as error:
        raise ConfigError(f"redis.url: {error}; give {SHAPES}") from error


def parse_address(url: str) -> Address:
    """The address in a URL that names one server."""
    return parse_place(url).entry


def _one(parts: SplitResult, query: dict[str, str]) -> Address:
    entry = _entry(parts, query)
    if parts.scheme == "unix":
        return replace(entry, path=unquote(parts.path), db=int(query.get("db", 0)), tls=None)
    db = int(query.get("db") or parts.path.strip("/") or 0)
    return replace(entry, host=parts.hostname or "localhost", port=parts.port or PORT, db=db)


def _sentinels(parts: SplitResult, query: dict[str, str]) -> Place:
    name, _, db = parts.path.strip("/").partition("/")
    if not name:
        raise ValueError("the master's name is missing")
    entry = replace(_entry(parts, query), db=int(db or 0))
    user, password = query.get("sentinel_user", ""), query.get("sentinel_password", "")
    doors = _hosts(parts, Address(username=user, password=password, tls=entry.tls), SENTINEL_PORT)
    return Place("sentinel", doors, entry, unquote(name))


def _entry(parts: SplitResult, query: dict[str, str]) -> Address:
    """User, password and TLS. With several hosts the port of `parts` cannot be read, hence no look at it here."""
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    secured = parts.scheme == "rediss" or query.get("tls") in ("1", "true", "yes")
    return Address(username=user, password=password, tls=_tls(query) if secured else None)


def _hosts(parts: SplitResult, entry: Address, port: int) -> tuple[Address, ...]:
    hosts = [urlsplit(f"//{text}") for text in parts.netloc.rpartition("@")[2].split(",") if text]
    if not hosts:
        raise ValueError("no host is named")
    return tuple(replace(entry, host=host.hostname or "localhost", port=host.port or port) for host in hosts)


def _tls(query: dict[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=query.get("ssl_ca_certs"))
    if query.get("ssl_cert_reqs") == "none":
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if "ssl_certfile" in query:
        context.load_cert_chain(query["ssl_certfile"], query.get("ssl_keyfile"))
    return context

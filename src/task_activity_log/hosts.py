"""The hosts of a URL, which of them is tried first, and the virtual host."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit, urlunsplit

_PORTS = {"amqp": 5672, "amqps": 5671, "http": 15672, "https": 15671}
"""RabbitMQ's own ports."""
_LONGEST = 127
"""The longest name of a virtual host that the driver takes."""


def urls(url: str) -> list[str]:
    """A URL with several hosts (`amqp://user:password@h1:5672,h2/vhost`) as one URL for each, in their order.

    Raises:
        ValueError: the scheme is not known, a host is missing or not a name, a port is not a number from 1 to 65535, or the
            virtual host has a longer name than AMQP allows. The text does not quote the URL.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("is not a URL") from None
    if parts.scheme not in _PORTS:
        raise ValueError("should begin with amqp:// or amqps://")
    if len(unquote(parts.path[1:])) > _LONGEST:
        raise ValueError(f"names a virtual host of more than {_LONGEST} characters")
    login, at, hosts = parts.netloc.rpartition("@")
    found = []
    for host in hosts.split(","):
        one = urlsplit(f"//{host}")
        if not one.hostname:
            raise ValueError("should name a host")
        try:
            port = one.port or _PORTS[parts.scheme]
        except ValueError:  # its text quotes the URL
            raise ValueError(
                "has a port that is not a number from 1 to 65535; in a password, write / as %2F, ? as %3F, # as %23 and @ as %40"
            ) from None
        if not is_name(one.hostname):
            raise ValueError("has a host that is not a name")
        name = f"[{one.hostname}]" if ":" in one.hostname else one.hostname
        found.append(urlunsplit(parts._replace(netloc=f"{login}{at}{name}:{port}")))
    return found


def is_name(host: str) -> bool:
    """Whether a host can be looked up."""
    try:
        return bool(re.fullmatch(rb"[!-~]+", host.encode("idna")))
    except UnicodeError:
        return False


def addresses(url: str) -> list[str]:
    """Host and port of each host of a URL, for people. Raises `ValueError` as `urls` does."""
    return [urlsplit(one).netloc.rpartition("@")[2] for one in urls(url)]


def vhost(url: str) -> str:
    """The virtual host that a URL of a broker means: what follows the slash, decoded once, or `/` if that is empty."""
    return unquote(urlsplit(url).path[1:]) or "/"


@dataclass(eq=False, slots=True)
class Connected:
    """A connection to one of the hosts."""

    place: str
    purpose: str
    end: Callable[[], None]
    """Closes it at once."""
    why: str | None = None
    """Why it was ended, if others have found that its host is of no use. Set by `Hosts.abandon`."""


class Hosts:
    """The nodes of one broker, tried in turn. Shared by all connections of a process that have the same options."""

    def __init__(self, source: str | Callable[[], str]) -> None:
        """Begin with the first host of the URL. A function is called for each connection: the URL may have changed."""
        self._source = source
        self._urls: list[str] = []
        self._first: str | None = None
        self._connected: list[Connected] = []

    def __iter__(self) -> Iterator[str]:
        """Each URL once, beginning with the host that is to be tried first. Raises `ValueError` as `urls` does."""
        self._urls = urls(self._source if isinstance(self._source, str) else self._source())
        places = [_place(url) for url in self._urls]
        start = places.index(self._first) if self._first in places else 0
        return iter(self._urls[start:] + self._urls[:start])

    def leave(self, url: str) -> None:
        """The connection to this host was lost, or could not be opened: begin with the next one."""
        places = [_place(known) for known in self._urls]
        if _place(url) in places and (self._first or places[0]) == _place(url):
            self._first = places[(places.index(_place(url)) + 1) % len(places)]

    def stay(self, url: str) -> None:
        """This host let us in: begin with it."""
        self._first = _place(url)

    @contextmanager
    def connected(self, url: str, purpose: str, end: Callable[[], None]) -> Iterator[Connected]:
        """A connection to this host, which `abandon` ends by calling `end`."""
        self._connected.append(connection := Connected(_place(url), purpose, end))
        try:
            yield connection
        finally:
            self._connected.remove(connection)

    def abandon(self, url: str, why: str, purposes: Collection[str] | None = None) -> None:
        """This host is of no use although it lets us in: end the connections to it, and begin with the next one.

        `purposes` are those of the connections that are ended; None: of all.
        """
        self.leave(url)
        for connection in self._connected:
            if connection.place == _place(url) and (purposes is None or connection.purpose in purposes):
                connection.why = why
                connection.end()

    def gather(self, url: str, why: str) -> None:
        """All connections should be to this host: end those to others."""
        self.stay(url)
        for connection in self._connected:
            if connection.place != _place(url):
                connection.why = why
                connection.end()


def _place(url: str) -> str:
    """Host and port of a URL with one host. User and password may be others at the next connection."""
    return urlsplit(url).netloc.rpartition("@")[2]

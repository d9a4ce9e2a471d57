"""The hosts of a URL, and which of them is tried first."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from urllib.parse import urlsplit, urlunsplit

_PORTS = {"amqp": 5672, "amqps": 5671, "http": 15672, "https": 15671}
"""RabbitMQ's own ports."""


def urls(url: str) -> list[str]:
    """A URL with several hosts (`amqp://user:password@h1:5672,h2/vhost`) as one URL for each, in their order.

    Raises:
        ValueError: the scheme is not known, a host is missing, or a port is not a number from 1 to 65535. The text does
            not quote the URL.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("is not a URL") from None
    if parts.scheme not in _PORTS:
        raise ValueError("should begin with amqp:// or amqps://")
    login, at, hosts = parts.netloc.rpartition("@")
    found = []
    for host in hosts.split(","):
        one = urlsplit(f"//{host}")
        if not one.hostname:
            raise ValueError("should name a host")
        try:
            port = one.port or _PORTS[parts.scheme]
        except ValueError:  # its text quotes the URL
            raise ValueError("has a port that is not a number from 1 to 65535") from None
        name = f"[{one.hostname}]" if ":" in one.hostname else one.hostname
        found.append(urlunsplit(parts._replace(netloc=f"{login}{at}{name}:{port}")))
    return found


def addresses(url: str) -> list[str]:
    """Host and port of each host of a URL, for people. Raises `ValueError` as `urls` does."""
    return [urlsplit(one).netloc.rpartition("@")[2] for one in urls(url)]


class Hosts:
    """The nodes of one broker, tried in turn. Shared by all connections of a process that have the same options."""

    def __init__(self, url: str) -> None:
        """Begin with the first host of the URL."""
        self._url = url
        self._first = 0

    @cached_property
    def _urls(self) -> list[str]:
        return urls(self._url)

    def __iter__(self) -> Iterator[str]:
        """Each URL once, beginning with the host that is to be tried first. Raises `ValueError` as `urls` does."""
        return iter(self._urls[self._first :] + self._urls[: self._first])

    def leave(self, url: str) -> None:
        """The connection to this host was lost, or could not be opened: begin with the next one."""
        if self._urls[self._first] == url:
            self._first = (self._first + 1) % len(self._urls)

    def stay(self, url: str) -> None:
        """This host let us in: begin with it."""
        self._first = self._urls.index(url)

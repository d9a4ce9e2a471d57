"""Ports that the sandbox gives to services are not given again before the services listen on them."""

import random
import socket
from contextlib import closing

import pytest

from sandbox import service
from sandbox.service import SandboxError, free_port


class Numbers:
    """Random numbers that are known before."""

    def __init__(self, *numbers: int) -> None:
        """Take the numbers, the last of which comes again for ever."""
        self.numbers = list(numbers)

    def randrange(self, _start: int, _stop: int) -> int:
        """The next one."""
        return self.numbers.pop(0) if len(self.numbers) > 1 else self.numbers[0]


@pytest.fixture
def ports() -> tuple[int, int]:
    """Two ports that nobody uses, not even for the time being."""
    found = free_port(), free_port()
    for _ in found:
        service._reserved.pop().close()
    return found


def test_no_port_is_given_twice_while_nothing_listens_there(
    ports: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three nodes of a cluster get all their ports before the first of them starts."""
    numbers = Numbers(ports[0], *ports)
    monkeypatch.setattr(random, "SystemRandom", lambda: numbers)
    assert (free_port(), free_port()) == ports


def test_a_port_that_another_process_was_given_is_not_given(
    ports: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests run in several processes, each of which starts services of its own."""
    numbers = Numbers(*ports)
    monkeypatch.setattr(random, "SystemRandom", lambda: numbers)
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as other:
        other.bind(("127.0.0.1", ports[0]))
        assert free_port() == ports[1]


def test_a_port_on_which_somebody_listens_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """If there is no other one, the error says so."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(random, "SystemRandom", lambda: Numbers(port))
        with pytest.raises(SandboxError, match="no free loopback port"):
            free_port()


def test_the_oldest_reservations_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that runs for long does not run out of files."""
    before = len(service._reserved)
    monkeypatch.setattr(service, "_PORTS_RESERVED", before + 1)
    for _ in range(3):
        free_port()
    assert len(service._reserved) == before + 1

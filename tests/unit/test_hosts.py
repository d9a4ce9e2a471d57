"""Several hosts in one broker URL: what each of them is, and which is tried first."""

from contextlib import ExitStack
from functools import partial

import pytest

from task_activity_log.hosts import Hosts, urls, vhost


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://h", ["amqp://h:5672"]),
        ("amqps://h/", ["amqps://h:5671/"]),
        ("amqp://u:p@h1:1,h2/v?heartbeat=5", ["amqp://u:p@h1:1/v?heartbeat=5", "amqp://u:p@h2:5672/v?heartbeat=5"]),
        ("amqp://u:p%40,@[::1]:7,10.0.0.1/", ["amqp://u:p%40,@[::1]:7/", "amqp://u:p%40,@10.0.0.1:5672/"]),
    ],
)
def test_each_host_of_a_url_is_a_url_of_its_own(url: str, expected: list[str]) -> None:
    """User, virtual host and options are those of all hosts; a host without a port has the default port."""
    assert urls(url) == expected


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://h/", "should begin with amqp://"),
        ("amqp:///v", "should name a host"),
        ("amqp://h1,,h2/", "should name a host"),
        ("http://h h/", "has a host that is not a name"),
        ("amqp://h1,h..2/", "has a host that is not a name"),
        (f"amqp://{'h' * 300}/", "has a host that is not a name"),
        (f"amqp://h/{'v' * 128}", "names a virtual host of more than 127 characters"),
        ("amqp://h1:x,h2/", "has a port that is not a number"),
        ("amqp://h1:1,h2:65536/", "has a port that is not a number"),
    ],
)
def test_a_url_that_names_no_host_is_refused_without_being_quoted(url: str, why: str) -> None:
    """The text says what should be there, and not what was there."""
    with pytest.raises(ValueError, match=f"^{why}") as error:
        urls(url)
    assert "h1" not in str(error.value)


def test_the_next_connection_begins_with_another_host_than_the_one_that_was_lost() -> None:
    """And goes round all of them."""
    hosts = Hosts("amqp://a,b,c")
    assert list(hosts) == ["amqp://a:5672", "amqp://b:5672", "amqp://c:5672"]
    hosts.leave("amqp://a:5672")
    assert list(hosts) == ["amqp://b:5672", "amqp://c:5672", "amqp://a:5672"]
    hosts.leave("amqp://a:5672")  # another connection lost the same host: it was left already
    assert next(iter(hosts)) == "amqp://b:5672"
    hosts.stay("amqp://c:5672")
    assert next(iter(hosts)) == "amqp://c:5672"
    hosts.leave("amqp://c:5672")
    assert next(iter(hosts)) == "amqp://a:5672"


def test_a_host_that_is_of_no_use_is_left_by_its_connections() -> None:
    """By all or by those that are named; connections to other hosts stay, and the next one is to another host."""
    hosts = Hosts("amqp://a,b,c")
    ended: list[str] = []
    with ExitStack() as open_ones:
        connections = {
            name: open_ones.enter_context(hosts.connected(url, purpose, partial(ended.append, name)))
            for name, url, purpose in (
                ("intake", "amqp://a:5672", "intake"),
                ("replies", "amqp://a:5672", "replies"),
                ("retries", "amqp://u:new@a:5672", "retries"),
                ("elsewhere", "amqp://b:5672", "retries"),
            )
        }
        list(hosts)
        hosts.abandon("amqp://a:5672", "cut off", ["retries"])
        assert ended == ["retries"]
        assert [name for name, connection in connections.items() if connection.why == "cut off"] == ["retries"]
        assert next(iter(hosts)) == "amqp://b:5672"
        hosts.abandon("amqp://a:5672", "cut off")
        assert ended == ["retries", "intake", "replies", "retries"]
    hosts.abandon("amqp://a:5672", "cut off")
    assert len(ended) == 4  # those that are closed are forgotten


def test_connections_to_other_hosts_are_gathered_at_one() -> None:
    """Those to this host stay, and the next one is to this host."""
    hosts = Hosts("amqp://a,b,c")
    ended: list[str] = []
    list(hosts)
    with ExitStack() as open_ones:
        for host in "abc":
            open_ones.enter_context(hosts.connected(f"amqp://{host}:5672", "replies", partial(ended.append, host)))
        hosts.gather("amqp://u:new@b:5672", "intake is there")
        hosts.leave("amqp://a:5672")  # as a connection does that was ended
    assert ended == ["a", "c"]
    assert next(iter(hosts)) == "amqp://b:5672"


def test_the_url_is_read_again_for_each_connection() -> None:
    """The host that let us in stays the first one, also with another password; with other hosts it begins with the first."""
    now = ["amqp://u:old@a,b"]
    hosts = Hosts(lambda: now[0])
    hosts.stay(list(hosts)[1])
    now[0] = "amqp://u:new@a,b"
    assert list(hosts) == ["amqp://u:new@b:5672", "amqp://u:new@a:5672"]
    hosts.leave("amqp://u:old@b:5672")
    assert next(iter(hosts)) == "amqp://u:new@a:5672"
    now[0] = "amqp://u:new@c,d"
    assert next(iter(hosts)) == "amqp://u:new@c:5672"
    hosts.leave("amqp://u:new@a:5672")
    assert next(iter(hosts)) == "amqp://u:new@c:5672"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://h", "/"),
        ("amqp://h/", "/"),
        ("amqp://h/%2F", "/"),
        ("amqp://h/%252F", "%2F"),
        ("amqp://h/a%2Fb?heartbeat=5", "a/b"),
        ("amqp://h/..", ".."),
        ("amqp://h/%C3%A9%20%25", "é %"),
    ],
)
def test_a_virtual_host_is_decoded_once(url: str, expected: str) -> None:
    """Nothing is resolved as in the path of a file."""
    assert vhost(url) == expected

"""Whose fault an error is, in what words it is told, and how a DSN with several hosts is taken apart."""

import pytest

from task_activity_log.postgresql.session import TIMEOUT, Fault, _each_host, fault, reason


@pytest.mark.parametrize(
    ("sqlstate", "expected"),
    [
        ("22021", Fault.ROW),
        ("23505", Fault.ROW),
        ("44000", Fault.ROW),
        ("54000", Fault.ROW),
        ("P0001", Fault.ROW),
        ("P0002", Fault.DOUBTFUL),
        ("42501", Fault.DOUBTFUL),
        ("21000", Fault.DOUBTFUL),
        ("39P01", Fault.DOUBTFUL),
        ("", Fault.DOUBTFUL),
        ("40001", Fault.CONFLICT),
        ("40P01", Fault.CONFLICT),
        ("42P01", Fault.SCHEMA),
        ("42703", Fault.SCHEMA),
        ("26000", Fault.SCHEMA),
        ("0A000", Fault.SCHEMA),
        ("08P01", Fault.DATABASE),
        ("25006", Fault.DATABASE),
        ("28P01", Fault.DATABASE),
        ("3D000", Fault.DATABASE),
        ("53100", Fault.DATABASE),
        ("55P03", Fault.DATABASE),
        ("57P01", Fault.DATABASE),
        ("58030", Fault.DATABASE),
        ("XX000", Fault.DATABASE),
    ],
)
def test_whose_fault_it_is(sqlstate: str, expected: Fault) -> None:
    """The class decides, and for some the whole SQLSTATE; what is not known is doubtful."""
    assert fault(sqlstate) is expected


@pytest.mark.parametrize(
    ("sqlstate", "expected"),
    [
        ("57014", TIMEOUT),
        ("55P03", TIMEOUT),
        ("53100", "disk full (53100)"),
        ("53400", "out of resources (53400)"),
        ("42P01", "not migrated yet (42P01)"),
        ("42804", "schema does not fit (42804)"),
        ("58030", "database error (58030)"),
    ],
)
def test_an_outage_has_a_short_label(sqlstate: str, expected: str) -> None:
    """Words for the class, or better ones for a single error; timeouts are all alike."""
    assert reason(sqlstate) == expected


@pytest.mark.parametrize(
    ("dsn", "hosts"),
    [
        ("postgresql://u:p@a:1,b,c:3/d?x=1", ["u:p@a:1", "u:p@b", "u:p@c:3"]),
        ("postgresql://a,b/d?x=1", ["a", "b"]),
        ("postgresql://u%40x:p%2F@[::1]:1,[::2]:2/d?x=1", ["u%40x:p%2F@[::1]:1", "u%40x:p%2F@[::2]:2"]),
    ],
)
def test_hosts_are_tried_one_by_one(dsn: str, hosts: list[str]) -> None:
    """Each with the same login, database and options."""
    assert _each_host(dsn) == [f"postgresql://{host}/d?x=1" for host in hosts]


@pytest.mark.parametrize(
    "dsn", ["postgresql://u:p@a/d", "postgresql:///d?host=/run/postgresql", "postgresql://[/d", ""]
)
def test_one_host_is_left_as_it_is(dsn: str) -> None:
    """Also a socket, and what is no URL at all: the driver says so."""
    assert _each_host(dsn) == [dsn]

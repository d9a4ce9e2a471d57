"""What an error means, how an outage is labelled, and how a DSN with several hosts is split."""

import pytest

from task_activity_log.postgresql.session import Fault, _each_host, fault, outage
from task_activity_log.problem import NotMigrated, TimedOut, Unavailable


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
def test_the_sqlstate_determines_the_fault(sqlstate: str, expected: Fault) -> None:
    """Usually its class does, for some the whole SQLSTATE; an unknown one is doubtful."""
    assert fault(sqlstate) is expected


@pytest.mark.parametrize(
    ("sqlstate", "kind", "label"),
    [
        ("57014", TimedOut, "timeout"),
        ("55P03", TimedOut, "timeout"),
        ("53100", Unavailable, "disk full (53100)"),
        ("53400", Unavailable, "out of resources (53400)"),
        ("42P01", NotMigrated, "not migrated yet (42P01)"),
        ("42804", Unavailable, "schema does not fit (42804)"),
        ("58030", Unavailable, "database error (58030)"),
    ],
)
def test_an_outage_has_a_type_and_a_short_label(sqlstate: str, kind: type[Unavailable], label: str) -> None:
    """The label has words for the class, or for some for the single error. All timeouts have the same label."""
    found = outage(sqlstate)
    assert (type(found), found.label, found.reason) == (kind, label, label)


def test_the_detail_of_an_outage_is_not_part_of_its_label() -> None:
    """The label is for metrics, so it must not vary. The reason is for people."""
    found = Unavailable("replies returned", "no queue takes what x is sent")
    assert (found.label, found.reason) == ("replies returned", "replies returned: no queue takes what x is sent")
    assert str(found) == found.reason


@pytest.mark.parametrize(
    ("dsn", "hosts"),
    [
        ("postgresql://u:p@a:1,b,c:3/d?x=1", ["u:p@a:1", "u:p@b", "u:p@c:3"]),
        ("postgresql://a,b/d?x=1", ["a", "b"]),
        ("postgresql://u%40x:p%2F@[::1]:1,[::2]:2/d?x=1", ["u%40x:p%2F@[::1]:1", "u%40x:p%2F@[::2]:2"]),
    ],
)
def test_a_dsn_is_split_into_one_for_each_host(dsn: str, hosts: list[str]) -> None:
    """Each has the same login, database and options."""
    assert _each_host(dsn) == [f"postgresql://{host}/d?x=1" for host in hosts]


@pytest.mark.parametrize(
    "dsn", ["postgresql://u:p@a/d", "postgresql:///d?host=/run/postgresql", "postgresql://[/d", ""]
)
def test_a_dsn_with_one_host_is_not_changed(dsn: str) -> None:
    """This includes a socket, and a text that is not a URL, which the driver refuses."""
    assert _each_host(dsn) == [dsn]

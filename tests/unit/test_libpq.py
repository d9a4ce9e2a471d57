"""Connection strings: what psql takes is taken, and the rest is refused by name, without a secret."""

import os
import re
from pathlib import Path

import pytest

from task_activity_log.libpq import Target, read
from task_activity_log.libpq.options import OPTIONS, is_server_setting
from task_activity_log.settings import SettingsError, load

NOBODY = {"HOME": "/nonexistent"}


def target(text: str, **environment: str) -> Target:
    return read(text, {**NOBODY, **environment})


def refusal(text: str, **environment: str) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        target(text, **environment)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "hosts", "user", "database"),
    [
        ("postgresql://u:p@a:1,b/d", "a:1,b:5432", "u", "d"),
        ("postgres://u@a/d", "a:5432", "u", "d"),
        ("postgresql://u:p@/d?host=a,b&port=1,2", "a:1,b:2", "u", "d"),
        ("postgresql://u:p@a,b/d?port=1,2", "a:1,b:2", "u", "d"),
        ("postgresql://u:p@a,b/d?port=7", "a:7,b:7", "u", "d"),
        ("postgresql://u@a:1/d?host=b&port=2", "b:2", "u", "d"),
        ("postgresql://u@a/?dbname=d", "a:5432", "u", "d"),
        ("postgresql://u@a/x?dbname=d&user=v", "a:5432", "v", "d"),
        ("postgresql://u@a", "a:5432", "u", "u"),
        ("postgresql://u@a/d?", "a:5432", "u", "d"),
        ("postgresql://u@a/d?connect_timeout=5&", "a:5432", "u", "d"),
        ("postgresql://u@[::1]:7,[fe80::1]/d", "[::1]:7,[fe80::1]:5432", "u", "d"),
        ("postgresql://u%40x:p%2F@a/d%20e", "a:5432", "u@x", "d e"),
        ("postgresql://u+v@a/d", "a:5432", "u+v", "d"),
        ("postgresql://u@%2Frun%2Fmine:7/d", "/run/mine:7", "u", "d"),
        ("postgresql://u@/d?host=/run/mine", "/run/mine:5432", "u", "d"),
        ("postgresql://u@/d?hostaddr=10.0.0.1,10.0.0.2", "10.0.0.1:5432,10.0.0.2:5432", "u", "d"),
        ("host=a,b port=1,2 dbname=d user=u", "a:1,b:2", "u", "d"),
        (r"host = a dbname='it\'s one' user=it\ is", "a:5432", "it is", "it's one"),
        ("user=u password= host=a", "localhost:5432", "u", "u"),  # libpq skips the blanks after the =
        ("postgresql://", "localhost:5432", "me", "me"),
    ],
)
def test_each_form_of_psql_is_taken(
    monkeypatch: pytest.MonkeyPatch, text: str, hosts: str, user: str, database: str
) -> None:
    """The expected values are those of PQconninfoParse of libpq 15, or follow from its defaults."""
    monkeypatch.setattr("getpass.getuser", lambda: "me")
    monkeypatch.setattr("task_activity_log.libpq.target._SOCKET_DIRECTORIES", ())
    found = target(text)
    assert (",".join(map(str, found.hosts)), found.user, found.database) == (hosts, user, database)


def test_a_backslash_before_the_end_of_a_line_in_pairs() -> None:
    """As in libpq, the character behind it is meant, whatever it is."""
    assert target("host=a dbname='a\\\nb' user=x\\\ny").database == "a\nb"


def test_all_options_of_neon_and_of_asyncpg_are_taken() -> None:
    """What hosting services and other programs put into a URL."""
    found = target(
        "postgresql://u:p@a/d?sslmode=require&channel_binding=prefer&connect_timeout=5&keepalives=1&keepalives_idle=30"
        "&gssencmode=disable&fallback_application_name=x&hostaddr=127.0.0.1&sslcompression=0&options=-c%20geqo%3Doff"
        "&search_path=app&app.tenant=7"
    )
    assert found.number("connect_timeout") == 5
    assert found.number("keepalives_idle") == 30
    assert found.hosts[0].address == "127.0.0.1"
    assert found.options["options"] == "-c geqo=off"
    assert found.server_settings == {"search_path": "app", "app.tenant": "7"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("mysql://u:secret@a/d", "should begin with postgresql://"),
        ("secret", "should begin with postgresql://"),
        ("postgresql://u:secret@a/d?conect_timeout=5", "unknown option conect_timeout; did you mean connect_timeout?"),
        ("postgresql://u:secret@a/d?ssl=false", "unknown option ssl"),
        ("postgresql://u:secret@a/d?sslmode=secret", "sslmode should have another value; use disable, allow,"),
        ("postgresql://u:secret@a/d?sslmode=REQUIRE", "sslmode should have another value"),
        ("postgresql://u@a/d?channel_binding=require", "channel_binding=require is not supported, because the driver"),
        ("postgresql://u@a/d?gssencmode=require", "gssencmode=require is not supported"),
        ("postgresql://u@a/d?require_auth=scram-sha-256", "require_auth is not supported"),
        ("postgresql://u@a/d?requirepeer=secret", "requirepeer is not supported"),
        (
            "postgresql://u@a/d?target_session_attrs=standby",
            "target_session_attrs=standby is not supported, because the",
        ),
        ("postgresql://u@a/d?target_session_attrs=read-only", "target_session_attrs=read-only is not supported"),
        ("postgresql://u@a/d?client_encoding=LATIN1", "client_encoding should have another value, because the driver"),
        (
            "postgresql://u@a/d?ssl_min_protocol_version=TLSv1",
            "ssl_min_protocol_version=TLSv1 is not supported, because",
        ),
        ("postgresql://u@a/d?replication=database", "replication=database is not supported"),
        ("postgresql://u@a/d?connect_timeout=secret", "connect_timeout should be a whole number"),
        ("postgresql://u@a/d?keepalives_idle=1.5", "keepalives_idle should be a whole number"),
        ("postgresql://u@a/d?keepalives_idle=32768", "keepalives_idle should be at most 32767"),
        ("postgresql://u@a/d?keepalives_count=128", "keepalives_count should be at most 127"),
        (f"postgresql:///d?host=/{'a' * 93}&user=u", "has a path of a socket that is longer than 107 bytes"),
        ("postgresql://u@a/d?sslrootcert=system&sslmode=require", "sslrootcert=system needs sslmode=verify-full"),
        ("postgresql://u@a/d?sslnegotiation=direct", "sslnegotiation=direct needs sslmode=require"),
        ("postgresql://u@a/d?sslsni=0&sslmode=verify-full", "sslsni=0 with sslmode=verify-full is not supported"),
        ("postgresql://u@/d?hostaddr=10.0.0.1&sslmode=verify-full", "sslmode=verify-full needs host next to hostaddr"),
        ("postgresql://u@a,b,c/d?port=1,2", "has 3 hosts and 2 ports"),
        ("postgresql://u@a,b/d?hostaddr=10.0.0.1", "has 2 hosts and 1 in hostaddr"),
        ("postgresql://u@a:99999/d", "has a port that is not a number from 1 to 65535"),
        ("postgresql://u@a/d?connect_timeout", "has an option that is not of the form name=value"),
        ("postgresql://u@a/d?service=mine", "service mine is not defined in /nonexistent/.pg_service.conf"),
        ("host=a secret", "should be a postgresql:// URL, or pairs of the form name=value"),
        ("postgresql://[::1/d", "has a host that cannot be read"),
        ("postgresql://u:%zz@a/d", "has a % that is not followed by two hexadecimal digits"),
    ],
)
def test_what_cannot_work_is_refused_by_name(text: str, reason: str) -> None:
    """In one line, without the value of anything that may be a secret."""
    assert refusal(text).startswith(reason)


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://u:se/secret@a/d",
        "postgresql://u:12/secret?x=1@a/d",
        "postgresql://u:12/3?secret=1@a/d",
        "postgresql://u:x@secret@a/d",
        "postgresql://u:x@a/secret@b/d",
        "postgresql://u:x@se#cret@a/secret",
        "postgresql://u@a/d?password=x&secret=1",
        "password=x secret=1 host=a",
        "password=x secret host=a",
    ],
)
def test_a_password_that_is_not_encoded_is_never_shown(text: str) -> None:
    """The rest of it is then taken for a host, a port, a database or an option."""
    assert refusal(text)


def test_each_option_of_libpq_is_known() -> None:
    """None of them is at the same time a setting of the server."""
    assert not [name for name in OPTIONS if is_server_setting(name)]


def test_the_documentation_has_each_option() -> None:
    """Once, and as refused if all its values are."""
    document = (Path(__file__).parents[2] / "docs" / "connecting.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ", 1) for line in document.splitlines() if line.startswith("| `")]
    found = {name: meaning for names, meaning in rows for name in re.findall(r"`(\w+)`", names) if name in OPTIONS}
    assert {*found, "sslmode"} == set(OPTIONS)
    refused = {name for name, meaning in found.items() if meaning == "refused"}
    assert refused == {name for name, option in OPTIONS.items() if option.values == ()}


def test_the_string_comes_before_the_service_and_that_before_the_environment(tmp_path: Path) -> None:
    """As in libpq. What the service file has is checked like the string."""
    file = tmp_path / "services"
    file.write_text(
        "# ours\n[other]\nuser=nobody\n[mine]\nhost=b\nport=7\nuser=svc\n\n[last]\ndbname=x\nbogus=secret\n"
    )
    environment = {"PGSERVICEFILE": str(file), "PGUSER": "env", "PGDATABASE": "env_db", "PGAPPNAME": "env_app"}
    found = target("postgresql://a/?service=mine", **environment)
    assert (str(found.hosts[0]), found.user, found.database) == ("a:7", "svc", "env_db")
    assert found.options["application_name"] == "env_app"
    assert str(target("postgresql://", PGSERVICE="mine", **environment).hosts[0]) == "b:7"
    assert "the service file has an unknown option bogus" in refusal("postgresql://?service=last", **environment)
    file.write_text("[mine]\nhost = a\n")
    assert f"the service file {file} has a blank before the = in line 2" in refusal(
        "postgresql://?service=mine", **environment
    )


def test_a_wrong_variable_is_named() -> None:
    """A variable that another program needs may be the one that is refused."""
    assert refusal("postgresql://a/d", PGREQUIREAUTH="scram-sha-256").startswith("PGREQUIREAUTH: require_auth is not")
    assert refusal("postgresql://a/d", PGSSLMODE="secret").startswith("PGSSLMODE: sslmode should")


def test_the_password_file_has_a_password_for_each_host(tmp_path: Path) -> None:
    """The first line that fits counts. The file is read again each time, and ignored if others may read it."""
    file = tmp_path / "passwords"
    file.write_text("# ours\nb:5432:d:u:of b\na:*:d:u:o\\:f\\\\ a:rest\n*:*:*:*:any\n")
    file.chmod(0o600)
    text = f"postgresql://u@a,b,c/d?passfile={file}"
    assert [host.password for host in target(text).hosts] == ["o:f\\ a", "of b", "any"]
    assert [host.password for host in target(text.replace("u@", "u:given@")).hosts] == ["given"] * 3
    assert [host.password for host in target(text, PGPASSWORD="given").hosts] == ["given"] * 3
    file.write_text("*:*:*:*:rotated\n")
    assert target(text).hosts[0].password == "rotated"  # noqa: S105
    file.chmod(0o644)
    assert target(text).hosts[0].password is None
    assert target(text.replace(str(file), "/nonexistent")).hosts[0].password is None


def test_a_password_file_that_does_not_count_is_named(tmp_path: Path) -> None:
    """As psql warns. A pipe is not read: it could be waited for, for ever."""
    file, pipe = tmp_path / "passwords", tmp_path / "pipe"
    file.write_text("b:*:*:*:secret\n")
    file.chmod(0o600)
    os.mkfifo(pipe, 0o600)
    text = f"postgresql://u@a/d?passfile={file}"
    assert target(text).no_password.endswith(f"file {file} has none for this host, port, database and user")
    file.chmod(0o640)
    counts = "no password is set, and the password file {} does not count: {}"
    assert target(text).no_password == counts.format(file, "others may use it: chmod 600")
    for path, why in ((pipe, "it is not a plain file"), (tmp_path / "no", "No such file or directory")):
        found = target(text.replace(str(file), str(path)))
        assert (found.hosts[0].password, found.no_password) == (None, counts.format(path, why))
    assert target("postgresql://u@a/d", HOME=str(tmp_path)).no_password == "no password is set"  # noqa: S105


def test_a_line_of_the_password_file_that_is_not_utf_8_does_not_hide_the_others(tmp_path: Path) -> None:
    """psql does not decode it."""
    file = tmp_path / "passwords"
    file.touch(0o600)
    file.write_bytes("# für uns\n*:*:*:*:secret\n".encode("latin-1"))
    assert target(f"postgresql://u@a/d?passfile={file}").hosts[0].password == "secret"  # noqa: S105


@pytest.mark.parametrize("password", ["a\\", "\\", "a\u2028b", "a\x0cb", "a\x85b", "a\x1cb", "a\rb", " a ", "é"])
def test_the_password_file_has_any_characters(tmp_path: Path, password: str) -> None:
    """As psql reads it: only a line feed ends a line, and a backslash at its end stands for itself."""
    file = tmp_path / "passwords"
    file.touch(0o600)
    for line in (f"*:*:*:*:{password}\n", f"*:*:*:*:{password}\r\n", f"# ours\n*:*:*:*:{password}"):
        file.write_bytes(line.encode())
        assert target(f"postgresql://u@a/d?passfile={file}").hosts[0].password == password


def test_a_socket_of_the_machine_has_the_password_of_localhost(tmp_path: Path) -> None:
    """A host that is named by its address alone is looked up by the address."""
    file = tmp_path / ".pgpass"
    file.write_text("localhost:5432:d:u:of the socket\n10.0.0.1:5432:d:u:of the address\n")
    file.chmod(0o600)
    own = target("postgresql://u@/d?host=/tmp", HOME=str(tmp_path))
    assert (own.hosts[0].password, own.hosts[0].socket) == ("of the socket", "/tmp/.s.PGSQL.5432")  # noqa: S108
    assert target("postgresql://u@/d?hostaddr=10.0.0.1", HOME=str(tmp_path)).hosts[0].password == "of the address"  # noqa: S105


@pytest.mark.parametrize("name", ["sslrootcert", "sslcert", "sslkey", "sslcrl"])
def test_a_file_that_is_not_there_is_refused_at_start(tmp_path: Path, name: str) -> None:
    """And so is one that does not have what it should have."""
    urls = {"AMQP_URL": "amqp://broker/", "HOME": str(tmp_path)}
    missing = f"postgresql://u:secret@a/d?sslmode=verify-full&{name}={tmp_path}/missing"
    with pytest.raises(SettingsError) as caught:
        load({**urls, "DATABASE_URL": missing})
    assert str(caught.value) == f"DATABASE_URL: {name} {tmp_path}/missing cannot be read (No such file or directory)"
    (tmp_path / "empty").write_text("")
    with pytest.raises(SettingsError) as caught:
        load(
            {
                **urls,
                "DATABASE_URL": missing.replace("missing", "empty").replace(
                    "sslkey=", f"sslcert={tmp_path}/empty&sslkey="
                ),
            }
        )
    assert re.search(
        rf"^DATABASE_URL: .*{name} {tmp_path}/empty( without sslkey)? cannot be used \(", str(caught.value)
    )


def test_verify_full_alone_is_taken(tmp_path: Path) -> None:
    """Without a file the system's authorities are used. libpq wants ~/.postgresql/root.crt or sslrootcert=system."""
    urls = {"AMQP_URL": "amqp://broker/", "HOME": str(tmp_path)}
    for options in ("sslmode=verify-full", "sslmode=verify-ca", "sslrootcert=system"):
        assert load({**urls, "DATABASE_URL": f"postgresql://u@a/d?{options}"}).database_target.tls


def test_the_settings_read_the_variables_of_libpq() -> None:
    """Of the environment that they are read from."""
    with pytest.raises(
        SettingsError, match="DATABASE_URL: PGCLIENTENCODING: client_encoding should have another value"
    ):
        load({"AMQP_URL": "amqp://b/", "DATABASE_URL": "postgresql://u@h/d", "PGCLIENTENCODING": "LATIN1"})
    settings = load({"AMQP_URL": "amqp://b/", "DATABASE_URL": "postgresql://u@/d", "PGHOST": "db1,db2", "PGPORT": "7"})
    assert settings.database_target.addresses == "db1:7,db2:7/d"
    assert not settings.database_target.is_local
    assert "PGHOST" not in os.environ

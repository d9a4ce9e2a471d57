"""Who may do what in the console, and where a form may come from."""

import os
import pty
import signal
import subprocess
import sys
import termios
from base64 import b64encode
from pathlib import Path

import pytest
from typer.testing import CliRunner

from task_activity_log.cli import app
from task_activity_log.cli.exit_codes import WRONG_USE
from task_activity_log.console.access import Access, Denied, basic_credentials, require_local_name
from task_activity_log.console.settings import load
from task_activity_log.console.users import (
    ALL,
    CurrentPasswordFile,
    PasswordFile,
    PasswordFileError,
    Role,
    User,
    password_line,
)
from task_activity_log.settings import SettingsError
from tests.consoles import password_file

PROXY = Access(
    load(
        {
            "CONSOLE_PROXY_ADDRESSES": "10.1.0.0/24, fd00::7",
            "CONSOLE_LOOK_GROUPS": "*",
            "CONSOLE_ACT_GROUPS": "operators,leads",
            "CONSOLE_BODIES_GROUPS": "leads",
        }
    )
)


@pytest.mark.parametrize(
    ("groups", "roles"),
    [
        ("", {Role.LOOK}),
        ("sales, operators", {Role.LOOK, Role.ACT}),
        ("leads", ALL),
        ("leadsx", {Role.LOOK}),
    ],
)
def test_a_proxy_names_the_user_and_the_groups(groups: str, roles: set[Role]) -> None:
    """A role belongs to groups; `*` is every user of the proxy."""
    user = PROXY.by_proxy("10.1.0.9", {"x-forwarded-user": "anna", "x-forwarded-groups": groups})
    assert user == User("anna", frozenset(roles))


@pytest.mark.parametrize("peer", ["10.1.1.9", "127.0.0.1", "::1", "not an address", ""])
def test_a_header_from_any_other_address_is_refused(peer: str) -> None:
    """Not ignored: whoever sends it expects to be that user."""
    with pytest.raises(Denied, match="is not one of CONSOLE_PROXY_ADDRESSES"):
        PROXY.by_proxy(peer, {"x-forwarded-user": "anna"})
    assert PROXY.by_proxy(peer, {}) is None


@pytest.mark.parametrize("peer", ["10.1.0.9", "::ffff:10.1.0.9", "fd00::7"])
def test_a_proxy_that_names_nobody_lets_nobody_in(peer: str) -> None:
    """An address of IPv4 counts also as a socket for both versions shows it."""
    with pytest.raises(Denied, match="named no user") as denied:
        PROXY.by_proxy(peer, {"x-forwarded-groups": "leads"})
    assert denied.value.status == 401


def test_a_password_is_kept_as_a_hash_and_recognized(tmp_path: Path) -> None:
    """Also the second time, when it is remembered."""
    line = password_line("anna", "pässword:with colon", [Role.LOOK, Role.ACT])
    assert "pässword" not in line
    (tmp_path / "passwords").write_text(f"# users\n\n{line}\n", encoding="utf-8")
    users = PasswordFile.read(tmp_path / "passwords")
    for _ in range(2):
        assert users.user("anna", "pässword:with colon") == User("anna", frozenset({Role.LOOK, Role.ACT}))
        assert users.user("anna", "wrong") is None
        assert users.user("bob", "pässword:with colon") is None


@pytest.mark.parametrize("name", ["", "a:b", " anna", "#anna", "a\nb"])
def test_a_name_that_a_password_file_cannot_have_is_refused(name: str) -> None:
    """Such as one whose line would be a comment."""
    with pytest.raises(ValueError, match="the name should have no colon"):
        password_line(name, "secret")


@pytest.mark.parametrize(
    "options", [("--password-for", ""), ("--password-for", "anna", "--roles", ""), ("--roles", "")]
)
def test_an_option_without_a_value_is_not_taken_for_one_that_is_not_given(options: tuple[str, ...]) -> None:
    """As by a script whose variable is empty: the user would have all roles, or the console would start."""
    result = CliRunner().invoke(app, ["console", *options], input="secret\n")
    assert result.exit_code == WRONG_USE
    assert "scrypt" not in result.output


def test_the_end_of_a_line_from_windows_is_not_part_of_the_password(tmp_path: Path) -> None:
    """In a pipe."""
    result = CliRunner().invoke(app, ["console", "--password-for", "anna"], input="secret\r\n")
    (tmp_path / "passwords").write_text(result.stdout, encoding="utf-8")
    assert PasswordFile.read(tmp_path / "passwords").user("anna", "secret") is not None


def test_a_password_that_is_no_utf_8_is_refused() -> None:
    """In one line."""
    result = CliRunner().invoke(app, ["console", "--password-for", "anna"], input=b"p\xff\n")
    assert (result.exit_code, "the password cannot be read" in result.output) == (WRONG_USE, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_at_the_question_for_the_password_leaves_a_terminal_that_echoes(number: signal.Signals) -> None:
    """Otherwise nobody sees what he types into that terminal from then on."""
    ours, theirs = pty.openpty()
    try:
        asking = subprocess.Popen(
            [sys.executable, "-m", "task_activity_log.cli", "console", "--password-for", "anna"],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        )  # fmt: skip
        said = b""
        while b"Password for anna: " not in said:
            said += os.read(ours, 1000)
        assert not _echoes(theirs)
        asking.send_signal(number)
        assert asking.wait(30) == 128 + number
        assert _echoes(theirs)
    finally:
        os.close(ours)
        os.close(theirs)


def _echoes(terminal: int) -> bool:
    return bool(termios.tcgetattr(terminal)[3] & termios.ECHO)


def test_the_name_and_the_password_cannot_be_divided_in_another_way(tmp_path: Path) -> None:
    """What is remembered of one user does not let another one in."""
    lines = [password_line("anna", "b:secret", [Role.LOOK]), password_line("anna2", "other", ALL)]
    (tmp_path / "passwords").write_text("\n".join(lines), encoding="utf-8")
    users = PasswordFile.read(tmp_path / "passwords")
    assert users.user("anna", "b:secret") is not None
    assert users.user("anna2", "b:secret") is None
    assert users.user("anna2", "secret") is None


@pytest.mark.parametrize(
    "text",
    ["", "# nobody\n", "anna:secret", "anna:look:md5:AA==:AA==", "anna:king:scrypt:AA==:AA==",
     "anna:look:scrypt:1073741824:AA==:AA==", "anna:look:scrypt:?:AA==", "\xff\xfe"],
)  # fmt: skip
def test_a_password_file_that_cannot_be_used_is_refused_at_start(text: str, tmp_path: Path) -> None:
    """With the number of the line, and without its content."""
    (tmp_path / "passwords").write_bytes(text.encode("latin-1"))
    with pytest.raises(PasswordFileError) as error:
        PasswordFile.read(tmp_path / "passwords")
    assert "AA==" not in str(error.value)
    assert "secret" not in str(error.value)


def test_two_lines_for_one_user_are_refused_at_start(tmp_path: Path) -> None:
    """Which of them counts would otherwise depend on their order."""
    lines = [password_line("anna", "one", ALL), password_line("bob", "two", ALL), password_line("anna", "three", ALL)]
    with pytest.raises(
        SettingsError, match="CONSOLE_PASSWORD_FILE: line 3 is a second line for the user of line 1: remove"
    ):
        load({"CONSOLE_PASSWORD_FILE": password_file(tmp_path, *lines)})


def test_a_changed_password_file_counts_and_is_not_read_for_each_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place or by another file, as Kubernetes does it with links. What was remembered of passwords is forgotten."""
    anna, bob = password_line("anna", "one", ALL), password_line("bob", "two", [Role.LOOK])
    path = Path(password_file(tmp_path, anna, bob))
    reads, read = list[Path](), PasswordFile.read

    def counted(path: Path) -> PasswordFile:
        reads.append(path)
        return read(path)

    monkeypatch.setattr(PasswordFile, "read", counted)
    file = CurrentPasswordFile(path)
    for _ in range(3):
        assert file.users().user("anna", "one") == User("anna", ALL)
    assert len(reads) == 1
    path.write_text(f"{bob}\n", encoding="utf-8")
    assert file.users().user("anna", "one") is None
    (tmp_path / "new").mkdir()
    other = password_file(tmp_path / "new", password_line("bob", "two", ALL), password_line("eve", "three", ALL))
    (tmp_path / "link").symlink_to(other)
    (tmp_path / "link").rename(path)
    assert file.users().user("bob", "two") == User("bob", ALL)
    assert file.users().user("eve", "three") is not None
    assert len(reads) == 3


@pytest.mark.parametrize("name", ["", "an:na", " anna", "an\nna", "an\x1bna"])
def test_a_name_that_a_password_file_cannot_hold_is_refused(name: str) -> None:
    """A line feed would begin another user."""
    with pytest.raises(ValueError, match="name"):
        password_line(name, "secret")


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("Basic " + b64encode("anna:pä:ss".encode()).decode(), ("anna", "pä:ss")),
        ("basic " + b64encode(b"anna:").decode(), ("anna", "")),
        ("Basic " + b64encode(b"anna").decode(), None),
        ("Basic \xff", None),
        ("Basic " + b64encode(b"\xff:a").decode(), None),
        ("Bearer abc", None),
        ("", None),
        (None, None),
    ],
)
def test_an_authorization_header_is_read_or_refused(header: str | None, found: tuple[str, str] | None) -> None:
    """Whatever it contains."""
    assert basic_credentials(header) == found


@pytest.mark.parametrize("host", ["localhost", "localhost:8081", "127.0.0.1:8081", "[::1]:8081", "LOCALHOST"])
def test_without_authentication_this_machines_names_are_answered(host: str) -> None:
    """A browser on this machine uses one of them."""
    require_local_name(host)


@pytest.mark.parametrize(
    "host", ["", "evil.example", "evil.example:8081", "localhost.evil.example", "127.0.0.1.evil.example"]
)
def test_without_authentication_no_other_name_is_answered(host: str) -> None:
    """A web site can give its own name the address 127.0.0.1, and its script could then read every page."""
    with pytest.raises(Denied):
        require_local_name(host)


ANNA = User("anna", ALL)
OWN = {"host": "console.example"}


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "same-origin", "origin": "https://console.example"},
        {"sec-fetch-site": "same-origin", "origin": "null"},
        {"origin": "https://console.example"},
        {},
    ],
)
def test_a_form_of_our_own_is_taken(headers: dict[str, str]) -> None:
    """Old browsers send less; then the token alone says it."""
    guard = Access(load({}))
    guard.check_form(ANNA, guard.token(ANNA), "127.0.0.1", OWN | headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
    ],
)
def test_a_form_of_another_site_is_refused_even_with_a_token(headers: dict[str, str]) -> None:
    """The browser says where it comes from."""
    guard = Access(load({}))
    with pytest.raises(Denied, match="another web site"):
        guard.check_form(ANNA, guard.token(ANNA), "127.0.0.1", OWN | headers)


def test_a_token_belongs_to_one_user_of_one_process() -> None:
    """Another user's, another process's and none are refused."""
    guard = Access(load({}))
    for token in (guard.token(User("bob", ALL)), Access(load({})).token(ANNA), "", "é"):
        with pytest.raises(Denied, match="Load it again"):
            guard.check_form(ANNA, token, "127.0.0.1", OWN | {"sec-fetch-site": "same-origin"})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "console.example"])  # noqa: S104 - that is refused
def test_a_console_that_others_reach_needs_to_know_them(host: str) -> None:
    """It would let everybody replay and discard."""
    with pytest.raises(SettingsError, match="CONSOLE_PASSWORD_FILE or CONSOLE_PROXY_ADDRESSES"):
        load({"CONSOLE_HOST": host})
    assert load({"CONSOLE_HOST": host, "CONSOLE_PROXY_ADDRESSES": "10.0.0.1"}).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_a_console_on_this_machine_needs_nothing(host: str) -> None:
    """Whoever has a shell here can do the same with commands."""
    assert load({"CONSOLE_HOST": host}).is_local


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"CONSOLE_WORKER": "x"}, "CONSOLE_WORKER is not a setting; did you mean CONSOLE_WORKERS?"),
        ({"CONSOLE_WORKERS": "worker:8080"}, "worker:8080 should be the URL of a worker"),
        ({"CONSOLE_WORKERS": "http://user:secret@worker"}, "leave them out"),
        ({"CONSOLE_PROXY_ADDRESSES": "10.0.0.0/33"}, "should be an address or a network"),
        ({"CONSOLE_PORT": "x"}, "CONSOLE_PORT: "),
        ({"CONSOLE_PASSWORD_FILE": "/no/such/file"}, "CONSOLE_PASSWORD_FILE: cannot be read"),
    ],
)
def test_a_wrong_setting_is_named(variables: dict[str, str], said: str) -> None:
    """In one line, without what may be a secret."""
    with pytest.raises(SettingsError) as error:
        load(variables)
    assert said in str(error.value)
    assert "secret" not in str(error.value)


def test_what_kubernetes_sets_for_a_service_is_no_setting() -> None:
    """A service named `console` would otherwise stop the console."""
    assert (
        load({"CONSOLE_SERVICE_HOST": "10.0.0.1", "CONSOLE_PORT_8081_TCP_ADDR": "10.0.0.1", "CONSOLE_PORT": ""}).port
        == 8081
    )

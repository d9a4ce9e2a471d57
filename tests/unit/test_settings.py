"""Settings from the environment: defaults, secrets, and what is refused."""

import re
import ssl
from pathlib import Path

import certifi
import pytest
from pamqp.commands import Exchange, Queue

from task_activity_log.cli.exit_codes import WRONG_USE
from task_activity_log.cli.settings_list import misspelled, show
from task_activity_log.settings import Settings, SettingsError, load, variable

URLS = {"AMQP_URL": "amqp://guest:guest@broker/", "DATABASE_URL": "postgresql://me:secret@database/app"}


def errors_of(environment: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(environment)
    return str(caught.value).splitlines()


def test_two_urls_are_enough() -> None:
    """Everything but the two URLs has a default."""
    settings = load(URLS)
    assert settings.required_amqp_url == URLS["AMQP_URL"]
    assert settings.http_port == 8080


def test_a_missing_url_is_named_with_an_example() -> None:
    """There is one line for each."""
    assert errors_of({}) == [
        "AMQP_URL is not set: for example AMQP_URL=amqp://guest:guest@localhost:5672/",
        "DATABASE_URL is not set: for example DATABASE_URL=postgresql://postgres@localhost:5432/postgres",
    ]


def test_an_unknown_setting_is_refused_with_the_likely_one() -> None:
    """With a misspelt name the default would silently stay in effect."""
    assert errors_of({**URLS, "WORKER_BATCHMAX": "3"}) == [
        "WORKER_BATCHMAX is not a setting; did you mean WORKER_BATCH_MAX?"
    ]


def test_a_level_may_be_written_in_capitals() -> None:
    assert load({**URLS, "LOG_LEVEL": "DEBUG"}).log_level == "debug"


def test_a_variable_that_is_nearly_a_setting_is_named() -> None:
    """Without our prefix it may be another program's, so it is not refused."""
    odd = {"HTTP_PORTT": "1", "AMQP_URI": "2", "LOG_LEVL": "3", "MANAGEMENT_URLS": "4", "AMQP_URI_FILE": "5"}
    odd |= {"WOKER_JOURNAL": "6", "WORKERS_BATCH_MAX": "7", "WORKERJOURNAL": "8", "WORKR_AMQP_CA_FILE": "9"}
    others = {"HTTP_PROXY": "1", "LOG_FILE": "2", "AMQP_URL_FILE": "3", "PATH": "4", "WORKER_PORT": "5"}
    assert misspelled({**URLS, **odd, **others}) == {
        "AMQP_URI": "AMQP_URL",
        "AMQP_URI_FILE": "AMQP_URL_FILE",
        "HTTP_PORTT": "HTTP_PORT",
        "LOG_LEVL": "LOG_LEVEL",
        "MANAGEMENT_URLS": "MANAGEMENT_URL",
        "WOKER_JOURNAL": "WORKER_JOURNAL",
        "WORKERJOURNAL": "WORKER_JOURNAL",
        "WORKERS_BATCH_MAX": "WORKER_BATCH_MAX",
        "WORKR_AMQP_CA_FILE": "WORKER_AMQP_CA_FILE",
    }
    load({**URLS, **odd})


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("AMQP_URL", "http://user:secret@broker", "should begin with amqp://"),
        ("AMQP_URL", "amqp://user:secret@", "should name a host"),
        ("AMQP_URL", "amqp://user:secret@broker:99999/", "has a port"),
        ("AMQP_URL", "amqp://user:secret@[broker", "is not a URL"),
        ("DATABASE_URL", "mysql://user:secret@database", "should begin with postgresql://"),
        ("HTTP_HOST", "a b", "is not the name or address of a host"),
        ("HTTP_HOST", "\udcff", "is not the name or address of a host"),
        ("WORKER_INBOX_KEEP_SECONDS", "inf", "less than or equal to"),
        ("HTTP_PORT", "http://user:secret@host:80", "should be a valid integer"),
        ("WORKER_BATCH_MAX", "user:secret@host", "should be a valid integer"),
    ],
)
def test_a_wrong_value_is_one_line_without_the_value(name: str, value: str, reason: str) -> None:
    """The line has the variable and the reason, but not the value, which may be or contain a secret."""
    (line,) = errors_of({**URLS, name: value})
    assert line.startswith(f"{name}: ")
    assert reason in line
    assert "secret" not in line


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("WORKER_BATCH_MAX", "1e3", "should be a valid integer, not '1e3'"),
        ("WORKER_BATCH_MAX", "5001", "should be less than or equal to 5000, not '5001'"),
        ("WORKER_BATCH_MAX", "0", "should be greater than or equal to 1, not '0'"),
        ("WORKER_DRAIN_LIMIT_SECONDS", "10s", "should be a valid number, not '10s'"),
        ("WORKER_UPDATE_MODE", "patch", "should be 'replace' or 'merge', not 'patch'"),
        ("WORKER_JOURNAL", "perhaps\x1b", r"should be a valid boolean, not 'perhaps\x1b'"),
        ("WORKER_BATCH_MAX", "9" * 9 + "x" * 99, f"should be a valid integer, not '{'9' * 9}{'x' * 31}'…"),
    ],
)
def test_a_wrong_number_or_choice_is_shown(name: str, value: str, line: str) -> None:
    """Shortened, so that one sees at once what was set."""
    assert errors_of({**URLS, name: value}) == [f"{name}: {line}"]


@pytest.mark.parametrize("name", ["a\x1bb", "a\nb", "é", "a" * 241, "\udcff"])
def test_a_name_that_the_driver_does_not_take_is_refused(name: str) -> None:
    """Queues and exchanges: the worker would crash at each start, and commands end in a traceback."""
    for setting in ("REQUESTS_QUEUE", "REPLIES_QUEUE", "DEAD_LETTERS_QUEUE", "WORKERS_QUEUE"):
        assert "at most 240 letters" in str(errors_of({**URLS, f"WORKER_{setting}": name}))
    for setting in ("REQUESTS_EXCHANGE", "REPLIES_EXCHANGE", "PARTITIONS_EXCHANGE"):
        assert "at most 117 letters" in str(errors_of({**URLS, f"WORKER_{setting}": name}))


def test_the_driver_takes_every_name_that_is_not_refused() -> None:
    """Also with the ending of a partition."""
    allowed = "".join(one for one in map(chr, range(128)) if re.fullmatch(r"[\w.:@#,/+ -]", one))
    for longest, name in ((False, allowed), (True, "a")):
        queue, exchange = name * (240 if longest else 1), name * (117 if longest else 1)
        load({**URLS, "WORKER_REQUESTS_QUEUE": queue, "WORKER_REQUESTS_EXCHANGE": exchange})
        Queue.Declare(queue=f"{queue}.255")
        Exchange.Declare(exchange=f"{exchange}.by-record")


def test_two_queues_with_one_name_are_refused() -> None:
    """Dead letters in the requests queue would be rejected again and again."""
    equal = {"WORKER_DEAD_LETTERS_QUEUE": "task_activity_log.upsert"}
    assert errors_of({**URLS, **equal}) == [
        "WORKER_REQUESTS_QUEUE: should not have the same value as WORKER_DEAD_LETTERS_QUEUE"
    ]
    assert "WORKER_REPLIES_EXCHANGE" in errors_of({**URLS, "WORKER_REQUESTS_EXCHANGE": "task_activity_log.replies"})[0]


def test_a_secret_can_come_from_a_file(tmp_path: Path) -> None:
    """AMQP_URL_FILE is the path of a file with the URL. A newline at its end and a byte order mark do not matter."""
    file = tmp_path / "url"
    file.write_text("\ufeffamqp://from-a-file/\r\n", encoding="utf-8")
    settings = load({"DATABASE_URL": URLS["DATABASE_URL"], "AMQP_URL_FILE": str(file)})
    assert settings.required_amqp_url == "amqp://from-a-file/"


def test_an_unreadable_secret_file_is_one_line() -> None:
    """It has the variable and the reason. Nothing says that the URL is not set: it would send people elsewhere."""
    url = {"DATABASE_URL": URLS["DATABASE_URL"]}
    for path, reason in (
        ("/no", "cannot be read (No such file or directory)"),
        ("/", "cannot be read (Is a directory)"),
        ("/dev/null", "is empty"),
        ("/dev/zero", "is longer than 65,536 characters"),
    ):
        assert errors_of({**url, "AMQP_URL_FILE": path}) == [f"AMQP_URL_FILE: {reason}"]


def test_a_value_and_a_file_for_it_are_refused() -> None:
    """Otherwise the order of the environment decides which one counts. An empty variable is not set."""
    both = {**URLS, "AMQP_URL_FILE": "/no"}
    for environment in (both, dict(reversed(both.items()))):
        assert errors_of(environment) == ["AMQP_URL_FILE: AMQP_URL is set too; set only one of them"]
    assert load({**URLS, "AMQP_URL_FILE": ""}).required_amqp_url == URLS["AMQP_URL"]


def test_empty_means_not_set() -> None:
    """Compose files pass variables that are not set as empty ones."""
    assert load({**URLS, "HTTP_PORT": "", "WORKER_BATCH_MAX": ""}).batch_max == 500


def test_a_command_asks_only_for_what_it_uses() -> None:
    """`migrate` needs no broker, and `publish --dry-run` needs neither URL."""
    settings = load({"DATABASE_URL": URLS["DATABASE_URL"]}, needed=("database_url",))
    assert (settings.amqp_url, settings.required_database_url) == (None, URLS["DATABASE_URL"])
    settings = load({}, needed=())
    assert (settings.amqp_url, settings.database_url) == (None, None)
    assert settings.secret_urls == ()


def test_a_url_that_is_used_but_was_not_set_is_an_error() -> None:
    """This is a defect of the command, but the text is the same as for a missing one."""
    settings = load({}, needed=())
    with pytest.raises(SettingsError, match="AMQP_URL is not set: for example"):
        _ = settings.required_amqp_url
    with pytest.raises(SettingsError, match="DATABASE_URL is not set: for example"):
        _ = settings.required_database_url


def test_files_for_the_broker_do_not_matter_to_a_command_without_a_broker() -> None:
    """One environment serves all commands: `migrate` ignores how the broker would be reached."""
    authorities = ssl.get_default_verify_paths().cafile or certifi.where()
    environment = {"DATABASE_URL": URLS["DATABASE_URL"], "WORKER_AMQP_CA_FILE": authorities}
    assert load(environment, needed=("database_url",)).amqp_tls is not None


def test_secrets_are_not_shown() -> None:
    """Neither repr() nor the JSON of the settings contains a password."""
    settings = load(URLS)
    assert "secret" not in repr(settings) + settings.model_dump_json()


def test_prefetch_is_four_batches_within_the_memory_limit() -> None:
    """At most prefetch times the body limit is held in memory; the memory limit bounds it."""
    assert load({**URLS, "WORKER_BATCH_MAX": "100"}).prefetch == 400
    assert load({**URLS, "WORKER_MEMORY_LIMIT_BYTES": str(3 * 2**20)}).prefetch == 12


def test_the_prefetch_of_a_partition_is_two_batches_within_that_of_the_worker() -> None:
    """It is the same for any number of partitions and workers: all consumers of a queue need the same."""
    for partitions in ("4", "256"):
        assert load({**URLS, "WORKER_PARTITIONS": partitions}).queue_prefetch == 1000
    assert load({**URLS, "WORKER_PARTITIONS": "4", "WORKER_MEMORY_LIMIT_BYTES": str(3 * 2**20)}).queue_prefetch == 12
    assert load(URLS).queue_prefetch == 2000


def test_every_setting_says_what_it_does() -> None:
    """The table of settings in the documentation is generated from the descriptions."""
    assert all(field.description for field in Settings.model_fields.values())
    assert variable("http_port") == "HTTP_PORT"
    assert variable("batch_max") == "WORKER_BATCH_MAX"


@pytest.mark.parametrize(
    ("variables", "error"),
    [
        ({"WORKER_AMQP_KEY_FILE": "{garbage}"}, "WORKER_AMQP_KEY_FILE: also needs WORKER_AMQP_CERTIFICATE_FILE"),
        ({"WORKER_AMQP_CA_FILE": "{absent}"}, "WORKER_AMQP_CA_FILE: cannot be read (No such file or directory)"),
        ({"WORKER_DATABASE_CA_FILE": "{garbage}"}, "WORKER_DATABASE_…_FILE: not PEM files"),
        ({"WORKER_DATABASE_CERTIFICATE_FILE": "{garbage}"}, "WORKER_DATABASE_…_FILE: not PEM files"),
    ],
)
def test_unusable_files_for_tls_are_refused_at_start(tmp_path: Path, variables: dict[str, str], error: str) -> None:
    """They are refused in one line, and not only at the first connection."""
    (tmp_path / "garbage").write_text("garbage")
    files = {"garbage": tmp_path / "garbage", "absent": tmp_path / "absent"}
    secure = {**URLS, "AMQP_URL": "amqps://guest:guest@broker/"}
    [said] = errors_of({**secure, **{name: value.format(**files) for name, value in variables.items()}})
    assert said.startswith(error)


def test_files_for_tls_without_tls_are_refused() -> None:
    """If a certificate authority is set, the connection is expected to be encrypted."""
    authorities = ssl.get_default_verify_paths().cafile or certifi.where()
    assert errors_of({**URLS, "WORKER_AMQP_CA_FILE": authorities}) == [
        "AMQP_URL: should begin with amqps://, because files for TLS are set"
    ]


@pytest.mark.parametrize("value", ["amqp://broker", "http://", "not a url"])
def test_an_invalid_management_url_is_refused(value: str) -> None:
    """It is checked like the other URLs."""
    assert errors_of({**URLS, "MANAGEMENT_URL": value})[0].startswith("MANAGEMENT_URL: should")


def test_variables_of_a_kubernetes_service_are_no_settings() -> None:
    """A service named `worker`, or one that begins with it, puts these into each container of its namespace."""
    names = (
        "PORT",
        "PORT_8080_TCP",
        "PORT_8080_TCP_ADDR",
        "SERVICE_HOST",
        "SERVICE_PORT",
        "SERVICE_PORT_HTTP",
        "B_PORT",
    )
    load({f"WORKER_{name}": "tcp://10.0.0.1:8080" for name in names}, needed=())
    with pytest.raises(SettingsError, match="WORKER_PORTS is not a setting"):
        load({"WORKER_PORTS": "1"}, needed=())
    with pytest.raises(SettingsError, match=r"HTTP_PORT: should be .*; Kubernetes sets it for a service named http"):
        load({"HTTP_PORT": "tcp://10.0.0.1:80"}, needed=())


def test_a_url_from_a_file_is_read_again(tmp_path: Path) -> None:
    """A wrong content is an error without the content; a URL that is not from a file stays as it is."""
    file = tmp_path / "url"
    file.write_text("amqp://u:old@broker/\n")
    settings = load({"AMQP_URL_FILE": str(file), "DATABASE_URL": URLS["DATABASE_URL"]})
    assert settings.read_again("amqp_url") == "amqp://u:old@broker/"
    file.write_text("amqp://u:new@broker/\n")
    assert settings.read_again("amqp_url") == "amqp://u:new@broker/"
    assert settings.read_again("database_url") == URLS["DATABASE_URL"]
    for content, reason in (
        ("", "is empty"),
        ("amqp://u:secret@", "should name a host"),
        ("http://u:secret@broker", "should begin with amqp://"),
    ):
        file.write_text(content)
        with pytest.raises(SettingsError) as caught:
            settings.read_again("amqp_url")
        assert str(caught.value).startswith(f"AMQP_URL_FILE: {reason}")
        assert "secret" not in str(caught.value)
    file.unlink()
    with pytest.raises(SettingsError, match=r"AMQP_URL_FILE: cannot be read \(No such file or directory\)"):
        settings.read_again("amqp_url")


def test_a_setting_of_the_console_is_named_with_its_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(load({}, needed=()), ["console_port"], changed=False) == WRONG_USE
    assert "console_port: docs/console.md has the settings of the console" in capsys.readouterr().err


def test_of_those_that_are_named_only_those_that_are_set_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(load({"WORKER_BATCH_MAX": "7"}, needed=()), ["WORKER_BATCH"], changed=True) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line[0] != " "] == ["WORKER_BATCH_MAX=7"]
    assert show(load({}, needed=()), ["WORKER_BATCH"], changed=True) == 0
    assert capsys.readouterr().out == "none of these is set\n"


def test_a_link_in_a_description_is_printed_as_the_path_of_its_document(capsys: pytest.CaptureFixture[str]) -> None:
    """The descriptions are part of a document as well, where they are Markdown."""
    assert show(load({}, needed=()), list(map(variable, Settings.model_fields)), changed=False) == 0
    said = capsys.readouterr().out
    assert "with libpq's options (docs/connecting.md)" in said
    assert "became of a message (docs/operations.md#the-journal)" in said
    assert "](" not in said

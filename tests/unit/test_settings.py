import ssl
from pathlib import Path

import certifi
import pytest

from task_activity_log.settings import Settings, SettingsError, load, variable

URLS = {"AMQP_URL": "amqp://guest:guest@broker/", "DATABASE_URL": "postgresql://me:secret@database/app"}


def errors_of(environment: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(environment)
    return str(caught.value).splitlines()


def test_two_urls_are_enough() -> None:
    """Everything but the two URLs has a default."""
    settings = load(URLS)
    assert settings.amqp_url.get_secret_value() == URLS["AMQP_URL"]
    assert settings.http_port == 8080


def test_what_is_missing_is_named_with_an_example() -> None:
    """A newcomer learns in one line a URL what to set."""
    assert errors_of({}) == [
        "AMQP_URL: is not set; for example AMQP_URL=amqp://guest:guest@localhost:5672/",
        "DATABASE_URL: is not set; for example DATABASE_URL=postgresql://postgres@localhost:5432/postgres",
    ]


def test_an_unknown_setting_is_refused_with_the_likely_one() -> None:
    """A typing error must not silently leave a default in force."""
    assert errors_of({**URLS, "WORKER_BATCHMAX": "3"}) == [
        "WORKER_BATCHMAX: unknown setting; did you mean WORKER_BATCH_MAX?"
    ]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("AMQP_URL", "http://user:secret@broker", "should begin with amqp://"),
        ("AMQP_URL", "amqp://user:secret@", "should name a host"),
        ("AMQP_URL", "amqp://user:secret@broker:99999/", "has a port"),
        ("AMQP_URL", "amqp://user:secret@[broker", "is not a URL"),
        ("DATABASE_URL", "mysql://user:secret@database", "should begin with postgresql://"),
        ("HTTP_PORT", "tcp://10.0.0.1:80", "should be a valid integer"),
        ("WORKER_UPDATE_MODE", "secret", "should be 'replace' or 'merge'"),
    ],
)
def test_a_wrong_value_is_one_line_without_the_value(name: str, value: str, reason: str) -> None:
    """The line names the variable and the reason; the value, which may be a secret, is not in it."""
    (line,) = errors_of({**URLS, name: value})
    assert line.startswith(f"{name}: ")
    assert reason in line
    assert "secret" not in line


def test_a_secret_can_come_from_a_file(tmp_path: Path) -> None:
    """AMQP_URL_FILE holds the path of a file with the URL; a newline at its end does not matter."""
    file = tmp_path / "url"
    file.write_text("amqp://from-a-file/\n")
    settings = load({"DATABASE_URL": URLS["DATABASE_URL"], "AMQP_URL_FILE": str(file)})
    assert settings.amqp_url.get_secret_value() == "amqp://from-a-file/"


def test_an_unreadable_secret_file_is_one_line() -> None:
    """The variable and the reason."""
    assert "AMQP_URL_FILE: cannot be read (No such file or directory)" in errors_of({**URLS, "AMQP_URL_FILE": "/no"})


def test_empty_means_not_set() -> None:
    """Compose files pass variables that are not set as empty ones."""
    assert load({**URLS, "HTTP_PORT": "", "WORKER_BATCH_MAX": ""}).batch_max == 500


def test_a_command_asks_only_for_what_it_uses() -> None:
    """`migrate` needs no broker."""
    assert load({"DATABASE_URL": URLS["DATABASE_URL"]}, needed=("database_url",)).database_url


def test_secrets_are_not_shown() -> None:
    """Neither repr nor JSON of the settings holds a password."""
    settings = load(URLS)
    assert "secret" not in repr(settings) + settings.model_dump_json()


def test_prefetch_is_four_batches_within_the_memory_limit() -> None:
    """The worst case in hand is prefetch times the body limit; the memory limit bounds it."""
    assert load({**URLS, "WORKER_BATCH_MAX": "100"}).prefetch == 400
    assert load({**URLS, "WORKER_MEMORY_LIMIT_BYTES": str(3 * 2**20)}).prefetch == 12


def test_every_setting_says_what_it_does() -> None:
    """The table in the README is made of these."""
    assert all(field.description for field in Settings.model_fields.values())
    assert variable("http_port") == "HTTP_PORT"
    assert variable("batch_max") == "WORKER_BATCH_MAX"


@pytest.mark.parametrize(
    ("variables", "error"),
    [
        ({"WORKER_AMQP_KEY_FILE": "{garbage}"}, "WORKER_AMQP_KEY_FILE: needs WORKER_AMQP_CERTIFICATE_FILE beside it"),
        ({"WORKER_AMQP_CA_FILE": "{absent}"}, "WORKER_AMQP_CA_FILE: cannot be read (No such file or directory)"),
        ({"WORKER_DATABASE_CA_FILE": "{garbage}"}, "WORKER_DATABASE_…_FILE: not the PEM files"),
        ({"WORKER_DATABASE_CERTIFICATE_FILE": "{garbage}"}, "WORKER_DATABASE_…_FILE: not the PEM files"),
    ],
)
def test_files_for_tls_that_are_of_no_use_are_refused_at_start(
    tmp_path: Path, variables: dict[str, str], error: str
) -> None:
    """Not at the first connection, and in one line."""
    (tmp_path / "garbage").write_text("garbage")
    files = {"garbage": tmp_path / "garbage", "absent": tmp_path / "absent"}
    secure = {**URLS, "AMQP_URL": "amqps://guest:guest@broker/"}
    [said] = errors_of({**secure, **{name: value.format(**files) for name, value in variables.items()}})
    assert said.startswith(error)


def test_files_for_tls_without_tls_are_refused() -> None:
    """Who names a certificate authority believes the link encrypted."""
    authorities = ssl.get_default_verify_paths().cafile or certifi.where()
    assert errors_of({**URLS, "WORKER_AMQP_CA_FILE": authorities}) == [
        "AMQP_URL: should begin with amqps://, as there are files for TLS"
    ]


@pytest.mark.parametrize("value", ["amqp://broker", "http://", "not a url"])
def test_a_management_url_that_is_none_is_refused(value: str) -> None:
    """Like the other URLs."""
    assert errors_of({**URLS, "MANAGEMENT_URL": value})[0].startswith("MANAGEMENT_URL: should")

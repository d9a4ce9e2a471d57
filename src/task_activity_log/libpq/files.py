"""The files that libpq reads: services (`pg_service.conf`) and passwords (`.pgpass`)."""

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

_SERVICE_DIRECTORIES = ("/etc/postgresql-common", "/etc")
"""Where distributions have the service file of the machine, unless PGSYSCONFDIR says otherwise."""
_FIELDS = 5


def home(environment: Mapping[str, str]) -> Path | None:
    """The home directory; None if there is none."""
    if named := environment.get("HOME"):
        return Path(named)
    try:
        return Path.home()
    except (RuntimeError, KeyError):
        return None


def service(name: str, file: str | None, environment: Mapping[str, str]) -> dict[str, str]:
    """The options of a service.

    Raises:
        ValueError: no file has it, or it cannot be read.
    """
    at_home = home(environment)
    files = [Path(file)] if file else [at_home / ".pg_service.conf"] if at_home else []
    system = environment.get("PGSYSCONFDIR")
    files += [Path(directory, "pg_service.conf") for directory in ((system,) if system else _SERVICE_DIRECTORIES)]
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"the service file {path} cannot be read ({_why(error)})") from None
        if (found := _section(text, name, path)) is not None:
            return found
    raise ValueError(f"service {name} is not defined in {' or '.join(map(str, files))}")


def _section(text: str, name: str, path: Path) -> dict[str, str] | None:
    found: dict[str, str] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()  # noqa: PLW2901 - libpq skips these blanks too
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            if found is not None:
                break
            found = {} if line == f"[{name}]" else None
        elif found is not None:
            option, equals, value = line.partition("=")
            if not equals or option == "service":
                raise ValueError(f"the service file {path} has something else than an option in line {number}")
            if option != option.rstrip():  # libpq refuses it as well
                raise ValueError(f"the service file {path} has a blank before the = in line {number}")
            found.setdefault(option, value)
    return found


def password(
    file: str | None, environment: Mapping[str, str], *, host: str, port: int, dbname: str, user: str
) -> str | None:
    """The password for a host; None if no line is for it, or if the file does not count (see `ignored`)."""
    path = password_file(file, environment)
    if path is None or ignored(path):
        return None
    try:
        lines = path.read_bytes().split(b"\n")  # a password may have other characters that end lines elsewhere
    except OSError:
        return None
    for raw in lines:
        try:
            line = raw.decode()
        except UnicodeDecodeError:
            continue  # a comment, or a password that cannot be sent
        if line.startswith("#"):
            continue
        found = re.findall(r"((?:[^\\:]|\\.|\\$)*)(?::|$)", line.rstrip("\r"))
        fields = [re.sub(r"\\(.)", r"\1", field) for field in found]
        if len(fields) < _FIELDS:
            continue
        wanted = zip(fields, (host, str(port), dbname, user), strict=False)
        if all(field in ("*", value) for field, value in wanted):
            return fields[_FIELDS - 1]
    return None


def password_file(file: str | None, environment: Mapping[str, str]) -> Path | None:
    """The password file, whether it exists or not."""
    if file:
        return Path(file)
    at_home = home(environment)
    return at_home / ".pgpass" if at_home else None


def ignored(path: Path) -> str:
    """Why a password file does not count, as in libpq; empty if it does."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return _why(error)
    if not stat.S_ISREG(mode):  # a pipe would be waited for
        return "it is not a plain file"
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        return "others may use it: chmod 600"
    return "" if os.access(path, os.R_OK) else "it cannot be read"


def _why(error: OSError | UnicodeDecodeError) -> str:
    return getattr(error, "strerror", None) or "not UTF-8"

"""`task-activity-log settings`: all settings with value, default, and where the value comes from."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import SecretStr

from task_activity_log.cli.exit_codes import DONE, WRONG_USE
from task_activity_log.cli.terminal import say, table
from task_activity_log.settings import PREFIX, Settings, variable
from task_activity_log.telemetry.logs import address
from task_activity_log.variables import unknown

_LINK = re.compile(r"\[([^]]*)\]\(([^)]*)\)")
"""A link in Markdown to another document: the descriptions are in docs/settings.md too."""
_COLUMNS = ("setting", "value", "default", "from")


def show(settings: Settings, names: Sequence[str], *, changed: bool) -> int:
    """Print all settings; with `names`, these in full; if `changed`, only those that are set. Returns the exit code.

    A name that is no setting stands for all settings that begin with it.
    """
    fields = {variable(field): field for field in Settings.model_fields}
    chosen = {name: [known for known in fields if known == name.upper()] for name in names}
    chosen |= {
        name: [known for known in fields if known.startswith(name.upper())] for name in names if not chosen[name]
    }
    wrong = [name for name in names if not chosen[name]]
    for name in wrong:
        of_console = name.upper().startswith("CONSOLE")
        say(f"{name}: docs/console.md has the settings of the console" if of_console else unknown(name, fields))
    if wrong:
        return WRONG_USE
    if names:
        found = [fields[known] for name in names for known in chosen[name]]
        found = [field for field in found if not changed or field in settings.model_fields_set]
        print("\n\n".join(_in_full(settings, field) for field in found) or "none of these is set")
        return DONE
    for name, meant in misspelled().items():
        say(f"{name} is not a setting; did you mean {meant}?")
    rows = [_row(settings, field) for field in fields.values()]
    table(_COLUMNS, [row for row in rows if not changed or row[3] != "default"])
    return DONE


def _row(settings: Settings, field: str) -> tuple[str, str, str, str]:
    return (
        variable(field),
        _shown(getattr(settings, field)),
        _shown(Settings.model_fields[field].default),
        _origin(settings, field),
    )


def _origin(settings: Settings, field: str) -> str:
    """Where the value comes from: its file, `environment` or `default`."""
    if field not in settings.model_fields_set:
        return "default"
    return os.environ.get(f"{variable(field)}_FILE") or "environment"


def _in_full(settings: Settings, field: str) -> str:
    """One setting, with its meaning and the values that it can have."""
    name, value, default, origin = _row(settings, field)
    found = Settings.model_fields[field]
    choices = [choice for choice in get_args(found.annotation) if isinstance(choice, str)]
    one_of = f"\n  one of: {', '.join(choices)}" if choices else ""
    meaning = _LINK.sub(_document, " ".join((found.description or "").split()))
    return f"{name}={value}\n  from: {origin}; default: {default or 'none'}{one_of}\n  {meaning}"


def _document(link: re.Match[str]) -> str:
    """A link as it is printed: the document alone where the link is all that is in parentheses."""
    text, target = link.groups()
    path = f"docs/{target}"
    alone = link.string[: link.start()].endswith("(") and link.string[link.end() :].startswith(")")
    return path if alone else f"{text} ({path})"


def _shown(value: Any) -> str:
    """A value as it is written in the environment. Of a URL only the server and the path are shown: the rest may be secret."""
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        url = value.get_secret_value()
        return f"{url.partition('://')[0]}://…@{address(url)}" if "://" in url else "(hidden)"
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def misspelled(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables that differ by one character from a setting, and the setting: `HTTP_PORTT` and `HTTP_PORT`.

    They may belong to another program. Those that begin with the prefix are not named: unknown ones are refused by
    `settings.load`.
    """
    settings = set(map(variable, Settings.model_fields))
    taken = settings | {f"{name}_FILE" for name in settings}
    known = {form: name for name in sorted(taken) for form in _forms(name)}
    names = {name for name in environment if name not in taken and not name.startswith(PREFIX)}
    return {name: known[form] for name in sorted(names) for form in _forms(name) if form in known}


def _forms(name: str) -> set[str]:
    """The name, and the name without each of its characters: names that differ by one character have one in common."""
    return {name, *(name[:index] + name[index + 1 :] for index in range(len(name)))}

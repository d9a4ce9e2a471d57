"""What is wrong with environment variables, a line each, for the settings of the worker and of the console. Pure."""

import difflib
from collections.abc import Callable, Iterable, Iterator

from pydantic import ValidationError
from pydantic_core import ErrorDetails


def unknown(name: str, known: Iterable[str]) -> str:
    """What is wrong with a variable that is no setting."""
    close = difflib.get_close_matches(name.upper(), known, n=1)
    return f"{name} is not a setting" + (f"; did you mean {close[0]}?" if close else "")


def explained(invalid: ValidationError, variable: Callable[[str], str]) -> Iterator[str]:
    """A line for each wrong setting. `variable` names that of a field.

    It has the value of a number, a choice or a yes or no. Any other value may be a secret.
    """
    for error in invalid.errors(include_url=False):
        text = str(error.get("ctx", {}).get("error", error["msg"].partition(", unable")[0])).removeprefix("Input ")
        if not error["loc"]:  # a combination of settings, which the text names
            yield text
            continue
        if error["loc"] == ("http_port",) and str(error.get("input")).startswith("tcp://"):
            text += "; Kubernetes sets it for a service named http: set it yourself, or enableServiceLinks: false"
        lowered = text if text[:2].isupper() else f"{text[:1].lower()}{text[1:]}"  # PGPORT stays as it is
        yield f"{variable(str(error['loc'][0]))}: {lowered}{_instead(error)}"


_SHOWN_MAX = 40


def _instead(error: ErrorDetails) -> str:
    """The value, shortened, where a number, a choice or a yes or no is wanted, unless it is a URL, which has a password."""
    value = error["input"]
    if not error["type"].startswith(_PLAIN) or not isinstance(value, str) or "@" in value or "://" in value:
        return ""
    return f", not {value!r}" if len(value) <= _SHOWN_MAX else f", not {value[:_SHOWN_MAX]!r}…"


_PLAIN = ("int_", "float_", "bool_", "literal_", "greater_than", "less_than", "finite_")
"""What the types of pydantic's errors of such settings begin with."""

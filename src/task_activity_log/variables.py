"""What is wrong with environment variables, a line each, for the settings of the worker and of the console. Pure."""

import difflib
from collections.abc import Callable, Iterable, Iterator

from pydantic import ValidationError


def unknown(name: str, known: Iterable[str]) -> str:
    """What is wrong with a variable that is no setting."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"{name}: unknown setting" + (f"; did you mean {close[0]}?" if close else "")


def explained(invalid: ValidationError, variable: Callable[[str], str]) -> Iterator[str]:
    """A line for each wrong setting, without the value: it may be a secret. `variable` names that of a field."""
    for error in invalid.errors(include_url=False):
        text = str(error.get("ctx", {}).get("error", error["msg"].partition(", unable")[0])).removeprefix("Input ")
        if not error["loc"]:  # a combination of settings, which the text names
            yield text
            continue
        if error["loc"] == ("http_port",) and str(error.get("input")).startswith("tcp://"):
            text += "; Kubernetes sets it for a service named http: set it yourself, or enableServiceLinks: false"
        yield f"{variable(str(error['loc'][0]))}: {text[:1].lower()}{text[1:]}"

"""The file to which `publish` writes what was rejected."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from task_activity_log.cli.sources import is_same, not_for_lines
from task_activity_log.client import ClientError, exported


def writable(rejected: Path, *, again: bool, paths: Sequence[str] = ()) -> str | None:
    """Why the rejected records cannot be written to this file; None if they can.

    A file of an earlier run may be written again when that run is continued: its records are judged again. Not if it is
    one of the `paths` that are read: what was corrected in it would be lost.
    """
    if str(rejected) == "-":
        return "--rejected -: name a file: the replies are printed on standard output"
    try:
        if not rejected.exists():
            missing = f"--rejected {rejected}: there is no folder {rejected.parent}"
            return not_for_lines(rejected) if rejected.parent.is_dir() else missing
        if not (rejected.is_file() or rejected.is_dir()):
            return f"--rejected {rejected}: is a pipe or a device: name a file"
        if any(is_same(Path(path), rejected) for path in paths):
            return f"--rejected {rejected}: its records are read: name another file for the rejected records"
        with rejected.open(encoding="utf-8", errors="replace") as file:
            first = file.readline()
        ours = not first or (exported.is_message(parsed := json.loads(first)) and "problems" in parsed)
    except OSError as error:
        return f"{rejected}: {error.strerror}"
    except (ValueError, RecursionError):
        ours = False
    taken = f"{rejected} already exists: name another file for the rejected records, or remove it"
    return None if again and ours else taken


def add_line(rejected: Path, line: str, *, first: bool, new: bool) -> None:
    """Add a line to the file. The first one creates it, or writes it again unless it is `new`.

    Raises `ClientError`: no part of the line is in the file then, and no empty file is left; or another program has created
    the file meanwhile.
    """
    try:
        size = 0 if first else rejected.stat().st_size
        try:
            # A file's name that is no text in UTF-8 is written as an escape of JSON.
            mode = "a" if not first else "x" if new else "w"
            with rejected.open(mode, encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{line}\n")
        except FileExistsError:
            raise ClientError(f"{rejected} was created by another program meanwhile: name another file") from None
        except OSError:
            with suppress(OSError):
                os.truncate(rejected, size)  # part of a line could not be published
                if first and new:
                    rejected.unlink()
            raise
    except OSError as error:
        raise ClientError(f"{rejected}: {error.strerror}") from None

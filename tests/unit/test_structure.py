"""The source stays small enough to be read, and the maps in its docstrings stay true."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import task_activity_log
from benchmarks import sampler

SOURCE = Path(task_activity_log.__file__).parent
MESSAGE_PATH = (
    "message.py",
    "record.py",
    "problem.py",
    "wire/*.py",
    "pipeline/*.py",
    "rabbitmq/*.py",
    "postgresql/*.py",
)
"""What a message passes through, and what stands next to it in these folders."""
WORKER_LINES, FILE_LINES, FUNCTION_LINES = 319, 450, 40
"""At most. All lines count: blank ones, comments and docstrings too."""

PACKAGES = sorted(path.parent for path in SOURCE.rglob("__init__.py"))
_ENTRY = re.compile(r"^(\w+)(/ |  ) *\S")
"""A line of a map: a module and two spaces or more, or a folder and its slash, then what is in it."""


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Each function of a file, methods and inner ones too: its name and its length, from `def` to its last line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def test_the_worker_can_be_read_in_one_go() -> None:
    """It is the only control flow that matters; whatever belongs elsewhere goes there."""
    assert lines(SOURCE / "pipeline" / "worker.py") <= WORKER_LINES


def test_no_file_is_too_long() -> None:
    """A longer file has more than one purpose."""
    assert {path.name: lines(path) for path in SOURCE.rglob("*.py") if lines(path) > FILE_LINES} == {}


@pytest.mark.parametrize("pattern", MESSAGE_PATH)
def test_no_function_on_the_message_path_is_too_long(pattern: str) -> None:
    """A function that a message passes through fits on a screen."""
    files = list(SOURCE.glob(pattern))
    assert files, "the message path has moved"
    found = {f"{path.name} {name}": length for path in files for name, length in functions(path)}
    assert {name: length for name, length in found.items() if length > FUNCTION_LINES} == {}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: str(package.relative_to(SOURCE.parent)))
def test_the_map_of_a_package_names_what_is_in_it(package: Path) -> None:
    """Its docstring has a line for each module and each folder, which begins with its name, and for nothing else."""
    docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))) or ""
    named = [found[1] + found[2].strip() for line in docstring.splitlines() if (found := _ENTRY.match(line))]
    there = set(contents(package))
    assert (there - set(named), set(named) - there) == (set(), set()), "(not on the map, only on the map)"
    assert len(named) == len(there), "a name is on the map twice"


def contents(package: Path) -> Iterator[str]:
    """The names of a package's modules, and of its folders with a slash."""
    for path in package.iterdir():
        if path.is_dir() and any(file.suffix != ".pyc" for file in path.rglob("*") if file.is_file()):
            yield f"{path.name}/"
        elif path.suffix == ".py" and not path.name.startswith("__"):
            yield path.stem


def test_every_stage_of_the_profile_names_functions_that_exist() -> None:
    """Otherwise their time counts for another stage."""
    for parts in sampler.STAGES.values():
        for name, _, function in (part.partition(":") for part in parts if ".py" in part):
            text = (SOURCE / name).read_text(encoding="utf-8")
            assert f"def {function}" in text, f"{name}:{function}"

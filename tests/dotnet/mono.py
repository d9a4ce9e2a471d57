"""Compiles C# with Mono and talks to the program that drives the .NET serializers."""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).parent
EXAMPLES = HERE.parent.parent / "docs" / "examples" / "csharp"
PACKAGES = "mono-runtime mono-mcs libnewtonsoft-json5.0-cil libmono-system-runtime-serialization4.0-cil"

_CLI = Path("/usr/lib/cli")


class MonoError(Exception):
    """Mono is missing, or cannot compile or run the program; the message says what to do."""


def compile_all(output: Path) -> Path:
    """Compile everything in this directory, with the examples, to a program, and return its path.

    Raises:
        MonoError: Mono or a library is missing, or the compiler fails.
    """
    newtonsoft = next(iter(_CLI.glob("Newtonsoft.Json-*/Newtonsoft.Json.dll")), None)
    if newtonsoft is None or not (shutil.which("mcs") and shutil.which("mono")):
        raise MonoError(f"this test needs Mono: apt-get install --no-install-recommends {PACKAGES} tzdata")
    program = output / "interop.exe"
    references = [f"-r:{name}" for name in (newtonsoft, "System.Runtime.Serialization", "System.Xml")]
    sources = [str(path) for directory in (HERE, EXAMPLES) for path in sorted(directory.glob("*.cs"))]
    compiler = subprocess.run(  # noqa: S603  # our own sources
        ["mcs", "-langversion:7", "-warnaserror", f"-out:{program}", *references, *sources],  # noqa: S607  # from the PATH
        capture_output=True,
        text=True,
        check=False,
    )
    if compiler.returncode:
        raise MonoError(compiler.stdout + compiler.stderr)
    return program


class Program:
    """The program, running in a time zone."""

    def __init__(self, path: Path, zone: str) -> None:
        self.zone = zone
        self._process = subprocess.Popen(  # noqa: S603  # what was just compiled
            ["mono", str(path)],  # noqa: S607  # from the PATH
            env={**os.environ, "TZ": zone},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def ask(self, questions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the program's answer to each question; see Program.cs."""
        return [self._ask(question) for question in questions]

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        stdin, stdout = self._pipes()
        stdin.write(json.dumps(question) + "\n")
        stdin.flush()
        answer = stdout.readline()
        if not answer:
            raise MonoError(f"the program exited with status {self._process.wait()}")
        found: dict[str, Any] = json.loads(answer)
        return found

    def close(self) -> None:
        """End the program."""
        stdin, stdout = self._pipes()
        stdin.close()
        self._process.wait()
        stdout.close()

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin
        assert self._process.stdout
        return self._process.stdin, self._process.stdout

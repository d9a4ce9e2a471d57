"""Resolves the dependencies into requirements.lock and requirements-dev.lock; with --check says whether that is needed.

Versions that are in a lock already are kept if they still fit; `--upgrade` takes the newest of all.

The locks hold exact versions with hashes (final releases, where a package has one), for Python 3.11 to 3.14 on Linux and
macOS. They name no index: pip takes packages from wherever it is configured to, and the hashes hold anywhere. The check
needs no network: the first line of each lock is a hash of the dependencies that it was made from.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from tools.generated import ROOT

LOCKS = {
    "requirements.lock": ["--extra", "console", "--extra", "otel"],
    "requirements-dev.lock": [
        "--extra",
        "console",
        "--extra",
        "otel",
        "--group",
        "dev",
        "--constraint",
        "requirements.lock",
    ],
}


def dependencies() -> str:
    """Return the first line of a lock: a hash of the dependencies in pyproject.toml, without comments and layout."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [
        project["build-system"]["requires"],
        project["project"]["requires-python"],
        project["project"]["dependencies"],
        project["project"].get("optional-dependencies"),
        project["dependency-groups"],
    ]
    return "# dependencies: sha256:" + hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def outdated() -> list[str]:
    """Return the names of the locks that were made from other dependencies than those in pyproject.toml."""
    line = dependencies()
    return [name for name in LOCKS if not (ROOT / name).read_text().startswith(line + "\n")]


def write(*, upgrade: bool) -> None:
    """Resolve the dependencies and write both locks."""
    if shutil.which("uv", path=str(Path(sys.executable).parent)) is None:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "uv"], check=True)
    for name, options in LOCKS.items():  # the development lock within the other, so that tests run with what is shipped
        found = _resolve((ROOT / name).read_text(), [*options, *(["--upgrade"] if upgrade else [])])
        (ROOT / name).write_text(f"{dependencies()}\n# made by `make lock`; do not edit\n{found}")
        print(f"{name}: {sum(line[0].isalnum() for line in found.splitlines())} packages")


def _resolve(lock: str, options: list[str]) -> str:
    """The new text of a lock; uv prefers the versions that it finds in its output file."""
    resolve = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--quiet", "--no-config"]
    resolve += ["--universal", "--python-version", "3.11", "--prerelease", "if-necessary", "--generate-hashes"]
    resolve += ["--no-emit-index-url", "--no-emit-find-links", "--no-header", "--no-annotate", *options]
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch, "lock.txt")
        output.write_text(lock)
        subprocess.run([*resolve, "--output-file", str(output)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return output.read_text()


def main() -> int:
    """Write, or check; returns the exit status."""
    if "--check" not in sys.argv[1:]:
        write(upgrade="--upgrade" in sys.argv[1:])
        return 0
    old = outdated()
    if old:
        print(f"{', '.join(old)}: pyproject.toml has other dependencies now; run `make lock`", file=sys.stderr)
    return int(bool(old))


if __name__ == "__main__":
    sys.exit(main())

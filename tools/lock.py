"""Writes requirements.lock and requirements-dev.lock, or with --check tells whether pyproject.toml has changed since.

The locks hold exact releases (final ones, where a package has any) with hashes, for Python 3.11 to 3.13 on Linux and
macOS, and name no index: pip takes packages from wherever it is configured to, and the hashes hold anywhere. The check
compares a hash of the dependencies that is written in the locks' first line, so it needs no network.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKS = {
    "requirements.lock": ["--extra", "otel"],
    "requirements-dev.lock": ["--extra", "otel", "--group", "dev", "--constraint", "requirements.lock"],
}


def dependencies() -> str:
    """Return the first line for a lock: a hash of what pyproject.toml asks for, comments and layout left out."""
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
    """Return the locks that were made from other dependencies than pyproject.toml has now."""
    line = dependencies()
    return [name for name in LOCKS if not (ROOT / name).read_text().startswith(line + "\n")]


def write() -> None:
    """Resolve anew; versions already in a lock are replaced by the newest that fit."""
    if shutil.which("uv", path=str(Path(sys.executable).parent)) is None:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "uv"], check=True)
    for name, options in LOCKS.items():  # the dev lock within the product's, so that tests run with what is shipped
        resolve = [
            sys.executable,
            "-m",
            "uv",
            "pip",
            "compile",
            "pyproject.toml",
            "--quiet",
            "--upgrade",
            "--no-config",
        ]
        resolve += ["--universal", "--python-version", "3.11", "--prerelease", "if-necessary", "--generate-hashes"]
        resolve += ["--no-emit-index-url", "--no-emit-find-links", "--no-header", "--no-annotate", *options]
        found = subprocess.run(resolve, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        (ROOT / name).write_text(f"{dependencies()}\n# made by `make lock`; do not edit\n{found}")
        print(f"{name}: {sum(line[0].isalnum() for line in found.splitlines())} packages")


def main() -> int:
    """Write, or check; returns the exit status."""
    if "--check" not in sys.argv[1:]:
        write()
        return 0
    old = outdated()
    if old:
        print(f"{', '.join(old)}: pyproject.toml asks for other dependencies now; run `make lock`", file=sys.stderr)
    return 1 if old else 0


if __name__ == "__main__":
    sys.exit(main())

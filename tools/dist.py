"""Builds the wheel, the sdist and an SBOM of what the wheel needs (CycloneDX, JSON) into dist/, and checks them.

All three are reproducible: the same source, locks and Python give the same bytes. One line for each check says what was
found. To try the wheel, its locked dependencies are installed from the index that pip is configured with.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from task_activity_log import __version__
from tools.generated import ROOT

DIST = ROOT / "dist"
PACKAGE = ROOT / "src" / "task_activity_log"
LOCK = ROOT / "requirements.lock"
WHEEL = DIST / f"task_activity_log_worker-{__version__}-py3-none-any.whl"
SDIST = DIST / f"task_activity_log_worker-{__version__}.tar.gz"
SBOM = DIST / f"task_activity_log_worker-{__version__}.cdx.json"

METADATA = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")


class DistError(Exception):
    """What was built is not what it should be; the text says why."""


def write_sbom() -> None:
    """Every locked package with its version and hashes. The product's own version is added: pyproject.toml has none."""
    command = [sys.executable, "-W", "ignore::UserWarning", "-m", "cyclonedx_py", "requirements", str(LOCK)]
    command += ["--pyproject", str(ROOT / "pyproject.toml"), "--output-reproducible", "--of", "JSON"]
    sbom = json.loads(_run(command))
    for component in sbom["components"]:
        del component["description"]  # the line of the lock, once more
    sbom["metadata"]["component"] |= {
        "version": __version__,
        "purl": f"pkg:pypi/task-activity-log-worker@{__version__}",
    }
    SBOM.write_text(json.dumps(sbom, indent=2) + "\n", encoding="utf-8")


def check_sbom() -> str:
    """It names what the lock names."""
    named = {(each["name"], each["version"]) for each in json.loads(SBOM.read_text(encoding="utf-8"))["components"]}
    locked = {tuple(line.split("==")) for line in constraints()}
    if named != locked:
        raise DistError(f"{SBOM.name} differs from requirements.lock: {sorted(named ^ locked)}")
    return f"{SBOM.name} names the {len(locked)} packages of requirements.lock"


def check_wheel() -> str:
    """It has every file of the package: modules, SQL, templates, migrations; and, but for metadata, nothing else."""
    package = {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    metadata = {f"task_activity_log_worker-{__version__}.dist-info/{name}" for name in METADATA}
    with zipfile.ZipFile(WHEEL) as wheel:
        differs = set(wheel.namelist()) ^ (package | metadata)
    if differs:
        raise DistError(f"{WHEEL.name} differs from src/: {sorted(differs)}")
    return f"{WHEEL.name} has the {len(package)} files of the package, and no others"


def check_sdist() -> str:
    """The wheel that is built from it is the same."""
    with tempfile.TemporaryDirectory() as scratch:
        _run(["tar", "-xzf", str(SDIST), "-C", scratch])
        _build("wheel", Path(scratch, SDIST.name.removesuffix(".tar.gz")), Path(scratch))
        if Path(scratch, WHEEL.name).read_bytes() != WHEEL.read_bytes():
            raise DistError(f"{SDIST.name} builds another wheel")
    return f"{SDIST.name} builds the same wheel"


def check_install() -> str:
    """In a new environment pip installs the wheel, and the command works without this repository."""
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch)
        _run([sys.executable, "-m", "venv", str(here / "venv")])
        (here / "constraints.txt").write_text("\n".join(constraints()), encoding="utf-8")
        pip = [str(here / "venv/bin/python"), "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
        _run([*pip, "--quiet", "--constraint", str(here / "constraints.txt"), str(WHEEL)])
        command = str(here / "venv/bin/task-activity-log")
        version = _run([command, "--version"], here).strip()
        if version != f"task-activity-log {__version__}":
            raise DistError(f"the installed command says that it is version {version}")
        if "CREATE TABLE task_activity_log " not in _run([command, "migrate", "--sql"], here):
            raise DistError("the installed command prints no SQL for the table")
    return f"{WHEEL.name} installs, and its command works"


def constraints() -> list[str]:
    """What requirements.lock pins, without hashes and markers."""
    return re.findall(r"^[A-Za-z0-9._-]+==[^\s;]+", LOCK.read_text(encoding="utf-8"), re.MULTILINE)


def _build(target: str, source: Path, directory: Path) -> None:
    _run([sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(directory)], source)


def _run(command: list[str], directory: Path = ROOT) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DATABASE_URL")}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DistError(f"{' '.join(command)}\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout


def main() -> int:
    """Build and check; returns the exit status."""
    shutil.rmtree(DIST, ignore_errors=True)
    try:
        for target in ("wheel", "sdist"):
            _build(target, ROOT, DIST)
        write_sbom()
        for check in (check_sbom, check_wheel, check_sdist, check_install):
            print(f"dist: {check()}")
    except DistError as error:
        print(f"dist: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Asks whether a vulnerability is known of anything in requirements-dev.lock, which holds what is shipped as well.

Where nobody can be asked it says so in one line and does not fail: `make check` works without a network.
"""

import json
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).resolve().parents[1] / "requirements-dev.lock"
_LIMIT_SECONDS = 120


def audit() -> list[dict[str, object]] | None:
    """What pip-audit says of each package; None when it could not ask."""
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--requirement", str(LOCK)]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "5"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=False)
        packages: list[dict[str, object]] = json.loads(ended.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return None
    return packages


def main() -> int:
    """Print what is known; returns the exit status."""
    packages = audit()
    if packages is None or all("skip_reason" in package for package in packages):
        print("audit: the service that knows vulnerabilities could not be asked; nothing was audited")
        return 0
    asked = [package for package in packages if "skip_reason" not in package]
    print(f"audit: {len(asked)} of {len(packages)} packages were asked about")
    bad = [package for package in asked if package["vulns"]]
    for package in bad:
        known = ", ".join(vulnerability["id"] for vulnerability in package["vulns"])  # type: ignore[attr-defined]
        print(f"audit: {package['name']} {package['version']}: {known}; run `make lock`", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

"""Asks whether a package in requirements-dev.lock, which includes all that is shipped, has a known vulnerability.

If the service that knows cannot be reached, it says so in one line and does not fail: `make check` works offline.
"""

import json
import subprocess
import sys

from tools.generated import ROOT

LOCK = ROOT / "requirements-dev.lock"
_LIMIT_SECONDS = 120


def audit() -> list[dict[str, object]] | None:
    """What pip-audit reports for each package; None if it could not ask."""
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--requirement", str(LOCK)]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "5"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=False)
        packages: list[dict[str, object]] = json.loads(ended.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return None
    return packages


def main() -> int:
    """Print the vulnerabilities; returns the exit status."""
    packages = audit()
    if packages is None or all("skip_reason" in package for package in packages):
        print("audit: the vulnerability service could not be reached; nothing was audited")
        return 0
    asked = [package for package in packages if "skip_reason" not in package]
    print(f"audit: {len(asked)} of {len(packages)} packages were looked up")
    bad = [package for package in asked if package["vulns"]]
    for package in bad:
        known = ", ".join(vulnerability["id"] for vulnerability in package["vulns"])  # type: ignore[attr-defined]
        print(
            f"audit: {package['name']} {package['version']}: {known}; run `make lock ARGS=--upgrade`", file=sys.stderr
        )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

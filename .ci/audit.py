"""What an installation consists of, and which known weaknesses it has: `tox run -e audit`.

The SBOM is written to ``sbom.cdx.json``. pip-audit ends well, too, where it could ask nobody;
here that is said.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SBOM = Path("sbom.cdx.json")


def verdict(report: dict[str, Any], own: str = "permllm") -> tuple[int, list[str]]:
    """The exit code, and the lines that say why.

    Args:
        report: what pip-audit prints as JSON.
        own: the project itself, which no index need know.
    """
    packages = [package for package in report["dependencies"] if package["name"] != own]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    known = [package for package in packages if "skip_reason" not in package]
    if not known:
        return 0, [
            "NOT AUDITED: no vulnerability data could be reached for any of "
            f"{len(packages)} packages. Run this again where there is a network."
        ]
    lines = [
        f"{package['name']} {package['version']}: {hole['id']}, mended in "
        f"{', '.join(hole['fix_versions']) or 'no version yet'}"
        for package in known
        for hole in package["vulns"]
    ]
    found = len(lines)
    lines.append(f"{len(known)} packages audited, {found} known weaknesses")
    if unknown:
        lines.append(f"not audited, since nothing is known of them: {', '.join(unknown)}")
    return int(found > 0), lines


def main(python: str, tools: Path) -> int:
    """Audit the installation of an interpreter with the tools of a folder."""
    subprocess.run(
        [tools / "cyclonedx-py", "environment", python, "--of", "JSON", "-o", SBOM], check=True
    )
    components = json.loads(SBOM.read_text(encoding="utf-8"))["components"]
    print(f"{SBOM}: {len(components)} packages")
    packages = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    audit = subprocess.run(
        [tools / "pip-audit", "--path", packages, "--format", "json", "--progress-spinner", "off"],
        capture_output=True,
        text=True,
    )
    try:
        report = json.loads(audit.stdout)
    except ValueError:
        last = (audit.stderr.strip().splitlines() or ["it said nothing"])[-1]
        print(f"NOT AUDITED: pip-audit could not ask for vulnerabilities: {last}")
        return 0
    code, lines = verdict(report)
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))

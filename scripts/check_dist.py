"""Check what `make dist` built: one wheel and one sdist of one version, small, with nothing missing or superfluous.

python scripts/check_dist.py dist            # the version is any that CHANGELOG.md has
python scripts/check_dist.py dist v0.1.0     # and it is the tag's
"""

import re
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
MAX_BYTES = 4_000_000  # half of it the weights of a small model
NAME = re.compile(r"covgrpo-(?P<version>\d[^-]*?)(-py3-none-any\.whl|\.tar\.gz)")
# What an installed package reads or runs that is no Python, and one file for each way into it.
IN_WHEEL = {
    "covgrpo/__init__.py", "covgrpo/__main__.py", "covgrpo/py.typed", "covgrpo/cli/demo.yaml",
    "covgrpo/cli/reasoning.yaml", "covgrpo/models/traces-1m/config.json", "covgrpo/models/traces-1m/model.safetensors",
    "covgrpo/report/static/report.css", "covgrpo/report/static/report.js", "covgrpo/report/static/uplot.css",
    "covgrpo/report/static/uplot.js", "covgrpo/report/static/uplot.LICENSE", "covgrpo/verl/__init__.py",
}  # fmt: skip
IN_SDIST = {
    "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "UPGRADING.md",
    "constraints.txt", "docs/methods.md", "pyproject.toml", "recipes/warm.yaml", "scripts/check_dist.py",
    "src/covgrpo/cli/demo.yaml", "studies/main.yaml", "tests/test_core.py",
}  # fmt: skip
PICTURES = (".png", ".svg", ".pdf", ".gif")


def complaints(folder: Path, tag: str | None = None) -> list[str]:
    """What is wrong with the files in the folder; empty where nothing is."""
    files = sorted(folder.iterdir())
    matches = [NAME.fullmatch(file.name) for file in files]
    if [file.suffix for file in files] != [".whl", ".gz"] or None in matches:
        return [f"{folder} holds {[file.name for file in files]}, not one wheel and one sdist"]
    versions = {match["version"] for match in matches if match}
    found = [
        f"{file.name} has {file.stat().st_size:,} bytes, over {MAX_BYTES:,}"
        for file in files
        if file.stat().st_size > MAX_BYTES
    ]
    if len(versions) > 1:
        return [*found, f"versions differ: {', '.join(sorted(versions))}"]
    version = versions.pop()
    found += _about_wheel(files[0], version) + _about_sdist(files[1], version)
    if tag is not None and tag != f"v{version}":
        found.append(f"the tag is {tag} and the version {version}")
    date = r" - \d{4}-\d\d-\d\d$" if tag else ""
    heading = rf"^## \[{re.escape(version)}\]{date}"
    if not re.search(heading, (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE):
        found.append(f"CHANGELOG.md has no heading for {version}{' with its date' if tag else ''}")
    return found


def _about_wheel(wheel: Path, version: str) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    found = [f"{wheel.name} lacks {name}" for name in sorted(IN_WHEEL - names)]
    places = ("covgrpo/", f"covgrpo-{version}.dist-info/")
    return found + [f"{wheel.name} holds {name}" for name in sorted(names) if not name.startswith(places)]


def _about_sdist(sdist: Path, version: str) -> list[str]:
    with tarfile.open(sdist) as archive:
        members = {member.name.removeprefix(f"covgrpo-{version}/"): member for member in archive.getmembers()}
    found = [f"{sdist.name} lacks {name}" for name in sorted(IN_SDIST - members.keys())]
    for name, member in sorted(members.items()):
        if not member.isfile() or "/records/" in name or name.endswith(PICTURES):
            found.append(f"{sdist.name} holds {name}")
    return found


if __name__ == "__main__":
    problems = complaints(Path(sys.argv[1]), *sys.argv[2:3])
    print("\n".join(problems) or "whole, and small")
    raise SystemExit(bool(problems))

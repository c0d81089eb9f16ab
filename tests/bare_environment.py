"""Environments made in a second: a virtual environment into which installed packages are linked, not installed."""

import re
import subprocess
import sys
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path


def closure(*names: str) -> list[Distribution]:
    """The distributions and all that they require here, without their extras."""
    found: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in found:
            continue
        try:
            found[key] = distribution(name)
        except ModuleNotFoundError:  # of another platform
            continue
        requirements = found[key].requires or []
        waiting += [re.split(r"[^A-Za-z0-9._-]", line)[0] for line in requirements if "extra ==" not in line]
    return list(found.values())


def site_packages(environment: Path) -> Path:
    return environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def make_environment(folder: Path, *packages: str) -> Path:
    """A virtual environment that holds these packages with what they require, and nothing else; its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    for found in closure(*packages):
        for file in found.files or []:
            top = file.parts[0]
            if top in ("..", "__pycache__") or (link := site_packages(folder) / top).exists():
                continue
            link.symlink_to(found.locate_file(top))
    return folder / "bin" / "python"


def install(python: Path, archive: Path, *options: str) -> None:
    """Install a wheel or an sdist into an environment without pip, by the pip of this one; fetches nothing."""
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    done = subprocess.run([*pip, *options, str(archive)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


def run(python: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python there, with no import path but the environment's."""
    return subprocess.run(
        [str(python), "-I", *arguments], capture_output=True, text=True, check=False, timeout=300, cwd=cwd
    )

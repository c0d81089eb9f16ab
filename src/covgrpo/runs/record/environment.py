"""What a run ran on: versions, code, machine. No host name, user name or path goes into the record."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("covgrpo", "torch", "transformers", "trl", "accelerate", "datasets", "tokenizers", "safetensors", "numpy")
OPTIONAL_PACKAGES = ("peft", "vllm", "deepspeed", "reasoning-gym", "math-verify")
VARIABLES = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "WORLD_SIZE")
_GIT_LIMIT_S = 20


def describe_environment() -> dict[str, Any]:
    """The environment as a JSON object; ``_bytes`` are bytes, unknown values are null.

    Keys: ``versions`` (package to version; optional packages only where installed), ``git`` (``commit`` and ``dirty``
    of the covgrpo checkout, or null for an installed package), ``platform``, ``cpu`` (``model``, ``logical_cores``,
    ``usable_cores``), ``torch_threads``, ``ram_bytes``, ``gpus`` (``name``, ``memory_bytes``), ``variables``.
    Raises nothing: what cannot be found out is null.
    """
    return {
        "versions": _versions(),
        "git": describe_git(Path(__file__).resolve().parents[4]),
        "platform": {"system": platform.system(), "release": platform.release(), "machine": platform.machine()},
        "cpu": {"model": _cpu_model(), "logical_cores": os.cpu_count(), "usable_cores": _usable_cores()},
        "ram_bytes": _ram_bytes(),
        **_torch_facts(),
        "variables": {name: os.environ.get(name) for name in VARIABLES},
    }


def describe_git(root: Path) -> dict[str, Any] | None:
    """``{"commit", "dirty"}`` of the covgrpo checkout at ``root``; None where that is none.

    ``dirty`` counts untracked files too: a new module changes a run as well as an edited one.
    """
    # A package installed into some other project's folder must not report that project's commit.
    if not (root / "src" / "covgrpo" / "__init__.py").is_file() or not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    status = _git(root, "status", "--porcelain")
    return None if commit is None else {"commit": commit, "dirty": None if status is None else bool(status)}


def _git(root: Path, *arguments: str) -> str | None:
    # GIT_DIR and its kin, set inside a git hook, would point at another repository.
    variables = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_LIMIT_S,
            check=True,
            env=variables,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in (*PACKAGES, *OPTIONAL_PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            if package in PACKAGES:
                found[package] = None
    return found


def _cpu_model() -> str | None:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in {"model name", "Model"}:
                return value.strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or None


def _usable_cores() -> int | None:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        return os.cpu_count()


def _ram_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _torch_facts() -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        return {"torch_threads": None, "gpus": []}
    gpus = []
    if torch.cuda.is_available():
        every = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        gpus = [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in every]
    return {"torch_threads": torch.get_num_threads(), "gpus": gpus}

"""What is said where packages are missing, as they may be after ``pip install --no-deps covgrpo``."""

import re
from collections.abc import Sequence
from importlib.util import find_spec

from covgrpo.errors import UserError

# Module -> what pip calls it, where the two differ.
_DISTRIBUTIONS = {"math_verify": "math-verify", "reasoning_gym": "reasoning-gym", "yaml": "pyyaml"}
# Modules of the packages that covgrpo requires.
_REQUIRED = (
    *("torch", "numpy", "transformers", "trl", "accelerate", "datasets", "safetensors", "gguf", "rich"),
    *_DISTRIBUTIONS,
)
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*([^;]*)")


class MissingPackageError(UserError, ImportError):
    """One sentence: which part needs which packages, and the command that installs them."""


def require(part: str, *modules: str) -> None:
    """Check that a part can import what it needs, before it does anything else.

    Args:
        part: what needs them, the sentence's first words: ``covgrpo.trl``.
        modules: top-level names, as in ``import reasoning_gym``.

    Raises:
        MissingPackageError: some are not installed; names all of those, with the ranges that covgrpo is made for.
    """
    missing = [module for module in modules if not _is_there(module)]
    if missing:
        raise MissingPackageError(_sentence(part, missing))


def explain(error: ModuleNotFoundError, part: str) -> MissingPackageError | None:
    """The sentence for an import that failed; ``None`` where it failed for a module that covgrpo does not ask for."""
    module = (error.name or "").partition(".")[0]
    return MissingPackageError(_sentence(part, [module])) if module in _REQUIRED else None


def requirement(module: str) -> str:
    """What pip is to be told for a module: the name and the range in covgrpo's metadata, ``trl<1.17,>=1.16``."""
    from importlib.metadata import PackageNotFoundError, requires

    name = _DISTRIBUTIONS.get(module, module)
    try:
        lines = requires("covgrpo") or []
    except PackageNotFoundError:  # run from its source
        lines = []
    ranges = {match[1].lower(): match[0].strip() for line in lines if (match := _REQUIREMENT.match(line))}
    return ranges.get(name, name)


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # imported by other means than a finder
        return True


def _sentence(part: str, modules: Sequence[str]) -> str:
    names = [_DISTRIBUTIONS.get(module, module) for module in modules]
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
    pip = " ".join(f"'{requirement(module)}'" for module in modules)
    are = "which are" if names[1:] else "which is"
    return (
        f"{part} needs {listed}, {are} not installed: pip install {pip} "
        "(or pip install covgrpo, which brings everything)."
    )

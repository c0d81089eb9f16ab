"""Models that come with the package: small enough to lie in it, made by a script of the repository."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PackagedModel:
    """One of them. ``parameters`` is a count; its folder has its name and lies beside this file."""

    name: str
    title: str
    parameters: int
    licence: str

    @property
    def folder(self) -> Path:
        """A model folder, as transformers writes it."""
        return Path(__file__).with_name(self.name)


# By `python scripts/small_model.py --style tries`, stored in bfloat16.
PACKAGED_MODELS: dict[str, PackagedModel] = {
    "traces-1m": PackagedModel(
        name="traces-1m", title="countdown, try by try", parameters=1_052_800, licence="Apache-2.0"
    ),
}

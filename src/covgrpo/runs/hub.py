"""A run's model on the Hugging Face hub, by TRL's options: ``--trl push_to_hub=true --trl hub_model_id=org/name``.

The trainer does not push by itself: it would put the model's ``config.json`` over the run's. The repository is made
before the run begins, so that a wrong token costs no training; ``model/`` is uploaded once, when it is finished.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covgrpo.errors import UserError
from covgrpo.runs.options import TrainOptions

# TRL's options that are taken here.
HUB_OPTIONS = ("push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision")
_REFUSED = {
    "hub_token": "it would stand in the run's config.json; set HF_TOKEN, or log in with `hf auth login`",
    "hub_strategy": "the model is uploaded once, when it is finished",
    "hub_always_push": "the model is uploaded once, when it is finished",
}


@dataclass(frozen=True)
class HubRepository:
    """Where a model goes.

    Args:
        name: ``org/name``; without ``org`` the user's own.
        private: ``None``: as the owner has it.
        revision: branch; ``None``: main.

    """

    name: str
    private: bool | None = None
    revision: str | None = None

    @classmethod
    def of(cls, options: TrainOptions) -> "HubRepository | None":
        """The repository that a run's options name; ``None`` where nothing is to be pushed.

        Raises:
            UserError: an option of the hub's that does not act here, or one without ``push_to_hub``.
        """
        given = options.trl
        for name, reason in _REFUSED.items():
            if given.get(name) is not None:
                raise UserError(f"trl: {name} is not taken: {reason}.")
        if not given.get("push_to_hub"):
            for name in HUB_OPTIONS[1:]:
                if given.get(name) is not None:
                    raise UserError(f"trl: {name} is {given[name]!r} and push_to_hub is not set.")
            return None
        name = given.get("hub_model_id") or Path(options.run_folder()).name
        return cls(str(name), given.get("hub_private_repo"), given.get("hub_revision"))

    def create(self) -> "HubRepository":
        """Make the repository if it is not there; returns it with its full name.

        Raises:
            UserError: the hub does not answer or does not allow it.
        """
        from huggingface_hub import HfApi

        with self._errors("cannot make"):
            name = HfApi().create_repo(self.name, private=self.private, exist_ok=True).repo_id
            if self.revision:
                HfApi().create_branch(name, branch=self.revision, exist_ok=True)
        return HubRepository(name, self.private, self.revision)

    def upload(self, folder: Path) -> str:
        """Upload a model's folder; returns its address.

        Raises:
            UserError: it did not work; names the command that tries again.
        """
        from huggingface_hub import HfApi

        again = f"; the run is finished, and `hf upload {self.name} {folder}` tries again"
        with self._errors("cannot upload to", again):
            HfApi().upload_folder(
                repo_id=self.name, folder_path=folder, revision=self.revision, commit_message="Model trained by covgrpo"
            )
        return f"https://huggingface.co/{self.name}"

    @contextmanager
    def _errors(self, what: str, more: str = "") -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the hub's client and the HTTP library below it raise dozens of kinds
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"push_to_hub: {what} the repository {self.name} ({reason}){more}.") from error


def without_hub(given: dict[str, Any]) -> dict[str, Any]:
    """TRL's options without those that are taken here."""
    return {name: value for name, value in given.items() if name not in HUB_OPTIONS}

"""Packages that an option needs and a plain installation lacks: told before anything is written."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from covgrpo.errors import UserError
from covgrpo.files import load_json
from covgrpo.runs.options import TrainOptions
from covgrpo.suggest import check_choice

_DASHBOARDS = ("tensorboard", "trackio", "wandb")  # the extra of that name
_NOT_LISTED = ("flyte", "azure_ml")  # transformers cannot say whether these are installed


def lacking(options: TrainOptions) -> Iterator[str]:
    """A sentence for each option that needs a package which is not installed.

    Raises:
        UserError: ``report_to`` names no logger.
    """
    yield from _loggers(options.report_to)
    if options.trl.get("use_liger_kernel"):
        from transformers.utils import is_liger_kernel_available

        if not is_liger_kernel_available():
            yield "trl: use_liger_kernel needs the package liger-kernel: pip install liger-kernel."


def _loggers(names: list[str]) -> Iterator[str]:
    if not names:
        return
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    installed = {"all", "none", *_NOT_LISTED, *get_available_reporting_integrations()}
    for name in names:
        check_choice("report_to", name, [*INTEGRATION_TO_CALLBACK, "all", "none"])
        if name not in installed:
            package = "'covgrpo[dashboards]'" if name in _DASHBOARDS else name.replace("_", "-")
            yield f"report_to {name!r} needs the package {name}: pip install {package}."


def check_deepspeed(value: Any) -> None:
    """Check DeepSpeed's configuration before transformers reads it.

    Raises:
        UserError: it is a file that is missing or holds no JSON object; or the package is not installed.
    """
    from transformers.integrations.deepspeed import is_deepspeed_available

    _check_json("trl: deepspeed", value)
    if not is_deepspeed_available():
        raise UserError("trl: deepspeed needs the package deepspeed: pip install deepspeed.")


def _check_json(option: str, value: Any) -> None:
    """Check a setting that is a mapping, or the path of a JSON file that holds one.

    Raises:
        UserError: no such file, or no JSON object in it; names the option and the file.
    """
    if isinstance(value, dict):
        return
    try:
        found = load_json(Path(str(value)))
    except OSError as error:
        raise UserError(f"{option}: cannot read {value} ({(error.strerror or str(error)).lower()}).") from error
    except ValueError as error:
        raise UserError(f"{option}: {value} is not valid JSON ({error}).") from error
    if not isinstance(found, dict):
        raise UserError(f"{option}: {value} must hold a JSON object, not {type(found).__name__}.")

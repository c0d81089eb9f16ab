"""How loud the libraries are."""

import warnings


def quiet_libraries() -> None:
    """Leave the screen to the run: progress bars and advice of the libraries off, warnings of ours on."""
    import datasets
    import transformers

    warnings.filterwarnings("ignore", module=r"(torch|transformers|trl|accelerate|datasets|peft)\b.*")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()

"""How loud the libraries are."""

import warnings


def quiet_libraries() -> None:
    """Leave the screen to the run: progress bars and advice of the libraries off, warnings of ours on."""
    # Before the imports: in a notebook without ipywidgets tqdm complains when it is first imported.
    warnings.filterwarnings("ignore", module=r"(torch|transformers|trl|accelerate|datasets|peft|tqdm)\b.*")
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()

"""Command lines of small runs."""

SMALL = ["--steps", "1", "--prompts-per-step", "2", "--num-generations", "4", "--max-completion-length", "4"]


def command(*arguments: str, task: str = "addition", model: str = "../tiny") -> list[str]:
    return ["train", "--task", task, "--model", model, "--output", "out", *SMALL, *arguments]

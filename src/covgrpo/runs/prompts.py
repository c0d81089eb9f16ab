"""Whether a model takes the prompts that a run would give it."""

from collections.abc import Sequence
from typing import Any

from covgrpo.errors import UserError
from covgrpo.tasks import Problem, PromptFormat


def check_prompts(
    model: Any,
    tokenizer: Any,
    prompt_format: PromptFormat,
    problems: Sequence[Problem],
    examples: Sequence[Problem],
    max_completion_length: int,
    where: str = "",
) -> None:
    """Check on the longest question, by characters, that the model takes the prompts; ``where`` begins an error.

    Raises:
        UserError: no chat template, one that refuses the messages, or a prompt too long for the model's context.
    """
    if not problems:
        return
    longest = max(problems, key=lambda problem: len(problem.question))
    tokens = prompt_tokens(tokenizer, prompt_format.messages(longest, examples))
    context = context_of(model)
    if context is not None and tokens + max_completion_length > context:
        raise UserError(
            f"{where}the longest prompt has {tokens} tokens; with max_completion_length {max_completion_length} "
            f"it does not fit the model's context of {context} tokens."
        )


def context_of(model: Any) -> int | None:
    """Tokens that a model takes at most, where its config says so."""
    found: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return found


def prompt_tokens(tokenizer: Any, messages: list[dict[str, str]]) -> int:
    """Tokens of a chat.

    Raises:
        UserError: the model's template does not take it.
    """
    from jinja2 import TemplateError

    from covgrpo.evaluation.evaluate import encode_prompt

    try:
        return len(encode_prompt(tokenizer, messages))
    except (ValueError, TemplateError) as error:
        reason = str(error).split(". ", maxsplit=1)[0].rstrip(".")
        raise UserError(f"the model's chat template does not take the prompt: {reason}.") from error

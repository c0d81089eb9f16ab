"""How cost grows: memory that a bound keeps, work that is linear. Counted, not timed, wherever it can be counted."""

import subprocess
import sys
import textwrap

import pytest
import torch
from tiny import tiny_model
from torch.utils.flop_counter import FlopCounterMode

from covgrpo.forward import SharedPrompts, sharing_prompts
from covgrpo.rollouts import SamplingSettings, sample

pytestmark = pytest.mark.slow

HEAD = textwrap.dedent(
    """
    import resource, sys, torch
    from covgrpo.forward import TiledVocabularyHead
    torch.set_num_threads(1)
    vocabulary, size = 32768, 8
    weight = torch.randn(vocabulary, size, requires_grad=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for tokens in map(int, sys.argv[1:]):
        hidden = torch.randn(tokens, size, requires_grad=True)
        targets = torch.randint(vocabulary, (tokens,))
        logps, entropy = TiledVocabularyHead.apply(
            hidden, weight, None, targets, 1.0, 4, None, 1.0, ("log_probs", "entropy")
        )[:2]
        (logps.sum() + entropy.sum()).backward()
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
    """
)


def head_bytes(*tokens: int) -> list[int]:
    """Peak memory above the start, after a pass over each of these numbers of tokens."""
    command = [sys.executable, "-c", HEAD, *map(str, tokens)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.splitlines()]


def test_memory_of_the_vocabulary_head_does_not_grow_with_the_tokens():
    """Forward and backward; float32 logits of 5,120 tokens would take 640 MiB, those of 2,048 less than half."""
    few, many = head_bytes(2048, 5120)
    assert many < few + 64 * 2**20, (few, many)


def operations(function) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def update_operations(prompts: int, generations: int, length: int, prompt_length: int = 12) -> int:
    """Of a forward and backward pass through the body, on the packed tree."""
    model = tiny_model()
    torch.manual_seed(0)
    ids = torch.randint(3, 80, (prompts, prompt_length)).repeat_interleave(generations, dim=0)
    rows = torch.cat([ids, torch.randint(3, 80, (len(ids), length))], dim=1)
    batch = SharedPrompts.from_rows(rows, torch.ones_like(rows), length)
    with sharing_prompts(model.base_model):
        return operations(lambda: model.base_model(shared_prompt=batch).last_hidden_state.sum().backward())


def test_work_of_an_update_is_linear_in_completions():
    a, b, c = (update_operations(2, generations, 4) for generations in (8, 16, 32))
    assert (c - b) == pytest.approx(2 * (b - a), rel=0.01)


def test_a_completion_more_costs_its_own_tokens_and_not_its_prompt_again():
    cost = [update_operations(1, 33, 4, n) - update_operations(1, 32, 4, n) for n in (8, 64)]
    # Eight times the prompt: more keys to attend to, not one token more to forward.
    assert cost[1] < 1.5 * cost[0]


def test_work_of_sampling_is_linear_in_completions_and_nearly_in_tokens():
    def work(rows: int, tokens: int) -> int:
        settings = SamplingSettings(max_new_tokens=tokens, eos_token_ids=(), pad_token_id=0, temperature=1.0)
        model = tiny_model()
        return operations(lambda: sample(model, [[5, 6, 7, 8]] * rows, settings))

    assert work(32, 8) - work(16, 8) == pytest.approx(2 * (work(16, 8) - work(8, 8)), rel=0.01)
    assert work(8, 32) < 1.2 * 2 * work(8, 16)  # attention alone sees more keys

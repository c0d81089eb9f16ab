"""The sampler draws from the same distribution as `generate`, and the numbers it returns are the loss's."""

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from transformers import GenerationConfig, MistralConfig, MistralForCausalLM
from transformers.models.llama import modeling_llama

from covgrpo.forward import attention_interface
from covgrpo.rollouts import SamplingSettings, decoding, sample
from covgrpo.rollouts.drawing import _inverse_cdf, _scan

EOS, PAD = 2, 0
PROMPTS = [[10, 11, 12], [10, 11, 12], [20, 21], [30, 31, 32, 33, 34], [20, 21]]


def settings(**changes) -> SamplingSettings:
    return SamplingSettings(**{"max_new_tokens": 12, "eos_token_ids": (EOS,), "pad_token_id": PAD, **changes})


def generated(model, prompts, **options) -> list[list[int]]:
    """Completions of transformers' `generate`, cut after the first end token."""
    length = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (length - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])
    config = GenerationConfig(max_new_tokens=12, pad_token_id=PAD, eos_token_id=EOS, **options)
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, length:].tolist()
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in out]


def uniform(draws: int) -> torch.Tensor:
    return torch.rand(draws, 1, dtype=torch.float64)


def likely_to_end(seed: int = 0):
    """The tiny model with its end token made likely, so that rows end at different steps."""
    model = tiny_model(seed)
    with torch.no_grad():
        model.get_input_embeddings().weight[EOS] *= 3
    return model


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_greedy_is_generates_greedy(seed, penalty):
    model = likely_to_end(seed)
    drawn = sample(model, PROMPTS, settings(temperature=0.0, repetition_penalty=penalty))
    assert drawn.token_ids == generated(model, PROMPTS, do_sample=False, repetition_penalty=penalty)
    assert len({len(row) for row in drawn.token_ids}) > 1 or seed != 0


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_logps_and_entropies_are_those_of_the_scored_distribution(temperature):
    model = likely_to_end()
    torch.manual_seed(0)
    drawn = sample(model, PROMPTS, settings(temperature=temperature, top_k=5))
    for prompt, ids, logps, entropies in zip(PROMPTS, drawn.token_ids, drawn.logps, drawn.entropies, strict=True):
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].double() / temperature
        scored = logits.log_softmax(dim=-1)
        expected = scored.gather(1, torch.tensor(ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(logps).double(), expected, rtol=1e-4, atol=1e-5)
        entropy = -(scored.exp() * scored).sum(dim=-1)
        torch.testing.assert_close(torch.tensor(entropies).double(), entropy, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.6}, {"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.1}, {"repetition_penalty": 1.3, "top_p": 0.9}],
    ids=str,
)
def test_the_first_tokens_follow_generates_distribution(options):
    """Chi-square test of 4,000 draws of the first token against the probabilities that `generate` samples from."""
    model, prompt, draws = tiny_model(), [10, 11, 12], 4000
    torch.manual_seed(1)
    drawn = sample(model, [prompt] * draws, settings(max_new_tokens=1, **options))
    counts = torch.bincount(torch.tensor([row[0] for row in drawn.token_ids]), minlength=model.config.vocab_size)
    config = GenerationConfig(
        max_new_tokens=1, do_sample=True, output_scores=True, return_dict_in_generate=True,
        pad_token_id=PAD, **{"top_k": 0, "top_p": 1.0, **options},
    )  # fmt: skip
    scores = model.generate(input_ids=torch.tensor([prompt]), generation_config=config).scores[0][0]
    expected = scores.double().softmax(dim=0) * draws
    assert counts[expected == 0].sum() == 0, "a token that `generate` excludes was drawn"
    rare = expected < 5
    bins = torch.cat([counts[~rare], counts[rare].sum()[None]]).double()
    means = torch.cat([expected[~rare], expected[rare].sum()[None]])
    keep = means > 0
    chi2 = ((bins - means)[keep] ** 2 / means[keep]).sum()
    freedom = int(keep.sum()) - 1
    # mean + 5 standard deviations of chi-square: a false alarm in 10^6
    assert chi2 < freedom + 5 * (2 * freedom) ** 0.5 + 5


def test_rare_tokens_keep_their_share():
    """Inverse-CDF sampling over a large vocabulary must not lose the tail to rounding."""
    p = torch.full((1, 50_000), 1e-6)
    p[0, 0] = 1 - 0.05
    torch.manual_seed(0)
    tokens = torch.cat([_inverse_cdf(p.expand(500, -1), uniform(500)) for _ in range(8)])
    share = (tokens > 0).float().mean().item()
    assert abs(share - 0.05) < 5 * (0.05 * 0.95 / 4000) ** 0.5
    assert _inverse_cdf(torch.tensor([[0.0, 1.0, 0.0]]).expand(1000, -1), uniform(1000)).unique().tolist() == [1]


def test_same_seed_same_draws_and_generator_leaves_the_global_state_alone():
    model = likely_to_end()
    state = torch.get_rng_state()
    first, second = (sample(model, PROMPTS, settings(), torch.Generator().manual_seed(5)) for _ in range(2))
    other = sample(model, PROMPTS, settings(), torch.Generator().manual_seed(6))
    assert first.token_ids == second.token_ids != other.token_ids
    assert torch.equal(torch.get_rng_state(), state)


def test_equal_prompts_are_prefilled_once():
    model, seen = likely_to_end(), []
    forward = model.forward
    model.forward = lambda *args, **kw: (seen.append(tuple(kw["input_ids"].shape)), forward(*args, **kw))[1]
    sample(model, PROMPTS, settings(max_new_tokens=3))
    assert seen[0] == (3, 5), "three distinct prompts, padded to five tokens"
    assert all(rows <= 5 and tokens == 1 for rows, tokens in seen[1:])


PREFIX = list(range(40, 52))
WITH_PREFIX = [PREFIX + prompt for prompt in PROMPTS] + [PREFIX]


def test_what_all_prompts_begin_with_is_forwarded_once():
    model, seen = likely_to_end(), []
    forward = model.forward
    model.forward = lambda *args, **kw: (seen.append(tuple(kw["input_ids"].shape)), forward(*args, **kw))[1]
    sample(model, WITH_PREFIX, settings(max_new_tokens=3))
    # One prompt is the prefix itself; it keeps its last token.
    assert seen[:2] == [(1, len(PREFIX) - 1), (4, 6)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("penalty", [1.0, 1.5])
@pytest.mark.parametrize("prompts", [WITH_PREFIX, WITH_PREFIX[:2], WITH_PREFIX[2:4]], ids=["ragged", "one", "two"])
def test_greedy_after_a_common_prefix_is_generates_greedy(seed, penalty, prompts):
    model = likely_to_end(seed)
    drawn = sample(model, prompts, settings(temperature=0.0, repetition_penalty=penalty))
    assert drawn.token_ids == generated(model, prompts, do_sample=False, repetition_penalty=penalty)


def test_a_sliding_window_takes_no_common_prefix():
    """Padding after the prefix would use up the window."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=6, pad_token_id=PAD, eos_token_id=EOS, bos_token_id=None,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    drawn = sample(model, WITH_PREFIX, settings(temperature=0.0))
    assert drawn.token_ids == generated(model, WITH_PREFIX, do_sample=False)


@pytest.mark.parametrize("vocabulary", [1, 7, 256, 257, 1000])
def test_inverse_cdf_draws_each_entry_as_often_as_its_probability(vocabulary):
    """Chi-square over blocks of the vocabulary, a remainder, and entries of probability 0, which are never drawn."""
    draws = 200_000
    torch.manual_seed(vocabulary)
    p = torch.rand(vocabulary).square()
    p[::3] = 0 if vocabulary > 1 else 1
    p /= p.sum()
    tokens = _inverse_cdf(p.expand(draws, -1), uniform(draws))
    counts, expected = torch.bincount(tokens, minlength=vocabulary).double(), p.double() * draws
    assert len(counts) == vocabulary
    assert counts[expected == 0].sum() == 0
    common = expected > 5
    statistic, freedom = ((counts - expected).square() / expected)[common].sum().item(), int(common.sum()) - 1
    assert statistic <= freedom + 5 * (2 * freedom) ** 0.5 + 5


def test_finished_rows_leave_the_batch():
    model, seen = likely_to_end(), []
    forward = model.forward
    model.forward = lambda *args, **kw: (seen.append(kw["input_ids"].shape[0]), forward(*args, **kw))[1]
    torch.manual_seed(0)
    drawn = sample(model, PROMPTS * 8, settings())
    lengths = [len(row) for row in drawn.token_ids]
    running = [sum(length > t for length in lengths) for t in range(1, max(lengths))]
    assert len(running) == len(seen) - 1
    assert running[-1] < len(lengths) / 2, "too few rows end early for this test"
    # A row that has ended may stay for a while: dropping it copies the caches of the others.
    assert all(needed <= forwarded < needed * 8 / 7 + 1 for needed, forwarded in zip(running, seen[1:], strict=True))
    assert all(row[-1] == EOS or len(row) == 12 for row in drawn.token_ids)
    assert all(EOS not in row[:-1] for row in drawn.token_ids)


@pytest.fixture
def without_groups(monkeypatch):
    """Prompts' caches are copied for every row, as on accelerators."""
    monkeypatch.setattr(decoding, "takes_our_attention", lambda model: False)


@pytest.mark.parametrize("seed", range(2))
def test_greedy_with_copied_prompts_is_generates_greedy(seed, without_groups):
    model = likely_to_end(seed)
    assert sample(model, PROMPTS, settings(temperature=0.0)).token_ids == generated(model, PROMPTS, do_sample=False)


def test_prompts_are_not_copied_on_a_cpu(monkeypatch):
    copies = []
    monkeypatch.setattr(decoding, "_CopiedRows", lambda *args: copies.append(args))
    sample(likely_to_end(), PROMPTS, settings())
    assert not copies


@pytest.mark.parametrize("how", ["another argument", "not through the interface"])
def test_a_model_that_attends_in_another_way_is_sampled_by_copies(how, monkeypatch):
    model = likely_to_end()
    expected = generated(model, PROMPTS, do_sample=False)
    stock = modeling_llama.LlamaAttention.forward

    def forward(self, *args, **kwargs):
        if how == "another argument":
            return stock(self, *args, s_aux=torch.ones(()), **kwargs)
        implementation = self.config._attn_implementation
        self.config._attn_implementation = "sdpa"
        try:
            return stock(self, *args, **kwargs)
        finally:
            self.config._attn_implementation = implementation

    monkeypatch.setattr(attention_interface, "_refusing", set())
    with monkeypatch.context() as patch:
        patch.setattr(modeling_llama.LlamaAttention, "forward", forward)
        if how == "another argument":  # eager attention takes no notice of it
            model.config._attn_implementation = "eager"
        drawn = sample(model, PROMPTS, settings(temperature=0.0))
    assert drawn.token_ids == expected
    assert attention_interface._refusing == {type(model.config)}


def test_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="empty"):
        sample(tiny_model(), [[]], settings())


def test_tokenizer_round_trip():
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(tokenizer("a+b=7")["input_ids"]) in ("a+b=7", "a + b = 7")


def test_cumulative_sums_by_additions():
    """In place of torch's where deterministic algorithms are asked for on CUDA; exact sums, so equal to the bit."""
    for m in (1, 2, 3, 255, 256, 600):
        x = torch.randint(0, 1000, (4, m), generator=torch.Generator().manual_seed(m)).double()
        assert torch.equal(_scan(x), x.cumsum(dim=1))


def test_numbers_of_its_own_make_a_row_independent_of_its_batch():
    model = tiny_model()
    settings = SamplingSettings(max_new_tokens=6, eos_token_ids=(2,), pad_token_id=0)
    prompts = [[5, 6, 7], [8, 9], [5, 6, 9, 10], [11]]
    noise = torch.rand(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = sample(model, prompts, settings, noise_BT=noise)
    for row in range(4):
        alone = sample(model, prompts[row : row + 1], settings, noise_BT=noise[row : row + 1])
        assert alone.token_ids[0] == whole.token_ids[row]
        assert alone.logps[0] == pytest.approx(whole.logps[row], abs=1e-4)

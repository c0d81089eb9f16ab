"""The token noise against plain loops."""

import math

import pytest
import reference
import torch
from core_cases import (
    F64,
)

from covgrpo.core.noise import token_noise

# --- token noise ------------------------------------------------------------------------------------------

# The first outputs of SplitMix64 seeded with 0, as published with it.
SPLITMIX64 = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]


# (seed, row): the first three numbers
GOLDEN_TOKEN_NOISE = {
    (0, 0): [0.33805245419550545, 0.2691302712263999, 0.2715666096967839],
    (0, 1): [0.13870941014555427, 0.9711020828012883, 0.2778328726049074],
    (1, 1): [0.5026230818294767, 0.5805554841444246, 0.12765422614041944],
    (42, 2): [0.052582344588916974, 0.16027646924056627, 0.515101633340319],
    (42, 30064771075): [0.9067653089078341, 0.5154437838524621, 0.8011923870933217],
    (-5, 11): [0.3516891333355585, 0.28723456157669935, 0.26195372617017343],
    (9223372036854775809, 4611686018427387904): [0.8720345464079728, 0.7542460326564543, 0.7171954540008839],
    (9, -4): [0.297529783539326, 0.11069370804302703, 0.3055760095950961],
}


def noise_of(seed, rows, length):
    return token_noise(seed, torch.tensor(rows), length)


def test_reference_noise_mixes_as_splitmix64_does():
    assert [reference.splitmix(reference.GAMMA * t) for t in (1, 2, 3, 4)] == SPLITMIX64


@pytest.mark.parametrize(("seed", "row"), GOLDEN_TOKEN_NOISE)
def test_golden_token_noise(seed, row):
    numbers = GOLDEN_TOKEN_NOISE[seed, row]
    assert reference.token_noise(seed, [row], 3) == [numbers]
    assert noise_of(seed, [row], 3).tolist() == [numbers]  # to the last bit


@pytest.mark.parametrize("seed", [0, 1, 42, -1, -12345, 2**31, 2**63, 2**64 - 1, 2**70 + 3])
@pytest.mark.parametrize("rows", [[0, 1, 2], [5], [-1, -(2**40)], [3 * 2**32 + 7, 2**62], []])
def test_token_noise_equals_reference(seed, rows):
    rows = torch.tensor(rows, dtype=torch.int64)
    for length in (0, 1, 9):
        expected_noise = torch.tensor(reference.token_noise(seed, rows.tolist(), length), dtype=F64)
        assert torch.equal(token_noise(seed, rows, length), expected_noise.reshape(len(rows), length))


def test_token_noise_is_deterministic_and_independent_of_its_surroundings():
    whole = noise_of(7, range(50), 40)
    assert whole.dtype == F64 and whole.min() >= 0 and whole.max() < 1
    assert torch.equal(whole, noise_of(7, range(50), 40))
    assert torch.equal(whole[:, :13], noise_of(7, range(50), 13))  # the length
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(whole[order], token_noise(7, order, 40))  # the order of the rows
    assert torch.equal(whole[[3]], noise_of(7, [3], 40))  # the other rows
    assert torch.equal(whole, token_noise(7, torch.arange(50, dtype=torch.int32), 40))


def test_token_noise_leaves_torchs_generator_alone():
    state = torch.get_rng_state()
    noise_of(3, range(4), 5)
    assert torch.equal(torch.get_rng_state(), state)


def test_token_noise_differs_between_rows_and_positions():
    assert len(noise_of(0, range(300), 300).unique()) == 300 * 300
    steps = [row + step * 2**32 for step in range(30) for row in range(30)]  # as the trainer names its rows
    assert len(noise_of(42, steps, 30).unique()) == 30**3


def test_token_noise_of_a_row_differs_between_seeds():
    for row in (0, 1, 5, 2**32 + 5):
        assert len(torch.cat([noise_of(seed, [row], 50) for seed in range(100)]).unique()) == 100 * 50


def test_token_noise_differs_between_all_seeds_and_rows():
    numbers = torch.cat([noise_of(seed, range(20), 20) for seed in range(20)])
    assert len(numbers.unique()) == 20**3


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].abs().item()


def test_token_noise_is_uniform():
    numbers = noise_of(2024, range(500), 200).flatten()
    n = len(numbers)
    assert n == 100_000
    # 4 standard errors: the variance of a uniform number is 1/12, that of its squared deviation 1/180
    assert abs(numbers.mean().item() - 1 / 2) < 4 * math.sqrt(1 / 12 / n)
    assert abs(numbers.var().item() - 1 / 12) < 4 * math.sqrt(1 / 180 / n)
    # Kolmogorov-Smirnov: sqrt(n) max|F_n - F| exceeds 1.63 in 1 % of cases
    ordered, ranks = numbers.sort().values, torch.arange(n + 1, dtype=F64) / n
    distance = torch.maximum((ranks[1:] - ordered).max(), (ordered - ranks[:-1]).max()).item()
    assert math.sqrt(n) * distance < 1.63


@pytest.mark.parametrize("lag", [1, 2, 3])
def test_neighbouring_token_noise_is_uncorrelated(lag):
    numbers = noise_of(2024, range(500), 200)
    limit = 4 / math.sqrt(100_000)
    assert correlation(numbers[:, lag:], numbers[:, :-lag]) < limit  # positions
    assert correlation(numbers[lag:], numbers[:-lag]) < limit  # rows
    assert correlation(noise_of(2024 + lag, range(500), 200), numbers) < limit  # seeds
    assert correlation(noise_of(2024, range(lag << 32, (lag << 32) + 500), 200), numbers) < limit  # rollout batches

"""Completions by vLLM, with a stand-in that draws as it does: a generator for each request, seeded by its seed."""

import pytest
from vllm_stand_in import RIGHT, put_in_place

from covgrpo.evaluation.at_k import Scored, at_k
from covgrpo.evaluation.generation import GenerationSettings, VllmEngine, draw_all


@pytest.fixture(autouse=True)
def _vllm(monkeypatch):
    put_in_place(monkeypatch)


def prompts(count):
    return {f"p{i}": [{"role": "user", "content": f"q{i}"}] for i in range(count)}


def draw(count, records=None, stop_after=10**9, **settings):
    """Texts of each problem, and the engine's batches before ``stop_after``."""
    settings = GenerationSettings(**settings)

    class Stopping(VllmEngine):
        batches = 0

        def draw(self, *args):
            if Stopping.batches == stop_after:
                raise KeyboardInterrupt
            Stopping.batches += 1
            return super().draw(*args)

    found = draw_all(lambda: Stopping("org/name", settings), prompts(count), settings, records, {"engine": "vllm"})
    return {key: [one.completion for one in ones] for key, ones in found.items()}


@pytest.mark.parametrize("batch_size", [3, 8, 64])
def test_the_samples_of_a_problem_are_drawn_independently(batch_size):
    texts = draw(5, samples=8, batch_size=batch_size)
    assert all(len(set(ones)) == 8 for ones in texts.values())
    everything = [text.split()[1] for ones in texts.values() for text in ones]
    assert len(set(everything)) == 40, "no two requests share their random numbers"


def test_pass_at_k_of_a_policy_with_a_known_chance_of_being_right():
    """With p = 0.3 and 8 samples: pass@1 = p, pass@8 = 1 - 0.7^8 = 0.942."""
    texts = draw(200, samples=8)
    scored = [
        Scored(key, [float(text.endswith("{1}")) for text in ones], [text[-3:] for text in ones])
        for key, ones in texts.items()
    ]
    found = at_k(scored, seed=0)
    for k in (1, 2, 4, 8):
        expected = 1 - (1 - RIGHT) ** k
        assert found[f"pass@{k}"]["low"] < expected < found[f"pass@{k}"]["high"]


def test_going_on_gives_what_going_through_gives(tmp_path):
    settings = {"samples": 3, "batch_size": 4, "seed": 5}
    whole = draw(5, **settings)
    with pytest.raises(KeyboardInterrupt):
        draw(5, tmp_path / "r.jsonl", stop_after=2, **settings)
    assert draw(5, tmp_path / "r.jsonl", **settings) == whole
    assert draw(5, samples=3, batch_size=4, seed=6) != whole

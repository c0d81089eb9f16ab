"""The entropy probe scores a batch with all that the update scored it with."""

from types import SimpleNamespace

import torch

from covgrpo.trl.entropy_probe import EntropyProbe


def test_the_probe_scores_images_with_their_text():
    """With a stand-in for TRL's scoring, whose entropy depends on the picture."""
    handed = []

    def score(model, ids, mask, kept, compute_entropy, pixel_values=None, image_grid_thw=None, num_images=None):
        handed.append((pixel_values, image_grid_thw, num_images))
        entropies = torch.ones(len(ids), kept) * (0.0 if pixel_values is None else pixel_values.mean())
        return torch.zeros(len(ids), kept), entropies, None

    accelerator = SimpleNamespace(num_processes=1, unwrap_model=lambda model: model)
    ids = torch.ones(2, 3, dtype=torch.long)
    inputs = dict.fromkeys(("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"), ids)
    pictures = {"pixel_values": torch.full((2, 4), 0.5), "image_grid_thw": torch.ones(2, 3), "num_images": [1, 1]}
    probe = EntropyProbe(accelerator, None, score)
    probe.keep({**inputs, **pictures, "advantages": torch.zeros(2)})
    assert probe._entropies().tolist() == [0.5] * 6
    assert handed == [tuple(pictures.values())]

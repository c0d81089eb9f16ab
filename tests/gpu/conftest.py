"""The device of these tests: the accelerator, or the CPU where COVGRPO_GPU_TESTS=cpu asks for it."""

import os

import pytest
import torch

from covgrpo.forward import shareable


@pytest.fixture
def device() -> torch.device:
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is not None:
        return found
    if os.environ.get("COVGRPO_GPU_TESTS") == "cpu":
        return torch.device("cpu")
    pytest.skip("needs a GPU; COVGRPO_GPU_TESTS=cpu runs the same tests on the CPU")


@pytest.fixture
def on_gpu(device: torch.device) -> dict:
    """Trainer arguments that put the trainer there."""
    return {"use_cpu": device.type == "cpu"}


@pytest.fixture(autouse=True)
def sharing_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share prompts in models so small that it does not pay."""
    monkeypatch.setattr(shareable, "_LEAST_SAVED_A_LAYER_ELSEWHERE", 0.0)

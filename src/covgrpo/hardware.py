"""What the machine can do."""

import resource
import sys
from contextlib import nullcontext
from typing import Any

import torch


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware; elsewhere autocast would only slow it down."""
    read = getattr(torch.cpu, "get_capabilities", None)  # torch 2.13 has it; older ones count as without
    capabilities = read() if read is not None else {}
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def has_bf16(device: torch.device) -> bool:
    """Whether ``device`` has bfloat16 arithmetic."""
    if device.type == "cpu":
        return cpu_has_bf16()
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def widest_float(device: torch.device) -> torch.dtype:
    """Float64, or float32 on devices without it."""
    return torch.float32 if device.type == "mps" else torch.float64


def best_device() -> torch.device:
    """Return the accelerator, or the CPU where there is none."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def wait_for_device() -> None:
    """Wait until the accelerator has done all that it was handed; without one there is nothing to wait for."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def peak_memory_bytes() -> int:
    """Largest memory of this process so far: tensors on the GPU where there is one (CUDA), else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def autocast(device: torch.device, bf16: bool | None = None) -> Any:
    """Return a context of bfloat16 autocast; ``bf16`` None: where the device has it."""
    use = has_bf16(device) if bf16 is None else bf16
    return torch.autocast(device.type, dtype=torch.bfloat16) if use else nullcontext()


def float32_is_exact(device: torch.device) -> bool:
    """Whether products of float32 matrices have float32's digits; TF32 (10 bits) or bfloat16 may stand in for it."""
    backend = {"cuda": torch.backends.cuda, "cpu": torch.backends.mkldnn}.get(device.type)
    precision = getattr(getattr(backend, "matmul", None), "fp32_precision", None)
    if precision is None:  # before torch 2.9, and other devices
        return torch.get_float32_matmul_precision() == "highest"
    return precision in ("none", "ieee")

"""verl on CPUs, for tests: a platform "cpu" on gloo, the FSDP engines, and the rollout ``hfcpu``.

Loaded by ``VERL_USE_EXTERNAL_MODULES=verl_cpu_platform`` with ``VERL_PLATFORM=cpu``. Written for verl 0.9.1.
"""

import contextlib
import os
import types

import torch
import torch.distributed as dist
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry


def cpu_device_module() -> types.ModuleType:
    """What verl asks of ``torch.cuda``: no memory is held, nothing has to be waited for."""
    module = types.ModuleType("verl_cpu_device")
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"):
        setattr(module, name, lambda *_, **__: 0)
    for name in ("empty_cache", "synchronize", "set_device", "reset_peak_memory_stats", "ipc_collect", "manual_seed",
                 "manual_seed_all", "set_rng_state", "set_rng_state_all"):  # fmt: skip
        setattr(module, name, lambda *_, **__: None)
    module.mem_get_info = lambda *_, **__: (8 << 30, 16 << 30)
    module.is_available = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: torch.device("cpu")
    module.get_rng_state = torch.get_rng_state
    module.get_device_name = lambda *_: "cpu"
    module.is_bf16_supported = lambda *_, **__: True
    module.Event = getattr(torch.cpu, "Event", object)
    module.Stream = torch.cpu.Stream
    module.current_stream = torch.cpu.current_stream
    module.stream = torch.cpu.stream
    return module


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """A machine whose Ray "GPUs" are CPU processes."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = cpu_device_module()

    def is_available(self):
        return True

    def is_platform_available(self, use_smi_check=False):
        return True

    def current_device(self):
        return torch.device("cpu")

    def device_count(self):
        return 1

    def set_device(self, device_index):
        pass

    def synchronize(self, device_index=None):
        pass

    def manual_seed(self, seed):
        torch.manual_seed(seed)

    def manual_seed_all(self, seed):
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings):
        pass

    def empty_cache(self):
        pass

    def get_device_capability(self, device_index=0):
        return None, None

    def communication_backend_name(self):
        return "gloo"

    def visible_devices_envvar(self):
        return "CUDA_VISIBLE_DEVICES"

    @contextlib.contextmanager
    def nvtx_range(self, msg):
        yield

    def profiler_start(self):
        pass

    def profiler_stop(self):
        pass

    def ray_resource_name(self):
        return "GPU"

    def ray_noset_envvars(self):
        return []

    def is_ipc_supported(self):
        return False

    def cudart(self):
        return None


def accept_one_backend_twice() -> None:
    """verl asks for "cpu:gloo,<device>:<backend>", which names the CPU twice here; torch refuses that."""
    init_process_group = dist.init_process_group

    def init(backend=None, *args, **kwargs):
        return init_process_group("cpu:gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **kwargs)

    dist.init_process_group = dist.distributed_c10d.init_process_group = init


def register_rollout() -> None:
    from verl.workers.rollout.base import _ROLLOUT_REGISTRY
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    def replica_class():
        from verl_cpu_rollout import HFReplica

        return HFReplica

    _ROLLOUT_REGISTRY["hfcpu", "async"] = "verl_cpu_rollout.HFAdapter"
    RolloutReplicaRegistry.register("hfcpu", replica_class)


os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")  # the engine classes are registered for cuda; they run here too
accept_one_backend_twice()
register_rollout()

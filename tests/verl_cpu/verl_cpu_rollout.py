"""The rollout ``hfcpu``: a Ray actor that samples with plain Hugging Face forward passes. For tests only.

The k-th completion of a prompt in a step is drawn with a seed of (step, prompt, k), so runs with another number of
workers or servers sample the same completions.
"""

import hashlib
import json
import os
from pathlib import Path

import ray
import torch
from safetensors.torch import save_file
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput

MAX_NEW_TOKENS = 16


class Counter:
    """How many completions of a prompt were begun, over all servers."""

    def __init__(self):
        self.counts = {}

    def next(self, key):
        self.counts[key] = self.counts.get(key, -1) + 1
        return self.counts[key]


class HFServer:
    """Holds a copy of the policy and samples from it, a request at a time."""

    def __init__(self, path, rank):
        torch.set_num_threads(1)
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        eos = self.model.generation_config.eos_token_id
        self.eos = set(eos if isinstance(eos, list) else [eos])
        self.rank, self.step = rank, 0
        self.counter = ray.remote(Counter).options(name="hfcpu_counter", get_if_exists=True, num_cpus=0).remote()

    async def load(self, weights, step):
        weights = dict(weights)
        self.model.load_state_dict(weights, strict=False)
        self.step = step
        folder = os.environ.get("VERL_TEST_DUMP")
        if folder and self.rank == 0:
            save_file(weights, Path(folder, f"weights-{step}.safetensors"))

    async def generate(self, request_id, prompt_ids, sampling_params, image_data=None, video_data=None, **_):
        prompt = list(prompt_ids)
        temperature = sampling_params.get("temperature", 1.0)
        limit = int(sampling_params.get("max_tokens") or sampling_params.get("max_new_tokens") or MAX_NEW_TOKENS)
        name = f"{self.step} {prompt}"
        name = f"{name} {await self.counter.next.remote(name)}"
        seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big")
        generator = torch.Generator().manual_seed(seed)
        tokens, log_probs, cache, fed = [], [], None, prompt
        for _ in range(min(limit, MAX_NEW_TOKENS)):
            with torch.no_grad():
                output = self.model(input_ids=torch.tensor([fed]), past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            log_p = (output.logits[0, -1].float() / (temperature or 1.0)).log_softmax(-1)
            if temperature == 0:
                token = int(log_p.argmax())
            else:
                token = int(torch.multinomial(log_p.exp(), 1, generator=generator))
            tokens.append(token)
            log_probs.append(float(log_p[token]))
            fed = [token]
            if token in self.eos:
                break
        self.record({"step": self.step, "prompt": prompt, "tokens": tokens, "log_probs": log_probs})
        return TokenOutput(
            token_ids=tokens,
            log_probs=log_probs,
            stop_reason="completed",
            num_preempted=0,
            extra_fields={"global_steps": self.step},
        )

    def record(self, sample):
        if folder := os.environ.get("VERL_TEST_DUMP"):
            with Path(folder, f"samples-{self.rank}.jsonl").open("a") as file:
                print(json.dumps(sample), file=file)

    async def nothing(self, *_, **__):
        return None

    wake_up = sleep = abort_all_requests = resume_generation = clear_kv_cache = nothing
    release_kv_cache = resume_kv_cache = start_profile = stop_profile = nothing


class HFReplica(RolloutReplica):
    """One server a rank."""

    async def launch_servers(self):
        options = {"name": f"hfcpu_server_{self.replica_rank}", "num_cpus": 0, "max_concurrency": 64}
        server = ray.remote(HFServer).options(**options).remote(self.model_config.path, self.replica_rank)
        self.servers, self._server_handle = [server], server
        self._server_address = f"hfcpu-{self.replica_rank}"


class HFAdapter(BaseRollout):
    """The worker's side: hands its weights to the server of its rank."""

    def __init__(self, config, model_config, device_mesh, *args, **kwargs):
        super().__init__(config, model_config, device_mesh)
        self.sleep_level = 2
        self.rank, self.server = int(os.environ["RANK"]), None

    async def resume(self, tags):
        pass

    async def release(self):
        pass

    async def update_weights(self, weights, wire_format="named_tensors", global_steps=None, **_):
        named = [(name, tensor.detach().cpu().float().clone()) for name, tensor in weights]  # all ranks gather
        if self.server is None:
            self.server = ray.get_actor(f"hfcpu_server_{self.rank}")
        await self.server.load.remote(named, global_steps)

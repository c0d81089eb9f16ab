"""Runs of ``python -m verl.trainer.main_ppo`` on CPUs, in verl's own environment, and what they leave behind."""

import json
import os
import signal
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import tiny_model, tiny_tokenizer

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SOURCES = ROOT / "src"
PROMPTS, GENERATIONS, STEPS = 4, 4, 3
TIMEOUT_S = 900


def verl_python() -> str | None:
    """Python of the environment with verl, from ``COVGRPO_VERL_PYTHON``."""
    return os.environ.get("COVGRPO_VERL_PYTHON")


def prepare(folder: Path) -> None:
    """Write a tiny model and two small parquet files whose gold answers are characters that the model often says."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = []
    for i in range(PROMPTS * STEPS):
        prompt = [{"role": "user", "content": f"Say {i}"}]
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        torch.manual_seed(i)
        drawn = model.generate(**ids, do_sample=True, max_new_tokens=8, num_return_sequences=4)
        said = Counter(tokenizer.convert_ids_to_tokens(drawn[:, ids["input_ids"].shape[1] :].flatten().tolist()))
        gold = next(token for token, _ in said.most_common() if len(token) == 1 and token.strip())
        answer = {"style": "rule", "ground_truth": gold}
        rows.append({"data_source": "test", "prompt": prompt, "reward_model": answer, "extra_info": {"index": i}})
    from datasets import Dataset

    for name in ("train", "val"):
        Dataset.from_list(rows).to_parquet(folder / f"{name}.parquet")


def command(folder: Path, workers: int, micro_batch: int) -> list[str]:
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    return [
        str(verl_python()), "-m", "verl.trainer.main_ppo",
        "algorithm.adv_estimator=grpo",
        f"data.train_files={folder}/train.parquet", f"data.val_files={folder}/val.parquet",
        f"data.train_batch_size={PROMPTS}", "data.max_prompt_length=64", "data.max_response_length=16",
        "data.dataloader_num_workers=0", "data.shuffle=False",
        f"actor_rollout_ref.model.path={folder}/model",
        "actor_rollout_ref.model.use_remove_padding=False",
        "actor_rollout_ref.model.enable_gradient_checkpointing=False",
        "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
        f"{actor}.strategy=fsdp2", f"{actor}.ppo_mini_batch_size={PROMPTS}",
        f"{actor}.ppo_micro_batch_size_per_gpu={micro_batch}", f"{actor}.use_kl_loss=False",
        f"{actor}.policy_loss.loss_mode=dump_vanilla", f"{actor}.use_torch_compile=False",
        f"{actor}.fsdp_config.use_torch_compile=False", f"{actor}.optim.lr=1e-3",
        *(f"+{actor}.fsdp_config.mixed_precision.{kind}_dtype=fp32" for kind in ("param", "reduce", "buffer")),
        f"{rollout}.name=hfcpu", f"{rollout}.n={GENERATIONS}", f"{rollout}.tensor_model_parallel_size=1",
        f"{rollout}.log_prob_micro_batch_size_per_gpu=4", f"{rollout}.agent.num_workers=1",
        "reward.num_workers=1", f"reward.custom_reward_function.path={HERE}/verl_reward.py",
        "reward.custom_reward_function.name=compute_score",
        f"trainer.n_gpus_per_node={workers}", "trainer.nnodes=1", 'trainer.logger=["console","file"]',
        f"trainer.total_training_steps={STEPS}", "trainer.val_before_train=False", "trainer.test_freq=-1",
        "trainer.save_freq=-1", "trainer.project_name=covgrpo", "trainer.experiment_name=test",
        f"trainer.default_local_dir={folder}/checkpoints",
        "ray_kwargs.ray_init.num_cpus=8", f"+ray_kwargs.ray_init.num_gpus={workers}",
        "+ray_kwargs.ray_init.include_dashboard=False", "+ray_kwargs.ray_init.object_store_memory=1500000000",
        f"trainer.v1.sampler.custom_sampler.path={HERE}/verl_sorted.py",
        "trainer.v1.sampler.custom_sampler.name=SortedReplayBuffer",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
    ]  # fmt: skip


# In place of `python -m verl.trainer.main_ppo`: read the config as it does and stop before Ray.
COMPOSE = """
import sys
from hydra import compose, initialize_config_module
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import validate_config
from covgrpo.verl import choose
assert sys.argv[1:3] == ["-m", "verl.trainer.main_ppo"]
with initialize_config_module("verl.trainer.config", version_base=None):
    config = compose("ppo_trainer", sys.argv[3:])
validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
choice = choose(config, by_variable=True)
print("choice", choice.name, choice.scope)
"""


def sh(script: Path, programs: Path) -> subprocess.CompletedProcess:
    """Run a shell script that finds ``python`` among ``programs``."""
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(SOURCES)}
    return subprocess.run(["bash", script], env=environment, capture_output=True, text=True, timeout=300, check=False)


@dataclass(frozen=True)
class Batch:
    """A file of dumped tensors."""

    tensors: dict[str, torch.Tensor]
    metadata: dict


@dataclass(frozen=True)
class Run:
    """A finished run: verl's metrics of each step, and the dumps."""

    folder: Path
    output: str
    returncode: int

    @property
    def metrics(self) -> list[dict]:
        return [json.loads(line)["data"] for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def dumps(self, kind: str) -> list[Batch]:
        paths = sorted(self.folder.glob(f"{kind}-*.safetensors"), key=lambda p: (len(p.name), p.name))
        return [read(path) for path in paths]

    def first_batch(self, data: Path) -> Batch:
        """The first driver batch with its rollouts: prompts, completions' tokens, and the prompts' gold answers."""
        samples = [json.loads(line) for path in self.folder.glob("samples-*.jsonl") for line in path.open()]
        samples = [sample for sample in samples if sample["step"] == 0]
        batch = self.dumps("driver")[0]
        rollouts = []
        for logps, mask in zip(batch.tensors["old_log_probs"], batch.tensors["response_mask"], strict=True):
            own = logps[mask.bool()]
            found = min(samples, key=lambda sample: distance(own, sample["log_probs"]))
            assert distance(own, found["log_probs"]) < 1e-4
            samples.remove(found)
            rollouts.append({name: found[name] for name in ("prompt", "tokens")})
        questions = {row["prompt"][0]["content"]: row["reward_model"]["ground_truth"] for row in rows_of(data)}
        return Batch(batch.tensors, {**batch.metadata, "rollouts": rollouts, "gold": questions})

    def weights(self, step: int) -> dict[str, torch.Tensor]:
        return read(self.folder / f"weights-{step}.safetensors").tensors


def distance(logps: torch.Tensor, others: list[float]) -> float:
    if len(logps) != len(others):
        return torch.inf
    return (logps - torch.tensor(others)).abs().max().item()


def rows_of(data: Path) -> list[dict]:
    from datasets import Dataset

    return Dataset.from_parquet(str(data / "train.parquet")).to_list()


def write(batch: Batch, path: Path) -> None:
    save_file(
        {name: tensor.contiguous() for name, tensor in batch.tensors.items()},
        path,
        {key: json.dumps(value) for key, value in batch.metadata.items()},
    )


def read(path: Path) -> Batch:
    with safe_open(path, "pt") as file:
        metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
        return Batch({name: file.get_tensor(name) for name in file.keys()}, metadata)  # noqa: SIM118


def run(data: Path, folder: Path, *overrides: str, workers: int = 1, micro_batch: int = 2, plugin: bool = True) -> Run:
    """Train for three steps in ``folder``; ``plugin``: name ``covgrpo.verl`` among the external modules."""
    folder.mkdir(parents=True)
    modules = ["verl_cpu_platform", *(["covgrpo.verl"] if plugin else []), "verl_dump"]
    environment = {
        **os.environ,
        "VERL_USE_EXTERNAL_MODULES": ",".join(modules),
        "VERL_PLATFORM": "cpu",
        "VERL_FILE_LOGGER_PATH": str(folder / "metrics.jsonl"),
        "VERL_TEST_DUMP": str(folder),
        "PYTHONPATH": os.pathsep.join([str(HERE), str(SOURCES)]),
        "OMP_NUM_THREADS": "1",
        "GOMP_SPINCOUNT": "1000",
        "HF_HUB_OFFLINE": "1",
        "HYDRA_FULL_ERROR": "1",
        "RAY_DEDUP_LOGS": "0",
    }
    log = folder / "output.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command(data, workers, micro_batch), *overrides],
            cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            code = -1
        finally:  # Ray's processes are in the session of the command
            stop_session(process.pid)
    return Run(folder, log.read_text(errors="replace"), code)


def stop_session(session: int) -> None:
    """Kill what is left of a run: all processes of its session."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(entry.name)) == session:
                os.kill(int(entry.name), signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue

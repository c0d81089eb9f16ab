#!/usr/bin/env bash
# Covariance-aware GRPO on Qwen2.5-7B with verl 0.9, NODES nodes of 8 GPUs, on a Ray cluster that runs.
set -euo pipefail

NODES=${NODES:-2}
HERE=$(cd "$(dirname "$0")" && pwd)
export MODEL=${MODEL:-Qwen/Qwen2.5-7B-Instruct}

exec bash "$HERE/qwen2.5-1.5b.sh" \
  "+ray_kwargs.ray_init.address=auto" \
  "ray_kwargs.ray_init.num_cpus=null" \
  "+ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_MODULES=covgrpo.verl" \
  data.train_batch_size=$((32 * NODES)) \
  actor_rollout_ref.actor.ppo_mini_batch_size=$((32 * NODES)) \
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384 \
  actor_rollout_ref.rollout.tensor_model_parallel_size=2 \
  actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=32768 \
  trainer.nnodes="$NODES" \
  trainer.experiment_name=qwen2.5-7b \
  "$@"

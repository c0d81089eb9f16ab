#!/usr/bin/env bash
# Covariance-aware GRPO on Qwen2.5-1.5B with verl 0.9, one node of 8 GPUs. Overrides may follow.
set -euo pipefail

DATA=${DATA:-data/open-rs}
MODEL=${MODEL:-Qwen/Qwen2.5-1.5B-Instruct}
export VERL_USE_EXTERNAL_MODULES=covgrpo.verl

# 32 prompts x 12 completions a step, one update a batch: on-policy, as in the paper.
python -m verl.trainer.main_ppo \
  algorithm.adv_estimator=grpo \
  algorithm.use_kl_in_reward=False \
  data.train_files="$DATA/train.parquet" \
  data.val_files="$DATA/eval.parquet" \
  data.train_batch_size=32 \
  data.max_prompt_length=1024 \
  data.max_response_length=4096 \
  data.filter_overlong_prompts=True \
  actor_rollout_ref.model.path="$MODEL" \
  actor_rollout_ref.model.use_remove_padding=True \
  actor_rollout_ref.model.enable_gradient_checkpointing=True \
  actor_rollout_ref.actor.strategy=fsdp2 \
  actor_rollout_ref.actor.optim.lr=1e-6 \
  actor_rollout_ref.actor.ppo_mini_batch_size=32 \
  actor_rollout_ref.actor.use_dynamic_bsz=True \
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu=24576 \
  actor_rollout_ref.actor.use_kl_loss=False \
  actor_rollout_ref.actor.loss_agg_mode=token-mean \
  actor_rollout_ref.rollout.name=vllm \
  actor_rollout_ref.rollout.n=12 \
  actor_rollout_ref.rollout.temperature=0.7 \
  actor_rollout_ref.rollout.tensor_model_parallel_size=1 \
  actor_rollout_ref.rollout.gpu_memory_utilization=0.6 \
  actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=True \
  actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=49152 \
  reward.custom_reward_function.path=pkg://covgrpo.verl.rewards \
  reward.custom_reward_function.name=compute_score \
  trainer.nnodes=1 \
  trainer.n_gpus_per_node=8 \
  trainer.total_training_steps=200 \
  trainer.test_freq=20 \
  trainer.save_freq=50 \
  trainer.logger='["console","file"]' \
  trainer.project_name=covgrpo \
  trainer.experiment_name=qwen2.5-1.5b \
  "$@"

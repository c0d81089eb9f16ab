#!/usr/bin/env bash
# GSM8K in verl 0.9 with covariance-weighted advantages: what a verl user sets.
#
#   pip install --no-deps .      # this repository, in verl's environment (docs/verl.md)
#   python scripts/verl_data.py 'hub:openai/gsm8k?config=main&question=question' data/gsm8k --format math --format-weight 0
#   bash examples/verl_gsm8k.sh                                        # further overrides may follow:
#   bash examples/verl_gsm8k.sh +algorithm.covgrpo.weighting=none      # plain GRPO with the same metrics
#
# Hardware: one GPU with 80 GB and vLLM. Downloads the model and, in the second line, openai/gsm8k from the hub.
# The first log must hold: covgrpo: weighting=gaussian scope=group in PPOTrainerSync
set -euo pipefail

DATA=${DATA:-data/gsm8k}
MODEL=${MODEL:-Qwen/Qwen2.5-0.5B-Instruct}

# All that covgrpo needs. The choice of a method goes into +algorithm.covgrpo.weighting, .scope and .weighting_kwargs.
export VERL_USE_EXTERNAL_MODULES=covgrpo.verl

# From here on verl's own options. The two of reward.* let covgrpo's verifiers score; verl's own rewards do as well.
python -m verl.trainer.main_ppo \
  algorithm.adv_estimator=grpo \
  algorithm.use_kl_in_reward=False \
  data.train_files="$DATA/train.parquet" \
  data.val_files="$DATA/eval.parquet" \
  data.train_batch_size=64 \
  data.max_prompt_length=512 \
  data.max_response_length=512 \
  data.filter_overlong_prompts=True \
  actor_rollout_ref.model.path="$MODEL" \
  actor_rollout_ref.model.use_remove_padding=True \
  actor_rollout_ref.model.enable_gradient_checkpointing=True \
  actor_rollout_ref.actor.strategy=fsdp2 \
  actor_rollout_ref.actor.optim.lr=1e-6 \
  actor_rollout_ref.actor.ppo_mini_batch_size=64 \
  actor_rollout_ref.actor.use_dynamic_bsz=True \
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384 \
  actor_rollout_ref.actor.use_kl_loss=False \
  actor_rollout_ref.actor.loss_agg_mode=token-mean \
  actor_rollout_ref.rollout.name=vllm \
  actor_rollout_ref.rollout.n=8 \
  actor_rollout_ref.rollout.tensor_model_parallel_size=1 \
  actor_rollout_ref.rollout.gpu_memory_utilization=0.5 \
  actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=True \
  actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=32768 \
  reward.custom_reward_function.path=pkg://covgrpo.verl.rewards \
  reward.custom_reward_function.name=compute_score \
  trainer.nnodes=1 \
  trainer.n_gpus_per_node=1 \
  trainer.total_training_steps=200 \
  trainer.test_freq=20 \
  trainer.save_freq=-1 \
  trainer.logger='["console","file"]' \
  trainer.project_name=covgrpo \
  trainer.experiment_name=gsm8k \
  "$@"

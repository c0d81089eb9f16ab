"""``CovGRPOTrainer``: TRL's ``GRPOTrainer`` with covariance-weighted advantages and no repeated work.

The methods stand in the order in which a step goes through them: prompts -> rollouts -> rewards -> advantages ->
weights -> loss -> metrics. Each overrides a seam of TRL's and calls the part that does the work.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler as DataSampler
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from covgrpo.core import Weighting
from covgrpo.metrics import StepTokens
from covgrpo.trl import arguments
from covgrpo.trl.choice import check_engine, choose_weighting
from covgrpo.trl.citation import PAPER
from covgrpo.trl.config import CovGRPOConfig
from covgrpo.trl.entropy_hold import TrainerEntropyHold
from covgrpo.trl.entropy_probe import EntropyProbe
from covgrpo.trl.gathering import row_places
from covgrpo.trl.micro_batch import MicroBatch, only_advantages_act
from covgrpo.trl.old_names import quiet_about_trl
from covgrpo.trl.resume import EpochOrder, EpochSampler, checkpoint_for_all, load_state, rotating_by_step, save_state
from covgrpo.trl.rollout import Rollout, scoring_inputs
from covgrpo.trl.rollout_log import log_of
from covgrpo.trl.sampler import sampler_of
from covgrpo.trl.scorer import Scorer, Scores
from covgrpo.trl.step_log import StepLog
from covgrpo.trl.step_plan import StepPlan
from covgrpo.trl.timing import Phases
from covgrpo.trl.weigher import Weigher, attach_covariance, constant_reward_rows
from covgrpo.trl.whole_groups import keep_groups, may_keep_groups


class CovGRPOTrainer(GRPOTrainer):
    """Drop-in for :class:`trl.GRPOTrainer` (arXiv 2605.11538); takes the same arguments.

    ```python
    from covgrpo.trl import CovGRPOConfig, CovGRPOTrainer

    trainer = CovGRPOTrainer(
        model="Qwen/Qwen2.5-0.5B-Instruct",
        reward_funcs=reward,
        args=CovGRPOConfig(output_dir="out"),
        train_dataset=dataset,
    )
    trainer.train()
    ```

    Raises:
        TypeError: ``args`` is a plain ``GRPOConfig``.
        ValueError: an option combination that cannot be exact; or what TRL raises.

    """

    _tag_names = ["trl", "grpo", "covgrpo"]  # noqa: RUF012 (TRL's attribute)
    _name = "Covariance-aware GRPO"
    _paper = PAPER

    _micro: MicroBatch | None = None  # the micro-batch under the loss
    _step: int  # TRL's count of micro-batches
    _buffered_inputs: list[dict[str, Any]]  # TRL's micro-batches of the latest rollout batch
    _rewards: Tensor  # (B', F) of the latest rollout batch, over all processes

    def __init__(
        self,
        model: arguments.Model,
        reward_funcs: arguments.RewardFuncs | None = None,
        args: CovGRPOConfig | None = None,
        train_dataset: arguments.TrainData | None = None,
        eval_dataset: arguments.EvalData | None = None,
        processing_class: arguments.Processing | None = None,
        reward_processing_classes: arguments.RewardTokenizers | None = None,
        callbacks: arguments.Callbacks | None = None,
        optimizers: arguments.Optimizers = (None, None),
        quantization_config: arguments.Quantization = None,
        peft_config: arguments.Adapters = None,
        tools: arguments.Tools | None = None,
        rollout_func: arguments.Rollouts | None = None,
        environment_factory: arguments.Environments | None = None,
    ):
        args = arguments.config_for(model, args)
        self.phases, self._epoch_order = Phases(), EpochOrder()
        quiet_about_trl()
        super().__init__(
            model, reward_funcs, args, train_dataset, eval_dataset, processing_class, reward_processing_classes,
            callbacks, optimizers, quantization_config, peft_config, tools, rollout_func, environment_factory,
        )  # fmt: skip
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        weighting = choose_weighting(args)
        check_engine(args, sharded)
        self.sampler = sampler_of(self, allowed=args.fast_path and not sharded)
        self.scorer = Scorer(self.accelerator, self.model, self.ref_model, args.fast_path, sharded)
        self.weigher = Weigher(self.accelerator, weighting, args.weighting_scope, args.seed)
        self.step_plan = StepPlan(self.weigher)
        score = self._get_per_token_logps_and_entropies
        probe = EntropyProbe(self.accelerator, self.model, score, lambda: args.entropy_probe_steps)
        held = dict if self.entropy_hold is None else self.entropy_hold.metrics
        self.step_log = StepLog(self.accelerator, self._metrics["train"], self.phases, probe, held)
        # Where parameters are sharded every forward is a collective, and ranks differ in the rows they could leave out.
        self._leaves_out = args.fast_path and not sharded and only_advantages_act(self)
        for callback in (self._epoch_order, self.step_log):
            self.add_callback(callback)

    @property
    def weighting(self) -> Weighting:
        """The scheme, with what has been set of it for the latest rollout batch."""
        return self.weigher.weighting

    @property
    def entropy_hold(self) -> TrainerEntropyHold | None:
        """What steers a scheme that holds the entropy."""
        return self.weigher.entropy_hold

    @property
    def step_tokens(self) -> StepTokens | None:
        """The tokens of the latest optimizer step, on the CPU."""
        return self.step_log.tokens

    # Prompts

    def _get_train_sampler(self, dataset: Any = None) -> DataSampler:
        self._epoch_order.sampler = EpochSampler.like(super()._get_train_sampler(dataset))
        return self._epoch_order.sampler

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """Fetch the batches of an optimizer step, and remember them."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        self.step_plan.begin(batches, self._step)
        return batches, num_items

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        with self.phases.timed("preparing"):
            if self.model.training and self.weigher.active and self.args.weighting_scope == "batch":
                return self.step_plan.micro_batch(self._step, self._prepare_at)
            return self._prepare_at(self._step, generation_batch)

    def _prepare_at(self, step: int, generation_batch: Any) -> dict[str, Any]:
        """What TRL prepares when its count of micro-batches is ``step``; groups together where that changes nothing."""
        buffered, now, self._step = self._buffered_inputs, self._step, step
        try:
            prepared: dict[str, Any] = super()._prepare_inputs(generation_batch)
        finally:
            self._step = now
        if self._buffered_inputs is buffered or not may_keep_groups(self.args, self.aux_loss_enabled):
            return prepared
        self._buffered_inputs = keep_groups(self._buffered_inputs)
        return self._buffered_inputs[step % self.args.steps_per_generation]

    # Rollouts

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, multimodal_fields: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        with self.phases.timed("sampling"):
            more_than_text = images is not None or bool(multimodal_fields)
            drawn = self.sampler.draw(prompt_ids, more_than_text, self.temperature)
            if drawn is None:
                drawn = super()._generate_single_turn(prompt_ids, images, multimodal_fields, *args, **kwargs)
            return drawn

    # Rewards

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        with self.phases.timed("reward"):
            self._rewards = super()._calculate_rewards(*args, **kwargs)
            return self._rewards

    # Advantages and weights

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.sampler.latest = None
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self.model.training:
            self.rollout_log = log_of(self)
            rows = row_places(self, len(inputs))
            rollout = Rollout.sampled(batch, rows, self.num_generations, self.state.global_step)
            self.sampler.lend_scores(rollout, batch, one_turn=not self.tools)
            if self.weigher.active:
                self._weigh(rollout, batch)
            else:
                attach_covariance(self.accelerator, rollout)
            rollout.write(batch)
        return batch

    def _weigh(self, rollout: Rollout, batch: dict[str, Any]) -> None:
        if rollout.logps_BT is None or (self.weigher.needs_entropies and rollout.entropies_BT is None):
            self._score_rollout(rollout, batch)
        if self.multi_objective_aggregation == "sum_then_normalize":
            constant = constant_reward_rows(self._rewards, self.reward_weights, self.num_generations)
            mine = constant[self.accelerator.process_index * len(rollout.row_B) :][: len(rollout.row_B)]
            rollout.advantages_B = rollout.advantages_B.masked_fill(mine, 0.0)
        self.weigher.steer(rollout)
        if self.args.weighting_scope == "group":  # else over the optimizer step: see _prepare_inputs
            self.weigher.weigh(rollout, rollout.group_B)

    def _score_rollout(self, rollout: Rollout, batch: dict[str, Any]) -> None:
        """Fill in what is missing of the policy that sampled: log-probs, in the trainer's numerics (not vLLM's)."""
        text, options = scoring_inputs(batch)
        options.update(batch_size=self.args.per_device_train_batch_size, compute_entropy=self.weigher.needs_entropies)
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            scores = self._get_per_token_logps_and_entropies(self.model, *text, **options)
        rollout.complete(scores[0], scores[1] if options["compute_entropy"] else None)

    # Loss

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        micro = MicroBatch.of(inputs, self.state.global_step) if self.model.training else None
        if micro is None:
            return super()._compute_loss(model, inputs)
        if self._leaves_out:
            micro.leave_out_idle_rows()
        self._micro = micro
        try:
            loss: Tensor = super()._compute_loss(model, micro.inputs)
        finally:
            self._micro = None
        self.step_log.keep(micro)
        return loss.float() if micro.penalised else loss

    def _get_per_token_logps_and_entropies(self, model: nn.Module, *args: Any, **kwargs: Any) -> Scores:
        micro, stock = self._micro, super()._get_per_token_logps_and_entropies
        scores: Scores = self.phases.scoring(self.scorer.score, stock, micro and micro.rows, model, *args, **kwargs)
        return scores if micro is None else micro.scored(*scores)

    # Metrics and checkpoints

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as TRL, with the entropy over all tokens of the steps in place of the mean over micro-batches."""
        if self.model.training:
            self.step_log.put_entropy()
        super().log(logs, start_time)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as TRL, from a checkpoint that every process has."""
        return super().train(checkpoint_for_all(self, resume_from_checkpoint), *args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        save_state(self, Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}")
        with rotating_by_step(self, trial):
            super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        load_state(self, checkpoint)

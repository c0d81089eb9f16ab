"""``CovGRPOTrainer``: TRL's ``GRPOTrainer`` with covariance-weighted advantages and no repeated work."""

import textwrap
from typing import Any

from trl import GRPOTrainer

from covgrpo.trl.config import CovGRPOConfig
from covgrpo.trl.diagnostics import TokenDiagnostics
from covgrpo.trl.penalty import TokenPenalty
from covgrpo.trl.resume import ExactResume
from covgrpo.trl.scoring import SharedPromptScoring
from covgrpo.trl.windows import OptimizerStepWindows


class CovGRPOTrainer(
    TokenDiagnostics, TokenPenalty, OptimizerStepWindows, SharedPromptScoring, ExactResume, GRPOTrainer
):
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
    _paper = {  # noqa: RUF012
        "title": "Taming Extreme Tokens: Covariance-Aware GRPO with Gaussian-Kernel Advantage Reweighting",
        "id": "2605.11538",
        "citation": textwrap.dedent("""\
            @inproceedings{covgrpo2026,
                title     = {{Taming Extreme Tokens: Covariance-Aware GRPO with Gaussian-Kernel Advantage Reweighting}},
                booktitle = {Proceedings of the Annual Meeting of the Association for Computational Linguistics},
                year      = 2026,
                eprint    = {arXiv:2605.11538},
            }"""),
    }

    def __init__(self, model: Any, reward_funcs: Any = None, args: CovGRPOConfig | None = None, **kwargs: Any):
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = CovGRPOConfig(f"{name.split('/')[-1]}-CovGRPO")
        if not isinstance(args, CovGRPOConfig):
            raise TypeError(f"args must be a CovGRPOConfig, got {type(args).__name__}: swap that name as well.")
        super().__init__(model, reward_funcs, args, **kwargs)
        self.entropy_probe_steps = args.entropy_probe_steps
        if self.entropy_probe_steps and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError(
                f"entropy_probe_steps is {self.entropy_probe_steps}; it cannot be used where FSDP or DeepSpeed shards "
                "the parameters."
            )

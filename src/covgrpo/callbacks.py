"""For those who keep TRL's ``GRPOTrainer``: the same metrics and records, with nothing of the training changed.

```python
from covgrpo.callbacks import RunWriter, TokenDiagnostics
from trl import GRPOTrainer

class Trainer(TokenDiagnostics, GRPOTrainer):
    pass

trainer = Trainer(...)
trainer.add_callback(RunWriter(trainer))
trainer.train()
```

The metrics of ``docs/metrics.md`` then go to every logger of the trainer, and ``covgrpo report OUTPUT_DIR`` shows them.
"""

from pathlib import Path
from typing import Any

from accelerate.logging import get_logger

from covgrpo.runs.record.folder import RunFolder
from covgrpo.runs.record.recorder import RunRecorder, StopRequest
from covgrpo.trl.diagnostics import TokenDiagnostics

__all__ = ["RunWriter", "TokenDiagnostics"]

logger = get_logger(__name__)


class RunWriter(RunRecorder):
    """Writes ``metrics.jsonl``, ``samples.jsonl``, ``tokens.jsonl`` and ``histograms.jsonl`` while a trainer trains.

    Args:
        trainer: with :class:`TokenDiagnostics` among its bases; another one has metrics and completions only.
        folder: where to write; default: the trainer's ``output_dir``.
        samples_per_step: completions kept.
        tokens_per_step: tokens kept, those with the smallest weight.

    """

    def __init__(
        self, trainer: Any, folder: str | Path | None = None, samples_per_step: int = 4, tokens_per_step: int = 16
    ):
        path = Path(folder or trainer.args.output_dir)
        main = trainer.accelerator.is_main_process
        if main:
            path.mkdir(parents=True, exist_ok=True)
        super().__init__(
            RunFolder(path) if main else None,
            StopRequest(),
            samples_per_step,
            lambda record: None,
            tokens_per_step,
            trainer=trainer,
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Go on from the records up to the step that training goes on from; another run's are put aside."""
        if self.run is not None:
            if state.global_step:
                self.run.truncate_after(state.global_step)
            elif (aside := self.run.put_records_aside()) is not None:
                logger.warning(f"{self.run.path} holds the records of another run: they are in {aside} now.")
        super().on_train_begin(args, state, control, **kwargs)

"""covgrpo for verl: token weights with exact statistics, taken in the driver (verl 0.9, docs/verl.md).

    VERL_USE_EXTERNAL_MODULES=covgrpo.verl python -m verl.trainer.main_ppo algorithm.adv_estimator=grpo ...

verl imports this module in each of its processes; the code is in ``covgrpo.engines.verl``. Nothing happens here until a
trainer is built, which is where the choice in ``algorithm.covgrpo`` is read. Without that section the method of arXiv
2605.11538 is what loading by the variable means; where the module was only found as an installed plug-in, nothing is
touched.
"""

from covgrpo.engines.verl.batch import weigh_batch
from covgrpo.engines.verl.config_section import Choice, choose
from covgrpo.engines.verl.loading import load

__all__ = ["Choice", "choose", "weigh_batch"]

load()

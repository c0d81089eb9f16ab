"""An external module for verl that writes down what the tests compare, into the folder ``VERL_TEST_DUMP``.

- In the driver: each training batch before and after the weights (``driver-N.safetensors``).
- On the workers: what the policy loss ``dump_vanilla`` receives (``loss-PID-N.safetensors``), which is verl's vanilla.
"""

import itertools
import json
import os
from pathlib import Path

from safetensors.torch import save_file
from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla, register_policy_loss

FOLDER = Path(os.environ["VERL_TEST_DUMP"])
counter = itertools.count()


def save(name, tensors, **metadata):
    tensors = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
    save_file(tensors, FOLDER / f"{name}.safetensors", {key: json.dumps(value) for key, value in metadata.items()})


@register_policy_loss("dump_vanilla")
def dump_vanilla(old_log_prob, log_prob, advantages, response_mask, **kwargs):
    rows = {"old_log_probs": old_log_prob, "advantages": advantages, "response_mask": response_mask}
    save(f"loss-{os.getpid()}-{next(counter)}", rows)
    return compute_policy_loss_vanilla(old_log_prob, log_prob, advantages, response_mask, **kwargs)


def dump_driver_batches():
    from covgrpo.engines.verl import trainers

    weigh = trainers.weigh_batch

    def dumped(data, choice, keys=None, hold=None, entropies=None):
        columns = ("old_log_probs", "advantages", "response_mask", "token_level_rewards")
        rows = {name: data.batch[name].clone() for name in columns}
        if entropies is not None:
            rows["entropies"] = entropies
        metrics = weigh(data, choice, keys, hold, entropies)
        rows["weighted"] = data.batch["advantages"]
        save(
            f"driver-{next(counter)}",
            rows,
            uid=list(data.non_tensor_batch["uid"]),
            keys=list(keys or []),
            metrics=metrics,
        )
        return metrics

    trainers.weigh_batch = dumped


if "covgrpo.verl" in os.environ["VERL_USE_EXTERNAL_MODULES"]:
    dump_driver_batches()

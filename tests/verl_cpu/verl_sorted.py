"""A replay buffer whose batches have their rows in the order of their tokens; verl's own order is that of arrival.

Equal rollouts then give equal sums, to the last bit. Chosen by verl's ``trainer.v1.sampler.custom_sampler``.
"""

import transfer_queue as tq
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer


class SortedReplayBuffer(ReplayBuffer):
    def _materialize_batch(self, partition_id, *args, **kwargs):
        batch = super()._materialize_batch(partition_id, *args, **kwargs)
        rows = tq.kv_batch_get(keys=batch.keys, partition_id=partition_id, select_fields=["prompts", "responses"])
        columns = [[row.tolist() for row in rows[name].unbind()] for name in ("prompts", "responses")]
        tokens = list(zip(*columns, strict=True))
        batch.reorder(sorted(range(len(tokens)), key=tokens.__getitem__))
        return batch

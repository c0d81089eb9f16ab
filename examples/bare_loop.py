"""The core in a bare PyTorch loop: sample, reward, advantages, weights, loss, step. Only torch and covgrpo.

A small recurrent policy learns to count down: after the prompt "4" it must say "3 2 1 0" and stop.

    python examples/bare_loop.py                        # --weighting none is plain GRPO

Hardware: any CPU, a few seconds. The mean reward goes from 0.1 to above 0.9. Plain GRPO gets there sooner on this toy,
and its entropy ends nearer to 0.
"""

import argparse

import torch
from torch import nn

import covgrpo

DIGITS, STOP, T = 6, 6, 8  # tokens 0 to 5 are digits; completions have at most T tokens
P, G = 12, 16  # prompts a step, completions a prompt


class Policy(nn.Module):
    def __init__(self, width: int = 64):
        super().__init__()
        self.embed = nn.Embedding(DIGITS + 1, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, DIGITS + 1)

    def forward(self, ids, state=None):
        hidden, state = self.gru(self.embed(ids), state)
        return self.head(hidden).log_softmax(dim=-1), state


@torch.no_grad()
def sample(policy, prompts_B):
    ids, state, completions = prompts_B[:, None], None, []
    for _ in range(T):
        logps, state = policy(ids, state)
        ids = logps[:, -1].exp().multinomial(1)
        completions.append(ids)
    ids_BT = torch.cat(completions, dim=1)
    stops_BT = (ids_BT == STOP).cumsum(dim=1)
    return ids_BT, (stops_BT - (ids_BT == STOP).long()) == 0  # a token is valid up to the first STOP, with it


def reward(start, completion):
    """The share of places that are right; 1 for a whole countdown that stops in time."""
    wanted = [*range(start - 1, -1, -1), STOP]
    right = sum(a == b for a, b in zip(completion, wanted, strict=False))
    return right / max(len(wanted), len(completion))


def train(weighting="gaussian", steps=100, seed=0, every=20):
    torch.manual_seed(seed)
    policy, weigh = Policy(), covgrpo.get_weighting(weighting)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    group_B = torch.arange(P).repeat_interleave(G)  # completions of one prompt share their statistics
    for step in range(1, steps + 1):
        prompts_B = torch.randint(1, DIGITS, (P,)).repeat_interleave(G)
        ids_BT, mask_BT = sample(policy, prompts_B)
        texts = [row[valid].tolist() for row, valid in zip(ids_BT, mask_BT, strict=True)]
        R_PG = torch.tensor([reward(*pair) for pair in zip(prompts_B.tolist(), texts, strict=True)]).view(P, G)
        A_PG = (R_PG - R_PG.mean(dim=1, keepdim=True)) / (R_PG.std(dim=1, keepdim=True) + 1e-4)

        all_logps, _ = policy(torch.cat([prompts_B[:, None], ids_BT[:, :-1]], dim=1))
        logps_BT = all_logps.gather(2, ids_BT[..., None])[..., 0]
        # The method. `covgrpo.gaussian_weights` is the same function as the weighting "gaussian".
        w_BT = weigh(logps_BT, A_PG.flatten(), mask_BT, group_B)  # (B, T), mean 1 in each group, no gradient
        A_BT = w_BT * A_PG.flatten()[:, None]
        ratio_BT = (logps_BT - logps_BT.detach()).exp()  # 1 on policy; it carries the gradient
        loss = -(ratio_BT * A_BT)[mask_BT].mean()

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 1 or step % every == 0:
            entropy = -(all_logps.exp() * all_logps).sum(dim=-1)[mask_BT].mean()
            least = w_BT[mask_BT].min()
            print(f"step {step:4}  reward {R_PG.mean():.3f}  entropy {entropy:.3f}  smallest weight {least:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weighting", default="gaussian")
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    train(options.weighting, options.steps)

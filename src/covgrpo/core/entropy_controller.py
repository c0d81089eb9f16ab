"""A controller that holds the policy's entropy: kappa of each step's covariance-neutral weights, from measurements.

To first order an update changes the entropy in proportion to the covariance that it is weighted to (arXiv 2505.22617).
How strongly, and what else moves the entropy (Adam is no natural gradient, sampled tokens stand for the distribution),
differs by four orders of magnitude between runs. So both are measured while the run goes on. The model of a step is

    M' = beta M + (1 - beta) r      r = mean(w c), the covariance that the step's weights reach: (1 - kappa) mean(c)
    H' = H - eta M' + d + wander    M: Adam's momentum spreads a step's effect; beta is MOMENTUM
    y  = H + noise                  y: mean entropy of the rollouts' tokens; noise: its standard error, from the batch

c is the covariance within the distributions that tokens were drawn from, where these are known (neutral.py), and
eta (nats by nats x advantage) and d (nats a step) are unknown. It is linear in the state (H, eta, d), so a Kalman
filter estimates all three. What momentum has still to bring takes the entropy to

    H* = H - (eta M - d) beta / (1 - beta)

if the steps from here on just balance d. Each step asks for the r that brings this to the target in HORIZON steps,

    -eta r + d = (target - H*) / HORIZON,        kappa = 1 - r / mean(c).

d is the integral action: a drift that remains is learnt, and no error lasts that is large beside the noise. What the
filter is told is the r that was reached, not the one that was asked for, so a bounded kappa winds nothing up. While eta
is uncertain the answer is divided by the root of E[eta^2], which asks for less. (E[eta^2] / E[eta], of the cautious
controllers in Astrom and Wittenmark, Adaptive Control, chapter 7, asks for nothing where eta may be 0, learns nothing
by that, and so turns the control off.)

Nothing here is tuned to a task. Before anything is known, eta and d are of the size whose effect over WARM_UP steps
would just be as large as the noise of one measurement. H wanders by as much, a step, of what the model does not know,
at first; then by as much as the surprises say. The square of a surprise y - H over its variance is 1 in the mean, and
the wander's variance grows by WANDER_RATE of what it is above 1, or falls.
From a cold start the entropy falls fast for ten steps or so, of its own. A drift is therefore the more uncertain, the
fewer steps it was measured for, or the controller goes on expecting that fall and raises the entropy past its target.
"""

import dataclasses
import math
from dataclasses import dataclass, field

WARM_UP = 10  # steps at kappa 1, whose mean entropy is the target unless another is given
MOMENTUM = 0.85  # between Adam's usual beta1 and the 0.7 to 0.8 that fits measured entropies best (docs/entropy.md)
HORIZON = 3  # steps in which what is then left of an error is to be asked for
MEMORY = 50  # steps over which the noise and mean(c) are averaged
FORGETTING_ETA, FORGETTING_DRIFT = 0.03, 0.01  # by which each may move in a step, as a fraction of its size
WANDER_RATE, LEAST_WANDER, MOST_WANDER = 0.1, 0.1, 100.0  # the last two: of its first variance
EARLY_DRIFT = 3  # a drift measured for t steps may move by 3 / t of itself: what a cold start brings dies out
KAPPA_BOUND = 32.0  # the weights have their own bound, an effective sample size of 1/2, mostly long before


@dataclass
class EntropyController:
    """Kappa from measured entropies; plain floats, so that its state is a JSON object and equal on all processes.

    Each step: :meth:`observe` the rollouts, weigh them with ``kappa``, :meth:`advance`.

    Args:
        target: entropy to hold, nats a token; ``None``: ``fraction`` of the mean over the first WARM_UP steps.
        fraction: of that mean.
        bound: kappa lies in [-bound, bound].
        floor: the target is only kept from below: the weights never lower the entropy, which falls as it will.

    Attributes:
        kappa: for the weights of the current rollout batch.
        entropy: the filter's estimate, nats a token; NaN before the first measurement.
        eta: fall of the entropy by covariance reached.
        drift: nats a step that the covariance does not explain.

    """

    target: float | None = None
    fraction: float = 1.0
    bound: float = KAPPA_BOUND
    floor: bool = False

    kappa: float = 1.0
    entropy: float = math.nan
    eta: float = 0.0
    drift: float = 0.0
    momentum: float = 0.0  # M: what the weights reached, averaged as Adam averages gradients
    # Error covariance of (entropy, eta, drift), symmetric, by rows.
    errors: list[list[float]] = field(default_factory=lambda: [[0.0] * 3 for _ in range(3)])
    measured: int = 0  # steps
    first_sum: float = 0.0  # of the entropies of the first steps
    noise: float = 0.0  # variance of a measurement
    mean_c: float = 0.0  # of a step, averaged
    mean_c_variance: float = 0.0  # of a step's mean
    unit: float = 0.0  # nats a step: what could happen in WARM_UP steps without being seen; 0 before the first update
    wander: float = 1.0  # variance of H's own steps, over the first guess of it

    def observe(self, entropy: float, variance: float, mean_c: float) -> float:
        """Take in a rollout batch and return ``kappa`` for it.

        Args:
            entropy: mean over the batch's valid tokens, nats.
            variance: squared standard error of that mean.
            mean_c: mean token covariance of the batch, as GRPO would have it, nats x advantage.

        """
        self.measured += 1
        share = 1 / min(self.measured, MEMORY)
        self.noise += (variance - self.noise) * share
        change = mean_c - self.mean_c
        self.mean_c += change * share
        self.mean_c_variance += (change * (mean_c - self.mean_c) - self.mean_c_variance) * share
        if self.measured == 1:
            self.entropy = entropy
            self.errors[0][0] = self.noise
        else:
            self._correct(entropy)
        if self.measured <= WARM_UP:
            self.first_sum += entropy
        if self.measured == WARM_UP:
            self._begin()
        if self.measured >= WARM_UP and self.target is not None:
            self.kappa = self._kappa_for(self.target, mean_c)
        return self.kappa

    def advance(self, reached: float) -> None:
        """Predict what the update does to the entropy, given the ``reached`` mean(w c) of its weights."""
        if self.unit == 0.0:
            self.unit = math.sqrt(max(self.noise, 1e-12)) / WARM_UP
            self.errors[2][2] = self.unit**2
        (HH, He, Hd), (_, ee, ed), (_, _, dd) = self.errors
        M = self.momentum = MOMENTUM * self.momentum + (1 - MOMENTUM) * reached
        self.entropy += self.drift - self.eta * M
        # F P F' with F = [[1, -M, 1], [0, 1, 0], [0, 0, 1]], plus what all three may have moved
        HH = HH + M * M * ee + dd + 2 * (-M * He + Hd - M * ed) + self.wander * self.noise / WARM_UP**2
        He, Hd = He - M * ee + ed, Hd - M * ed + dd
        ee += (FORGETTING_ETA * self.eta) ** 2
        dd += (FORGETTING_DRIFT * self.unit) ** 2 + (EARLY_DRIFT * self.drift / max(self.measured, 1)) ** 2
        self.errors = [[HH, He, Hd], [He, ee, ed], [Hd, ed, dd]]

    def ask(self, target: float | None, fraction: float, bound: float, floor: bool) -> None:
        """Take what is asked for in mid-run.

        Without a ``target`` the one that is held stays, unless the fraction changes.

        Args:
            target: see :class:`EntropyController`.
            fraction: likewise.
            bound: likewise.
            floor: likewise.

        """
        if target is not None:
            self.target = target
        elif fraction != self.fraction and self.measured >= WARM_UP:
            self.target = fraction * self.first_sum / WARM_UP
        self.fraction, self.bound, self.floor = fraction, bound, floor

    def state_dict(self) -> dict[str, object]:
        """Return everything as plain numbers and lists; floats survive JSON to the last bit."""
        return dataclasses.asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, object]) -> "EntropyController":
        """Restore a controller.

        Raises:
            ValueError: a missing or unknown name.

        """
        names = {one.name for one in dataclasses.fields(cls)}
        if set(state) != names:
            wrong = ", ".join(sorted(names.symmetric_difference(state)))
            raise ValueError(f"the saved state of the entropy controller does not fit this version: {wrong}.")
        return cls(**state)  # type: ignore[arg-type]  # (written by state_dict)

    def _begin(self) -> None:
        """Set the target, and eta and how uncertain it is, after the first steps."""
        if self.target is None:
            self.target = self.fraction * self.first_sum / WARM_UP
        self.eta = self.unit / max(self._size_of_mean_c(), 1e-9)
        self.errors[1][1] = self.eta**2

    def _correct(self, entropy: float) -> None:
        """Kalman's measurement update: x += k (y - H), P -= k P_H with k = P_H / (P_HH + R)."""
        row = list(self.errors[0])
        total = row[0] + self.noise
        if total <= 0:
            return
        gain, surprise = [value / total for value in row], entropy - self.entropy
        if self.measured > WARM_UP:  # what a cold start brings before is no wander
            growth = math.exp(WANDER_RATE * (min(surprise**2 / total, 9.0) - 1))  # at most that of three errors
            self.wander = min(max(self.wander * growth, LEAST_WANDER), MOST_WANDER)
        least = 1e-3 * self.eta
        self.entropy += gain[0] * surprise
        self.eta = max(self.eta + gain[1] * surprise, least)  # it is positive, whatever the noise says
        self.drift += gain[2] * surprise
        self.errors = [[self.errors[i][j] - gain[i] * row[j] for j in range(3)] for i in range(3)]

    def _kappa_for(self, target: float, mean_c: float) -> float:
        """-eta r + d = (target - H*) / HORIZON, solved for r; kappa = 1 - r / mean(c)."""
        heading_for = self.entropy - (self.eta * self.momentum - self.drift) * MOMENTUM / (1 - MOMENTUM)
        wanted = (target - heading_for) / HORIZON
        r = (self.drift - wanted) / math.sqrt(max(self.eta**2 + self.errors[1][1], 1e-300))
        # The batch's own, so that r is reached whatever it is; not much below the average, where groups only cancel.
        mean_c = math.copysign(max(abs(mean_c), self._size_of_mean_c() / 4, 1e-12), mean_c)
        if self.floor:  # no more covariance than plain GRPO has, whatever its sign
            r = min(r, mean_c)
        return min(max(1 - r / mean_c, -self.bound), self.bound)

    def _size_of_mean_c(self) -> float:
        return max(abs(self.mean_c), self._error_of_mean_c())

    def _error_of_mean_c(self) -> float:
        return math.sqrt(max(self.mean_c_variance, 0.0) / min(self.measured, MEMORY))

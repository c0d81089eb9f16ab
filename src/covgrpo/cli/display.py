"""What a person watches: a live line with small charts on a terminal, plain lines elsewhere."""

import math
import os
import sys
from collections import deque
from typing import Any

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 24
_QUESTION, _COMPLETION, _WEIGHTS = 40, 160, 6  # characters and numbers shown of a completion


def sparkline(values: list[float], low: float, high: float) -> str:
    """Draw the last values as bars between ``low`` and ``high``; a gap for what is not finite."""
    span = (high - low) or 1.0
    top = len(_BARS) - 1

    def bar(value: float) -> str:
        return _BARS[min(top, max(0, round((value - low) / span * top)))] if math.isfinite(value) else " "

    return "".join(bar(value) for value in values[-_WIDTH:])


def duration(seconds: float) -> str:
    """Format seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _console(quiet: bool) -> Any:
    """A console that goes on without its reader: a run of days is not to end with `| head`."""
    from rich.console import Console

    class Lasting(Console):
        def on_broken_pipe(self) -> None:
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            print("covgrpo: nobody reads the output any more; the run goes on without it", file=sys.stderr)

    return Lasting(highlight=False, emoji=False, quiet=quiet)


class Series:
    """What a chart needs of a number of each step: the last values, and the largest of all."""

    def __init__(self, least: float):
        self.values: deque[float] = deque(maxlen=_WIDTH)
        self.top = least  # largest finite value so far

    def append(self, value: float) -> None:
        """Take in the next step's."""
        self.values.append(value)
        if math.isfinite(value):
            self.top = max(self.top, value)

    @property
    def last(self) -> float:
        """The latest step's."""
        return self.values[-1]

    def chart(self) -> str:
        """Bars from 0 to the largest value."""
        return sparkline(list(self.values), 0, self.top)


class Display:
    """Progress of a run. On a terminal the last lines redraw themselves; otherwise one plain line a step.

    Args:
        completions_per_step: over all processes.
        quiet: show nothing: another process shows it.

    """

    def __init__(self, completions_per_step: int, quiet: bool = False):
        self.console = _console(quiet)
        self.live: Any = None
        self.live_part = ""
        self.completions = completions_per_step
        self.rewards, self.entropies, self.tails = Series(1.0), Series(0.0), Series(0.0)
        self.sample: dict[str, Any] | None = None
        self.walls: deque[float] = deque(maxlen=10)
        self.steps = 0

    def message(self, text: str) -> None:
        """Print a line above the live part."""
        self.console.print(text, markup=False, soft_wrap=True)

    def started(self, step: int, steps: int) -> None:
        """Begin to show progress from ``step`` of ``steps``."""
        self.steps = steps
        if self.console.is_terminal:
            self._go_live("training")

    def step(self, record: dict[str, Any]) -> None:
        """Show one step's metrics."""
        self.rewards.append(record.get("reward") or 0.0)
        self.entropies.append(record.get("entropy") or 0.0)
        self.tails.append(record.get("cov/pos_0.01") or 0.0)
        self.walls.append(record["time/wall"])
        recent = sorted(self.walls)
        left = (self.steps - record["step"]) * recent[len(recent) // 2]
        speed = record.get("completions/mean_length", 0.0) * self.completions / record["time/wall"]
        if self.live is None:
            self.message(self._line(record, speed, left))
        else:
            self.live.update(self._panel(record, speed, left))

    def completion(self, sample: dict[str, Any]) -> None:
        """Show this completion, a record of ``samples.jsonl``, from the next step on; on a terminal only."""
        self.sample = sample

    def evaluating(self, what: str, done: int, total: int) -> None:
        """Show the progress of an evaluation, in one line that redraws itself; on a terminal only."""
        if not self.console.is_terminal:
            return
        text = f"measuring accuracy {what} training: {done}/{total} completions"
        self._go_live(f"accuracy {what}")
        self.live.update(text, refresh=True)
        if done >= total:
            self.close()

    def close(self) -> None:
        """Leave the last state on the screen."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _go_live(self, part: str) -> None:
        """Begin a part of the screen that redraws itself; the one before it stays as it is."""
        from rich.live import Live

        if self.live is None or self.live_part != part:
            self.close()
            self.live, self.live_part = Live(console=self.console, refresh_per_second=4, transient=False), part
            self.live.start()

    def _line(self, record: dict[str, Any], speed: float, left: float) -> str:
        held = f"kappa {record['hold/kappa']:.2f}  " if "hold/kappa" in record else ""
        reward, entropy = self.rewards.last, self.entropies.last
        return (
            f"step {record['step']:>4}/{self.steps}  reward {reward:.3f}  entropy {entropy:.3f}  "
            f"{held}grad_norm {record.get('grad_norm') or 0.0:.2f}  {speed:.0f} tok/s  {duration(left)} left"
        )

    def _panel(self, record: dict[str, Any], speed: float, left: float) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        step = record["step"]
        table.add_row(
            f"step {step}/{self.steps}", ProgressBar(self.steps, step, width=_WIDTH), f"{duration(left)} left"
        )
        table.add_row("reward", f"[green]{self.rewards.chart()}[/]", f"{self.rewards.last:.3f}")
        table.add_row("entropy", f"[cyan]{self.entropies.chart()}[/]", f"{self.entropies.last:.3f} nats")
        if "hold/kappa" in record:
            target = record.get("hold/target")
            held = "measuring" if target is None else f"held at {target:.3f} nats"
            table.add_row("kappa", held, f"{record['hold/kappa']:.2f}")
        table.add_row(
            "cov tail",
            f"[magenta]{self.tails.chart()}[/]",
            f"{self.tails.last:.2f} (sigma {record.get('cov/sigma') or 0.0:.2f})",
        )
        table.add_row("speed", f"{speed:.0f} tok/s", f"grad_norm {record.get('grad_norm') or 0.0:.2f}")
        return Group(table, *([coloured(self.sample)] if self.sample else []))


def coloured(sample: dict[str, Any]) -> Any:
    """A completion with its tokens coloured by weight: red below 1, blue above, violet below 0; in one or two lines."""
    from rich.style import Style
    from rich.text import Text

    text = Text(f"{_one_line(sample.get('prompt', ''))[-_QUESTION:]} ", style="dim")
    tokens = sample.get("tokens") or {"text": [sample.get("completion", "")], "weight": [1.0]}
    left = _COMPLETION
    for token, weight in zip(tokens["text"], tokens["weight"], strict=True):
        shown = _one_line(token)[:left]
        left -= len(shown)
        text.append(shown, Style(color="white", bgcolor=_shade(weight)))
        if left <= 0:
            text.append("…")
            break
    text.append(f"  advantage {sample.get('advantage') or 0.0:.2f}, weights ", style="dim")
    return text.append(" ".join(f"{weight:.2f}" for weight in tokens["weight"][:_WEIGHTS]), style="dim")


def _shade(weight: float) -> str:
    """Background of a token: dark for weight 1, red towards 0, blue towards 2 and above, violet below 0."""
    if weight < 0:
        return "rgb(120,40,200)"
    strength = min(1.0, abs(weight - 1.0)) if math.isfinite(weight) else 1.0
    strong, weak = round(40 + 160 * strength), round(40 * (1 - strength) + 20)
    return f"rgb({strong},{weak},{weak})" if weight < 1 else f"rgb({weak},{weak + 20},{strong})"


def _one_line(text: str) -> str:
    return "".join(ch if ch.isprintable() else "·" for ch in text)

"""What a terminal shows of a run."""

import io
import re
from pathlib import Path

import pytest
import rich.console
from cli_cases import command

from covgrpo.cli import main
from covgrpo.cli.display import Display, Series, duration, sparkline

# --- what a terminal shows -----------------------------------------------------------------------------------------


def screen(text: str) -> list[str]:
    """The lines that a terminal shows after ``text``: line feeds, returns, cursor up, line erasure."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|.|\n", text, re.DOTALL):
        if token == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif token == "\r":
            column = 0
        elif token == "\x1b[2K":
            lines[row] = ""
        elif re.fullmatch(r"\x1b\[\d+A", token):
            row -= int(token[2:-1])
        elif not token.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + token + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What consoles made from now on write to: a terminal."""
    output = io.StringIO()

    class Terminal(rich.console.Console):
        def __init__(self, **options):
            super().__init__(file=output, force_terminal=True, color_system="truecolor", width=120, **options)

    monkeypatch.setattr(rich.console, "Console", Terminal)
    return output


def record(step: int, reward: float, entropy: float) -> dict[str, float]:
    return {
        "step": step, "reward": reward, "entropy": entropy, "time/wall": 30.0, "completions/mean_length": 15.0,
        "cov/sigma": 0.25, "cov/pos_0.01": 1.5,
    }  # fmt: skip


def test_live_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    output = terminal(monkeypatch)
    display = Display(8)
    display.started(0, 4)
    display.step(record(1, 0.25, 2.0))
    display.message("a message :smile: [red]")
    display.step(record(2, 0.5, 1.0))
    display.close()
    lines = screen(output.getvalue())
    assert lines[0] == "a message :smile: [red]"
    assert re.fullmatch(r"step 2/4 .* 1:00 left", lines[1])
    assert re.fullmatch(r"reward +▃▅ +0.500", lines[2])
    assert re.fullmatch(r"entropy +█▅ +1.000 nats", lines[3])
    assert re.fullmatch(r"cov tail +██ +1.50 \(sigma 0.25\)", lines[4])
    assert re.fullmatch(r"speed +4 tok/s +grad_norm 0.00", lines[5])
    assert not any(lines[6:])


def test_live_completion_coloured_by_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    output = terminal(monkeypatch)
    display = Display(8)
    display.started(0, 4)
    tokens = {"text": ["1", "\n[red]", "7"], "weight": [0.0, 1.0, 2.5]}
    display.completion({"prompt": "What is 8 + 9?", "completion": "17", "advantage": -0.5, "tokens": tokens})
    display.step(record(1, 0.25, 2.0))
    display.close()
    lines = screen(output.getvalue())
    assert lines[5] == "What is 8 + 9? 1·[red]7  advantage -0.50, weights 0.00 1.00 2.50"
    backgrounds = re.findall(r"48;(?:2|5);([\d;]+)m(\S)", output.getvalue())
    assert len({colour for colour, _ in backgrounds}) == 3, "each of three weights has a colour of its own"


def test_live_completion_without_tokens_and_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    output = terminal(monkeypatch)
    display = Display(8)
    display.started(0, 4)
    display.completion({"prompt": "", "completion": "x" * 500})
    display.step(record(1, 0.25, 2.0))
    display.close()
    text = "".join(screen(output.getvalue())[5:])
    assert "x" * 160 in text.replace(" ", "") and "x" * 161 not in text and "…" in text


def test_live_panel_survives_values_that_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    output = terminal(monkeypatch)
    display = Display(8)
    display.started(0, 2)
    for value in (float("nan"), float("inf"), 0.0):
        display.step(record(1, value, value))
    display.close()
    assert "step 1/2" in screen(output.getvalue())[0]


def test_evaluations_leave_one_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    output = terminal(monkeypatch)
    display = Display(8)
    display.evaluating("before", 4, 12)
    display.evaluating("before", 12, 12)
    display.started(0, 1)
    display.step(record(1, 0.25, 2.0))
    display.evaluating("after", 4, 12)
    display.evaluating("after", 12, 12)
    display.close()
    display.message("done")
    lines = [line for line in screen(output.getvalue()) if line]
    assert lines[0] == "measuring accuracy before training: 12/12 completions"
    assert lines[1].startswith("step 1/1")
    assert lines[6:] == ["measuring accuracy after training: 12/12 completions", "done"]


def test_without_a_terminal_each_step_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(8)
    display.evaluating("before", 4, 4)
    display.started(0, 120)
    display.step(record(1, 0.25, 2.0))
    display.close()
    line = "step    1/120  reward 0.250  entropy 2.000  grad_norm 0.00  4 tok/s  59:30 left\n"
    assert capsys.readouterr().out == line


def test_sparkline_and_duration() -> None:
    assert sparkline([0, 0.5, 1, 2, -1, float("nan")], 0, 1) == "▁▅██▁ "
    assert sparkline([1, 1], 1, 1) == "▁▁"
    assert len(sparkline([0.0] * 100, 0, 1)) == 24
    assert [duration(seconds) for seconds in (-1, 59.6, 3600, 86399)] == ["0:00", "1:00", "1:00:00", "23:59:59"]


@pytest.mark.slow
def test_a_run_on_a_terminal(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = terminal(monkeypatch)
    flags = ["--steps", "2", "--evaluate", "--eval-problems", "4", "--eval-samples", "2"]
    assert main(command(*flags, task="own.tasks:letters")) == 0
    lines = [line for line in screen(output.getvalue()) if line]
    assert lines[0].startswith("covgrpo: ../tiny on own.tasks:letters, gaussian, 2 steps")
    assert lines[1] == "measuring accuracy before training: 12/12 completions"
    assert [line.split()[0] for line in lines[2:7]] == ["step", "reward", "entropy", "cov", "speed"]
    assert "step 2/2" in lines[2]
    after = lines.index("measuring accuracy after training: 12/12 completions")
    assert "weights " in " ".join(lines[7:after]), "a completion with the weights of its tokens"
    assert lines[after + 1].startswith("accuracy, greedy (held-out, n=4) ")
    assert lines[-1] == "next: covgrpo report out   or load out/model with transformers"


def test_a_chart_needs_no_more_memory_in_a_long_run():
    series = Series(least=0.0)
    for number in range(100_000):
        series.append(float("nan") if number == 5 else number % 1000 / 1000)
    assert len(series.values) == len(series.chart()) == 24 and series.last == 0.999 and series.top == 0.999
    assert series.chart() == sparkline([i / 1000 for i in range(976, 1000)], 0, 0.999)

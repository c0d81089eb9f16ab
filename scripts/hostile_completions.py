"""Completions made to hurt a verifier: text that hangs sympy, eats memory, nests without end or tries to run code.

    python scripts/hostile_completions.py FOLDER [COUNT] [--seed N] [--check] [words of covgrpo eval]

Writes problems.jsonl and completions.jsonl for `covgrpo eval --benchmark ... --completions ...`, and says what accuracy
to expect: every tenth completion is harmless and right, so that a verifier that gives up shows. With ``--check`` it
runs the evaluation in FOLDER and looks at each verdict, for processes that are left, and at a canary: the files of
FOLDER, of a home beside it and of the place where the texts try to write. 1 where anything is not as it should be.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

GOLD = "42"


def tower(rng: random.Random) -> str:
    return "^".join("{" + str(rng.randint(7, 99)) for _ in range(rng.randint(4, 9))) + "}" * 9


def power(rng: random.Random) -> str:
    return f"{rng.randint(2, 9)}**{rng.randint(2, 9)}**{rng.randint(7, 9)}**{rng.randint(7, 9)}"


def factorial(rng: random.Random) -> str:
    return f"{rng.randint(10**6, 10**12)}!" + "!" * rng.randint(0, 3)


def braces(rng: random.Random) -> str:
    depth = rng.randint(5_000, 10_000)
    return "{" * depth + "1" + "}" * rng.choice([0, depth])


def boxes(rng: random.Random) -> str:
    return "\\boxed{" * rng.randint(1_000, 10_000)


def parentheses(rng: random.Random) -> str:
    depth = rng.randint(200, 5_000)
    return "(" * depth + "x" + ")" * depth


def fractions(rng: random.Random) -> str:
    depth = rng.randint(50, 2_000)
    return "\\frac{1}{" * depth + "2" + "}" * depth


def roots(rng: random.Random) -> str:
    depth = rng.randint(50, 1_000)
    return "\\sqrt{" * depth + "2" + "}" * depth


def digits(rng: random.Random) -> str:
    return "".join(rng.choices("0123456789", k=rng.randint(5_000, 90_000)))


def series(rng: random.Random) -> str:
    return f"\\sum_{{n=1}}^{{\\infty}} \\frac{{\\sin(n^{rng.randint(2, 9)})}}{{n^{rng.randint(2, 5)}}}"


def integral(rng: random.Random) -> str:
    return f"\\int_0^{{{rng.randint(2, 99)}}} e^{{\\sin(x^{rng.randint(2, 9)})}} \\log(x + {rng.random()}) dx"


def product(rng: random.Random) -> str:
    return f"\\prod_{{n=1}}^{{{10 ** rng.randint(6, 12)}}} (n^2 + 1)"


def matrix(rng: random.Random) -> str:
    size = rng.randint(20, 60)
    row = " & ".join("x^{2}" for _ in range(size))
    return "\\begin{pmatrix}" + " \\\\ ".join([row] * size) + "\\end{pmatrix}"


def polynomial(rng: random.Random) -> str:
    return f"(x + y + z + {rng.randint(1, 9)})^{{{rng.randint(200, 5_000)}}}"


def equation(rng: random.Random) -> str:
    return " = ".join(f"x^{{{rng.randint(2, 99)}}} + {i}" for i in range(rng.randint(50, 400)))


def intervals(rng: random.Random) -> str:
    return " \\cup ".join(f"[{i}, \\infty)" for i in range(rng.randint(100, 1_000)))


def dollars(rng: random.Random) -> str:
    return "$" * rng.randint(1_000, 50_000) + "answer is"


def anchors(rng: random.Random) -> str:
    return "the final answer is " * rng.randint(500, 4_000)


def spaces(rng: random.Random) -> str:
    return "answer:" + " " * rng.randint(10_000, 90_000) + "="


def code(rng: random.Random) -> str:
    return rng.choice(
        [
            "__import__('os').system('touch HOSTILE')",
            "\\text{__import__('os').system('touch HOSTILE')}",
            '\\sum_{n=1}^{\\infty} \\text{exec(\'open("HOSTILE", "w")\')}^n',
            "eval('9'*10**9)",
            "().__class__.__bases__[0].__subclasses__()",
            "while True: pass",
        ]
    )


def files(rng: random.Random) -> str:
    """Reading and writing files by names that sympy or its parsers may look up."""
    call = rng.choice(["open('HOSTILE','w')", "print(open('/etc/passwd').read())", "preview(x, output='HOSTILE')"])
    hidden = call.encode().hex()
    return rng.choice([call, f"\\operatorname{{{call}}}", f"lambdify(x, {call})", f"sympify('{hidden}')"])


def tex_files(rng: random.Random) -> str:
    return rng.choice(
        [
            "\\input{/etc/passwd}",
            "\\immediate\\write18{touch HOSTILE}",
            "\\openout\\f=HOSTILE \\write\\f{x}",
            "\\csname input\\endcsname{/dev/zero}",
        ]
    )


def macros(rng: random.Random) -> str:
    """Each macro is ten of the one before: 10^depth letters where they are expanded."""
    names = [f"\\m{chr(97 + i)}" for i in range(rng.randint(9, 20))]
    lines = [f"\\def{b}{{{a * 10}}}" for a, b in itertools.pairwise(names)]
    return f"\\def{names[0]}{{7}}" + "".join(lines) + names[-1]


def look_alikes(rng: random.Random) -> str:
    """Numbers near the right one, in digits and signs of other scripts."""
    number = str(rng.choice([24, 41, 43, 420, 402]))
    zero = rng.choice([0xFF10, 0x0660, 0x0966, 0x1D7CE, 0x1D7D8])
    return rng.choice(["", "\u200b", "\u2212", "\u202e"]) + "".join(chr(zero + int(digit)) for digit in number)


def control(rng: random.Random) -> str:
    return "".join(chr(rng.randrange(32)) for _ in range(rng.randint(10, 1_000))) + "\x1b]0;title\x07\x1b[2J"


def page(rng: random.Random) -> str:
    """Text that would run or load something in a report."""
    return rng.choice(
        [
            "</script><script>document.title='HOSTILE'</script>",
            "<img src=x onerror=document.title='HOSTILE'>",
            "<style>*{display:none}</style><base href=//example.org>",
            "<svg/onload=document.title='HOSTILE'><!--",
            "javascript:document.title='HOSTILE'",
            "]]></textarea></title><iframe srcdoc='<script>parent.document.title=1</script>'>",
        ]
    )


def megabyte(rng: random.Random) -> str:
    """One in ten is 1 MB long, the others 10 kB."""
    size = 1_000_000 if rng.random() < 0.1 else 10_000
    piece = rng.choice(["(", "\\frac{1}{", "$", "7", "x+", "\\left(", " ", "\\\\", "{", "^"])
    return piece * (size // len(piece))


def bytes_of_all_kinds(rng: random.Random) -> str:
    return "".join(chr(rng.choice([0, 7, 0x202E, 0xFFFD, 0x1F600, 0x0301, 0x200B])) for _ in range(5_000))


KINDS: tuple[Callable[[random.Random], str], ...] = (
    *(tower, power, factorial, braces, boxes, parentheses, fractions, roots, digits, series, integral, product, matrix),
    *(polynomial, equation, intervals, dollars, anchors, spaces, code, bytes_of_all_kinds),
    *(files, tex_files, macros, look_alikes, control, page, megabyte),
)


def completions(count: int, seed: int = 0) -> Iterator[tuple[str, float]]:
    """(completion, right score) pairs; none of the hostile ones is 42."""
    rng = random.Random(seed)  # noqa: S311 (not cryptography)
    for i in range(count):
        if i % 10 == 9:
            yield "<think>" + "hm " * rng.randint(0, 500) + "</think> The answer is \\boxed{42}.", 1.0
            continue
        text = KINDS[i % len(KINDS)](rng)
        yield rng.choice(["\\boxed{%s}", "The answer is $%s$.", "%s"]) % text, 0.0


def write(path: Path, count: int, seed: int = 0) -> list[float]:
    """Write the two files into a folder; the right score of each completion."""
    path.mkdir(parents=True, exist_ok=True)
    pairs = list(completions(count, seed))
    problem = {"id": "hostile", "problem": "What is 6 x 7?", "answer": GOLD}
    (path / "problems.jsonl").write_text(json.dumps(problem) + "\n", encoding="utf-8")
    lines = (json.dumps({"id": "hostile", "completion": text}) + "\n" for text, _ in pairs)
    (path / "completions.jsonl").write_text("".join(lines), encoding="utf-8")
    return [score for _, score in pairs]


def what_went_wrong(path: Path, right: list[float], words: Sequence[str] = ()) -> list[str]:
    """Evaluate the files of a folder in a process of its own; a sentence for each thing that should not have been."""
    path = path.resolve()
    home = path / "home"
    home.mkdir(exist_ok=True)
    (home / "canary").write_text("as it was", encoding="utf-8")
    before = _files(path)
    words = ["--benchmark", "problems.jsonl", "--completions", "completions.jsonl", "--scores", "scores.jsonl", *words]
    environment = {**os.environ, "HOME": str(home), "HF_HUB_OFFLINE": "1", "COVGRPO_HOSTILE": str(path)}
    done = subprocess.run(
        [sys.executable, "-m", "covgrpo", "eval", *words],
        cwd=path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        return [f"exit code {done.returncode}: {done.stderr[-300:]}"]
    print(done.stdout, end="")
    scores = [json.loads(line)["score"] for line in (path / "scores.jsonl").read_text(encoding="utf-8").splitlines()]
    (path / "scores.jsonl").unlink()
    wrong = [
        f"completion {i}: {a} instead of {b}" for i, (a, b) in enumerate(zip(scores, right, strict=True)) if a != b
    ]
    changed = [f"file {name} was made, changed or removed" for name in sorted(_files(path) ^ before)]
    return [*wrong, *changed, *(f"process {pid} is left" for pid in _left(path))]


def _files(path: Path) -> set[tuple[str, int, float]]:
    """(name, size, time of change) of all files below a folder."""
    return {
        (str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime)
        for file in path.rglob("*")
        if file.is_file()
    }


def _left(path: Path) -> list[int]:
    """Processes that were started by the evaluation in ``path`` and go on, by their environment; none but on Linux."""
    mark, found = f"COVGRPO_HOSTILE={path}".encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def main(folder: str, count: int = 1_000, seed: int = 0, check: bool = False, words: Sequence[str] = ()) -> int:
    """Write, and check where asked for."""
    right = write(Path(folder), count, seed)
    print(f"expected accuracy {sum(right) / len(right):.3f} of {len(right)} completions")
    wrong = what_went_wrong(Path(folder), right, words) if check else []
    for sentence in wrong:
        print(sentence)
    if check:
        print(f"{count} completions of {len(KINDS)} kinds, seed {seed}: {len(wrong)} failures")
    return bool(wrong)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("count", type=int, nargs="?", default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true")
    given, more = parser.parse_known_args()
    sys.exit(main(given.folder, given.count, given.seed, given.check, more))

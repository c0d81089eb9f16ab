"""``covgrpo bench``."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from covgrpo.bench.case import SWEEPS, BenchCase, sweep
from covgrpo.cli.flags import add_option_flags, given_options
from covgrpo.errors import UserError

_EXAMPLE = """examples:
  covgrpo bench
  covgrpo bench --zero-share 0 --steps 5
  covgrpo bench --completion-length 256 --lengths ragged --micro-batch-size 8 --zero-share 0 --steps 3
  covgrpo bench --sweep completion-length --points 4 16 64 --steps 3 --plot docs
"""


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "bench",
        help="time a training step beside stock TRL's",
        description="Times training steps of covgrpo and of TRL's GRPOTrainer in turn, on the same prompts and the "
        "same completions, each in a process of its own. Run it on a machine that does nothing else.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_option_flags(parser, BenchCase)
    parser.add_argument("--sweep", choices=tuple(SWEEPS), help="measure at several points of one axis")
    parser.add_argument("--points", nargs="+", metavar="X", help="points of the sweep; default: a few")
    parser.add_argument("--only", choices=("covgrpo", "trl"), help="one side alone, on completions of its own")
    parser.add_argument("--plot", metavar="FOLDER", help="draw the sweep into FOLDER/bench-SWEEP.png")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    from covgrpo.bench.measure import measure
    from covgrpo.bench.side_process import SIDES

    case = BenchCase(**given_options(args, BenchCase))
    case.check()
    for flag in ("points", "plot"):
        if getattr(args, flag) and not args.sweep:
            raise UserError(f"--{flag} needs --sweep.")
    cases = sweep(case, args.sweep, _points(args)) if args.sweep else [case]
    plot = _plot_function(args) if args.plot else None
    sides = (args.only,) if args.only else SIDES
    results = []
    for one in cases:
        if args.sweep:
            field = SWEEPS[args.sweep][0]
            print(f"{field} {getattr(one, field)}:", file=sys.stderr)
        results.append(measure(one, sides, _progress).to_dict())
        if not args.json:
            _print(results[-1], sides)
    if args.json:
        print(json.dumps({"sweep": args.sweep, "results": results} if args.sweep else results[0], indent=2))
    if plot is not None:
        plot(results, args.sweep, Path(args.plot) / f"bench-{args.sweep}.png")
    return 0


def _points(args: argparse.Namespace) -> list[Any] | None:
    if args.points is None:
        return None
    field, defaults = SWEEPS[args.sweep]
    kind = type(defaults[0])
    try:
        return [kind(text) for text in args.points]
    except ValueError:
        raise UserError(f"--points: {field} takes {kind.__name__} values, not {' '.join(args.points)!r}.") from None


def _plot_function(args: argparse.Namespace) -> Any:
    try:
        from covgrpo.bench.plots import plot_sweep
    except ImportError:
        raise UserError("--plot needs matplotlib: pip install 'covgrpo[plot]'.") from None
    if args.only:
        raise UserError("--plot compares both sides; leave --only out.")
    if not Path(args.plot).is_dir():
        raise UserError(f"--plot: folder {args.plot!r} does not exist.")
    return plot_sweep


def _progress(side: str, step: int, seconds: float) -> None:
    print(f"  step {step:>3}  {side:<8} {seconds:8.2f} s", file=sys.stderr, flush=True)


def _print(result: dict[str, Any], sides: tuple[str, ...]) -> None:
    case, model = result["case"], result["model"]
    print(
        f"{case['model']} ({model['parameters'] / 1e6:.0f}M parameters), {case['prompts_per_step']} x "
        f"{case['num_generations']} completions of at most {case['completion_length']} tokens, "
        f"{'bf16' if model['bf16'] else 'fp32'}, {model['threads']} threads, {case['steps']} steps; "
        f"groups without advantage {result[sides[0]]['zero_share']:.2f}; "
        f"matrix products {result['matmul_peak_flops'] / 1e9:.0f} GFLOP/s"
    )
    print(
        f"{'':<9}{'s/step: median':>15}{'mean':>9}{'min':>9}{'max':>9}{'tokens/s':>10}"
        f"{'peak GB':>9}{'of peak':>9}   share of the time"
    )
    for side in sides:
        found = result[side]
        seconds = found["step_s"]
        shares = ", ".join(f"{phase} {share:.2f}" for phase, share in found["share"].items())
        print(
            f"{side:<9}{seconds['median']:>15.2f}{seconds['mean']:>9.2f}{seconds['min']:>9.2f}{seconds['max']:>9.2f}"
            f"{found['tokens_per_s']:>10.1f}{found['peak_memory_bytes'] / 1e9:>9.2f}{found['peak_fraction']:>9.3f}"
            f"   {shares}"
        )
    ratios = result["ratios"]
    if ratios:
        print(
            f"a step {ratios['step_mean']:.1f}x faster on average ({ratios['step_median_of_pairs']:.1f}x in the median "
            f"step), memory 1/{ratios['peak_memory']:.1f}, sampling {ratios['sampled_tokens_per_s']:.1f}x the tokens/s"
        )

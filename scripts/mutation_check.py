"""Break each ingredient of the method in a copy of the core, and see that the test named for it fails.

    python scripts/mutation_check.py

Exit code 1 unless every mutation is caught by its test and the unbroken copy passes all of them.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

# What the tests need but for the package itself is imported once; each test is a fork.
import hypothesis  # noqa: F401
import numpy as np  # noqa: F401
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
CORE = Path("src/covgrpo/core")
OUTPUT = "output.txt"
OTHER_COPY = 100  # exit code: the tests would have run on another copy

# ingredient: (file, text that stands there exactly once, broken text, test)
MUTATIONS = {
    "token-weighted mean of A": (
        "covariance.py",
        "tokens.mean_K(tokens.A), by_completion=False",
        "(lambda n: tokens.sum_K(tokens.A / n) / tokens.sum_K(1 / n))(tokens.each_row(tokens.num_tokens_B)), False",
        "test_ingredient_mean_of_advantages_is_token_weighted",
    ),
    "centring of l": (
        "covariance.py",
        "l.sub_(tokens.mean(l)), ",
        "l, ",
        "test_ingredient_logps_are_centred",
    ),
    "sigma about the mean": (
        "tokens.py",
        "(x - self.mean(x)).square_()",
        "x.square()",
        "test_ingredient_sigma_is_about_the_mean",
    ),
    "kernel at 0": (
        "weighting/gaussian.py",
        "log_kernel(tokens, c, ",
        "log_kernel(tokens, c - tokens.mean(c), ",
        "test_ingredient_kernel_is_centred_at_zero",
    ),
    "mean-1 normalisation": (
        "weighting/kernel.py",
        "w.mul_(tokens.each(N_K / tokens.sum_K(w)))",
        "w",
        "test_ingredient_weights_are_normalised",
    ),
    "stop-gradient": (
        "tokens.py",
        "self._logps, self._advantages, self.mask = logps.detach(), ",
        "self._logps, self._advantages, self.mask = logps, ",
        "test_ingredient_stop_gradient",
    ),
    "through: gradient in the kernel": (
        "weighting/gaussian_through.py",
        "precision.square() - v * c * precision",
        "precision.square() - 0 * v * c * precision",
        "test_ingredient_through_the_kernel",
    ),
    "through: gradient in sigma": (
        "weighting/gaussian_through.py",
        "h = (c - mean(c)) * ",
        "h = 0 * (c - mean(c)) * ",
        "test_ingredient_through_sigma",
    ),
    "through: gradient in the normaliser": (
        "weighting/gaussian_through.py",
        "v = w * (nA - mean(nA * w))",
        "v = w * nA",
        "test_ingredient_through_the_normaliser",
    ),
    "through: gradient in mean(l)": (
        "covariance.py",
        "self.tokens.each_row(self.tokens.row_mean(x)) if",
        "0 if",
        "test_ingredient_through_the_mean_of_logps",
    ),
    "through: mean(l) by completions": (
        "covariance.py",
        "l.sub_(tokens.each_row(tokens.row_mean(l)))",
        "l.sub_(tokens.mean(l))",
        "test_ingredient_through_mean_of_logps_by_completions",
    ),
    "through: mean(A) over completions": (
        "covariance.py",
        "mean_A_K = tokens.sum_rows(tokens.row_mean(tokens.A) * any_B) / tokens.sum_rows(any_B).clamp(min=1)",
        "mean_A_K = tokens.mean_K(tokens.A)",
        "test_ingredient_through_mean_of_advantages_over_completions",
    ),
    "through: the loss's normaliser": (
        "weighting/gaussian_through.py",
        'if normaliser == "completion":',
        'if normaliser == "nothing":',
        "test_ingredient_through_the_losss_normaliser",
    ),
    "mask": (
        "tokens.py",
        "mask.detach().bool()",
        "torch.ones_like(mask, dtype=torch.bool)",
        "test_ingredient_mask",
    ),
    "neutral: sign of the slope": (
        "weighting/neutral.py",
        "slope_K = ((kappa * mean_K + (centre_K - mean_K)) / variance_K)",
        "slope_K = -((kappa * mean_K + (centre_K - mean_K)) / variance_K)",
        "test_ingredient_neutral_slope_has_the_right_sign",
    ),
    "neutral: kappa": (
        "weighting/neutral.py",
        "(kappa * mean_K + ",
        "(mean_K + ",
        "test_ingredient_neutral_uses_kappa",
    ),
    "neutral: second pass": (
        "weighting/neutral.py",
        "left, open_K = left.without_clamped(line)\n        if not open_K.any():",
        "open_K = torch.zeros_like(mean_K)\n        if True:",
        "test_ingredient_neutral_meets_its_target_after_clamping",
    ),
    "neutral: clamp": (
        "weighting/neutral.py",
        "self.line.at(c, group).clamp(min=0)\n",
        "self.line.at(c, group)\n        return w\n",
        "test_ingredient_neutral_is_not_negative",
    ),
    "neutral: mean 1": (
        "weighting/neutral.py",
        "return _Solution(line, cut, total_K / size_K, ",
        "return _Solution(line, cut, torch.ones_like(mean_K), ",
        "test_ingredient_neutral_has_mean_one",
    ),
    "neutral: sample size": (
        "weighting/neutral.py",
        "MIN_ESS = 0.5",
        "MIN_ESS = 1e-9",
        "test_ingredient_neutral_keeps_half_of_the_effective_sample_size",
    ),
    "per sign: sigma": (
        "weighting/gaussian_per_sign.py",
        "tokens.sum_K((c - tokens.each(mean_K)).square_().where(side, 0)) / size_K",
        "tokens.variance_K(c)",
        "test_ingredient_per_sign_sigma_is_that_of_the_side",
    ),
    "per sign: mean 1": (
        "weighting/gaussian_per_sign.py",
        "mean_one(tokens, log_w, size_K)",
        "mean_one(tokens, log_w)",
        "test_ingredient_per_sign_mean_is_one_on_each_side",
    ),
    "neutral_common: which tokens": (
        "weighting/neutral_common.py",
        "damped = (l > tokens.mean(l)) & ",
        "damped = (l < torch.inf) & ",
        "test_ingredient_neutral_common_leaves_rare_tokens_alone",
    ),
    "neutral_common: which side": (
        "weighting/neutral_common.py",
        "(c * tokens.each(sum_K.sign()) > ",
        "(c > ",
        "test_ingredient_neutral_common_damps_the_side_that_moves_the_entropy",
    ),
    "neutral_common: the share": (
        "weighting/neutral_common.py",
        "delta_K = torch.where(part_K == 0, 0, sum_K / part_K)",
        "delta_K = torch.ones_like(part_K)",
        "test_ingredient_neutral_common_takes_the_covariance_to_zero",
    ),
    "neutral_common: sample size": (
        "weighting/neutral_common.py",
        "torch.minimum(delta_K, 1 / (f_K + (f_K * (1 - f_K)).sqrt())).clamp(max=1)",
        "delta_K.clamp(max=1)",
        "test_ingredient_neutral_common_keeps_half_of_the_effective_sample_size",
    ),
    "delight: sign of A": (
        "weighting/delight.py",
        "tokens.A * -tokens.l",
        "tokens.A.abs() * -tokens.l",
        "test_ingredient_delight_has_the_sign_of_the_advantage",
    ),
}


def start_test(folder: Path, file: str, text: str, broken: str, test: str) -> int:
    """Fork a process that runs a test on a broken copy of the package (without ``file``: on an unbroken one).

    Returns its id. It ends with pytest's exit code, and leaves what it printed in ``folder``.

    Raises:
        ValueError: the text to be broken does not stand there once.
    """
    shutil.copytree(ROOT / "src/covgrpo", folder / "covgrpo")
    if file:
        path = folder / "covgrpo/core" / file
        content = path.read_text()
        if content.count(text) != 1:
            raise ValueError(f"{CORE / file} holds {text!r} {content.count(text)} times, not once: mend MUTATIONS")
        path.write_text(content.replace(text, broken))
    pid = os.fork()
    if pid:
        return pid
    code = OTHER_COPY
    try:
        os.dup2(os.open(folder / OUTPUT, os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(1, 2)
        os.chdir(ROOT)
        sys.path.insert(0, str(folder))
        import covgrpo

        print("on", covgrpo.__file__, flush=True)
        if covgrpo.__file__.startswith(str(folder)):
            # Without conftest.py, which loads transformers: the core's tests need torch alone.
            words = ["-q", "-x", "--noconftest", "-p", "no:cacheprovider", "tests/test_core_ingredients.py", "-k", test]
            code = int(pytest.main(words))
        sys.stdout.flush()
    finally:
        os._exit(code)


def finish(ingredient: str, file: str, test: str, code: int, folder: Path) -> tuple[bool, str]:
    """Return whether the test failed on a broken copy, or passed on the unbroken one, and a line that says so.

    Raises:
        ValueError: no test ran, or not on the copy.
    """
    if code not in (0, 1):
        raise ValueError(f"no test {test!r} ran on the copy:\n{(folder / OUTPUT).read_text()[-2000:]}")
    passed = code == 0
    good = passed != bool(file)
    return good, f"{'ok  ' if good else 'BAD '} {ingredient:<26} {test} {'passes' if passed else 'fails'}"


def main() -> int:
    torch.set_num_threads(1)
    cases = {"(unbroken)": ("", "", "", "test_ingredient"), **MUTATIONS}
    good, running, waiting = True, {}, list(cases)
    with tempfile.TemporaryDirectory() as temporary:
        while waiting or running:
            if waiting and len(running) < (os.cpu_count() or 1):
                name, folder = waiting[0], Path(temporary).resolve() / str(len(waiting))
                running[start_test(folder, *cases[waiting.pop(0)])] = name, folder
                continue
            pid, status = os.wait()
            name, folder = running.pop(pid)
            file, _, _, test = cases[name]
            passed, line = finish(name, file, test, os.waitstatus_to_exitcode(status), folder)
            good &= passed
            print(line, flush=True)
    return int(not good)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(str(error))

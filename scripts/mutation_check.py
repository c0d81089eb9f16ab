"""Break each ingredient of the method in a copy of the core, and see that the test named for it fails.

    python scripts/mutation_check.py

Exit code 1 unless every mutation is caught by its test and the unbroken copy passes all of them.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = Path("src/covgrpo/core")

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
        "w.mul_(tokens.each(tokens.num_tokens_K / tokens.sum_K(w)))",
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
}


def run_test(source: Path, test: str) -> bool:
    """Return whether the tests whose name begins so pass on the package at ``source``."""
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    # Without conftest.py, which loads transformers: the core's tests need torch alone.
    words = ["-q", "-x", "--noconftest", str(ROOT / "tests/test_core_ingredients.py"), "-k", test]
    program = "import sys, covgrpo, pytest; print(covgrpo.__file__, flush=True); sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, *words]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, cwd=ROOT)
    used = done.stdout.splitlines()[0] if done.stdout else done.stderr
    if not used.startswith(str(source)):
        raise ValueError(f"the tests would run on {used}, not on the copy in {source}")
    if done.returncode not in (0, 1):
        raise ValueError(f"no test {test!r} ran:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 0


def check(ingredient: str, file: str, text: str, broken: str, test: str) -> tuple[bool, str]:
    """Return whether the test fails on the broken copy (without ``file``: passes on the unbroken one), and a line."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder).resolve()
        shutil.copytree(ROOT / "src/covgrpo", source / "covgrpo")
        if file:
            path = source / "covgrpo/core" / file
            content = path.read_text()
            if content.count(text) != 1:
                raise ValueError(f"{CORE / file} holds {text!r} {content.count(text)} times, not once: mend MUTATIONS")
            path.write_text(content.replace(text, broken))
        passed = run_test(source, test)
    good = passed != bool(file)
    return good, f"{'ok  ' if good else 'BAD '} {ingredient:<26} {test} {'passes' if passed else 'fails'}"


def main() -> int:
    cases = {"(unbroken)": ("", "", "", "test_ingredient"), **MUTATIONS}
    good = True
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for passed, line in pool.map(lambda name: check(name, *cases[name]), cases):
                good &= passed
                print(line, flush=True)
    except ValueError as error:
        sys.exit(str(error))
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())

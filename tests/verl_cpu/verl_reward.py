"""verl's reward function for the tests: the share of a completion's characters that a verifier of covgrpo accepts."""

from covgrpo.tasks.digits import score


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    characters = solution_str.replace(" ", "")
    accepted = sum(score({"gold": ground_truth}, character) for character in characters)
    return accepted / max(1, len(characters))

"""The paper, for the model cards that TRL writes."""

PAPER = {
    "title": "Taming Extreme Tokens: Covariance-Aware GRPO with Gaussian-Kernel Advantage Reweighting",
    "id": "2605.11538",
    "citation": """\
@inproceedings{covgrpo2026,
    title     = {{Taming Extreme Tokens: Covariance-Aware GRPO with Gaussian-Kernel Advantage Reweighting}},
    booktitle = {Proceedings of the Annual Meeting of the Association for Computational Linguistics},
    year      = 2026,
    eprint    = {arXiv:2605.11538},
}""",
}

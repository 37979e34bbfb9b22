"""Settings of `train.grpo` that are allowed but rarely intended."""

from togi.objectives.rules import UNCLIPPED
from togi.stages.training.grpo import PolicySampling, TrainGrpo

SUMMED = ("bnpo", "dr_grpo", "dapo", "cispo")
"""Types of loss in which an answer's weight grows with its length."""
WIDE = 0.01
"""The smallest eps that is reported as too wide for the ratio of a whole answer. GSPO: 3e-4."""


def doubts(settings: TrainGrpo) -> list[tuple[str, str]]:
    """The names and messages of the alarms that these settings deserve."""
    found = {"biased_sampling": _biased(settings.sampling), "sequence_level": _not_gspo(settings)}
    return [(name, message) for name, message in found.items() if message]


def _biased(sampling: PolicySampling) -> str:
    used = {"top_p": sampling.top_p < 1, "top_k": sampling.top_k > 0, "min_p": sampling.min_p > 0}
    names = ", ".join(name for name, on in used.items() if on)
    if not names:
        return ""
    return (
        f"{names} truncates the sampled distribution, which the trainer's log-probabilities do not reflect: the policy "
        "gradient is biased; sample with temperature alone"
    )


def _not_gspo(settings: TrainGrpo) -> str:
    """What differs from GSPO (arXiv 2507.18071) if the ratio is that of whole answers. The first update on a batch of
    samples has a ratio of 1, which nothing clips."""
    loss = settings.loss
    if loss.level != "sequence":
        return ""
    clips = loss.type not in UNCLIPPED and (settings.updates > 1 or settings.staleness > 0)
    wrong = []
    if loss.type in SUMMED:
        wrong.append(f"type: {loss.type} weights each answer by its length")
    if clips and loss.clip >= WIDE:
        wrong.append(
            f"eps: {loss.clip:g} is the width for single tokens, which the ratio of a whole answer hardly ever reaches"
        )
    if not wrong:
        return ""
    gspo = "{type: grpo, level: sequence, eps: 3.0e-4, eps_high: 4.0e-4}"
    return f"loss.level: sequence compares whole answers, but {', and '.join(wrong)}; GSPO is loss: {gspo}"

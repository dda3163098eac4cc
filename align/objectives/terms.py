"""The terms that a config asks for. `method` is what people write; here it becomes terms, and nowhere else is it compared with anything."""

from collections.abc import Sequence

from torch import Tensor

from align.config import TrainConfig
from align.data.batches import Batch
from align.objectives.denoisers import Denoisers
from align.objectives.guidance import cfg_reward_loss
from align.objectives.kl import ikl_loss
from align.objectives.metrics import Metrics
from align.objectives.score_divergence import score_divergence_loss
from align.objectives.term import ByAutograd, Term
from align.objectives.weightings import WEIGHTS
from align.rewards.differentiable import Rewards

#: method -> its divergence; rewards are a term wherever there are any.
DIVERGENCES = {"di": "kl", "di++": "kl", "sim": "score_divergence", "di*": "score_divergence"}


def terms(config: TrainConfig, denoisers: Denoisers, rewards: Rewards) -> list[Term]:
    """The terms of the student's loss, in the order of their sum (DI* eq. 3.3, DI++ eq. 3.7-3.9)."""
    build = {"kl": _kl, "score_divergence": _score_divergence}[DIVERGENCES[config.method]]
    found: Sequence[Term] = [build(config, denoisers)]
    if config.cfg.mode == "out":
        found = [*found, _guidance(config, denoisers)]
    if rewards:
        found = [*found, _reward(rewards)]
    return list(found)


def _kl(config: TrainConfig, denoisers: Denoisers) -> Term:
    weight = WEIGHTS[config.divergence.weight]

    def loss(x0: Tensor, batch: Batch, metrics: Metrics) -> Tensor:
        networks = {"assistant": denoisers.assistant(batch), "reference": denoisers.reference(batch)}
        return ikl_loss(x0, batch.noise("diffusion"), batch.sigma, weight=weight, **networks)

    return ByAutograd("divergence", loss)


def _score_divergence(config: TrainConfig, denoisers: Denoisers) -> Term:
    options, weight = config.divergence, WEIGHTS[config.divergence.weight]

    def loss(x0: Tensor, batch: Batch, metrics: Metrics) -> Tensor:
        return score_divergence_loss(
            x0, batch.noise("diffusion"), batch.sigma, assistant=denoisers.assistant(batch), reference=denoisers.reference(batch),
            distance=options.distance, huber_c=options.huber_c, gradient=options.gradient, weight=weight,
        )  # fmt: skip

    return ByAutograd("divergence", loss)


def _guidance(config: TrainConfig, denoisers: Denoisers) -> Term:
    alpha, weight = config.cfg.scale - 1, WEIGHTS[config.divergence.weight]

    def loss(x0: Tensor, batch: Batch, metrics: Metrics) -> Tensor:
        networks = {"conditional": denoisers.conditional(batch), "unconditional": denoisers.unconditional(batch)}
        return alpha * cfg_reward_loss(x0, batch.noise("diffusion"), batch.sigma, weight=weight, **networks)

    return ByAutograd("cfg", loss)


def _reward(rewards: Rewards) -> Term:
    def loss(x0: Tensor, batch: Batch, metrics: Metrics) -> Tensor:
        weighted, each = rewards.some_at_a_time(x0, batch.prompts)
        for name, score in each.items():
            metrics.add(f"reward/{name}", score.mean())
        return -weighted

    return ByAutograd("reward", loss)

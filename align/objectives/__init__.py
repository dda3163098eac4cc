"""The losses of Diff-Instruct, SIM, Diff-Instruct++ and Diff-Instruct*.

Notation: `x = x0 + sigma * noise` is the student's image `x0 = G(z)` with noise added. `assistant` and `reference` are
denoisers `(x: [B, ...], sigma: [B]) -> x0_hat: [B, ...]` bound to their prompts; the assistant follows the student's
distribution, the reference is what the student must stay close to. `u = assistant(x) - reference(x)` is the difference
of their scores times sigma^2.

Every function takes tensors and returns an unreduced `[B]` tensor, summed over all other dimensions; take its mean over
the batch and call `backward()`. In the divergences no gradient reaches the parameters of assistant or reference: only
x0, and whatever produced it, receives one.

Papers: DI++ = Diff-Instruct++ (Luo 2024); DI* = Diff-Instruct* (Luo et al. 2024); SIM = Score Implicit Matching (Luo et
al. 2024); SiD = Score identity Distillation (Zhou et al. 2024).
"""

from align.objectives.denoisers import guided
from align.objectives.denoising import assistant_loss
from align.objectives.guidance import cfg_reward_loss
from align.objectives.kl import ikl_loss
from align.objectives.score_divergence import Gradient, score_divergence_loss
from align.objectives.weightings import WEIGHTS, Weight
from evaluate.diffusion import Denoiser
from prompts.extensions import extended

__path__ = extended(__path__, "objectives")

__all__ = [
    "WEIGHTS",
    "Denoiser",
    "Gradient",
    "Weight",
    "assistant_loss",
    "cfg_reward_loss",
    "guided",
    "ikl_loss",
    "score_divergence_loss",
]

"""The methods, by the names that papers give them: nothing else in the code tells them apart."""

from typing import NamedTuple


class Paper(NamedTuple):
    """A method's name, what it does in a sentence, and where it was published."""

    name: str
    does: str
    reference: str
    arxiv: str


class Method(NamedTuple):
    """divergence: the term of `align.objectives` that keeps the student near the reference. rewarded: whether it needs
    rewards, or takes none. otherwise: the method that is the other of the two.
    """

    divergence: str
    rewarded: bool
    otherwise: str
    paper: Paper

    @property
    def of_scores(self) -> bool:
        """Whether its divergence is one of scores, with a distance and ways to take its gradient."""
        return self.divergence == "score_divergence"


METHODS = {
    "di": Method(
        divergence="kl",
        rewarded=False,
        otherwise="di++",
        paper=Paper(
            "Diff-Instruct",
            "The generator's diffused distribution is moved towards the reference's, along the gradient of their"
            " integral KL divergence.",
            "Luo, Hu, Zhang, Sun, Li, Zhang: Diff-Instruct: A Universal Approach for Transferring Knowledge From"
            " Pre-trained Diffusion Models (2023)",
            "2305.18455",
        ),
    ),
    "sim": Method(
        divergence="score_divergence",
        rewarded=False,
        otherwise="di*",
        paper=Paper(
            "Score Implicit Matching",
            "The generator's diffused distribution is moved towards the reference's, along the gradient of a divergence"
            " of their scores.",
            "Luo, Huang, Geng, Kolter, Qi: One-Step Diffusion Distillation through Score Implicit Matching (2024)",
            "2410.16794",
        ),
    ),
    "di++": Method(
        divergence="kl",
        rewarded=True,
        otherwise="di",
        paper=Paper(
            "Diff-Instruct++",
            "The generator maximises a reward while an integral KL divergence keeps it close to the reference.",
            "Luo: Diff-Instruct++: Training One-step Text-to-image Generator Model to Align with Human Preferences"
            " (2024)",
            "2410.18881",
        ),
    ),
    "di*": Method(
        divergence="score_divergence",
        rewarded=True,
        otherwise="sim",
        paper=Paper(
            "Diff-Instruct*",
            "The generator maximises a reward while a divergence of scores keeps it close to the reference.",
            "Luo, Zhang, Zhang, Geng: Diff-Instruct*: Towards Human-Preferred One-step Text-to-image Generative Models"
            " (2024)",
            "2410.20898",
        ),
    ),
}

"""Generators: how the student's network makes an image of a batch's noise.

A file here, or in an extension's `generators/`, is one where it has `Options`, a `GeneratorOptions` with what
else it wants to be told, and `build(options, preconditioning, source=...) -> Generator`; source is what to
call the reference in an error.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import BeforeValidator, Field, SerializeAsAny
from torch import Tensor, nn

from align.options import Config
from prompts.extensions import extended, member

__path__ = extended(__path__, "generators")

if TYPE_CHECKING:
    from align.data.batches import Batch


#: What would put other noise levels in place of those that a scheduler is given.
SPACED_ANEW = dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"), False)
#: The same, and that the last step ends without noise.
AS_GIVEN = {**SPACED_ANEW, "final_sigmas_type": "zero"}
#: input_scale -> the stock scheduler whose single step is `G(z, c)`, its options over the reference's, and the guidance
#: that is none. Noise scaled by sigma_init is what EulerDiscreteScheduler does; unit variance is LCMScheduler's.
SCHEDULERS: dict[str, tuple[str, dict[str, Any], float]] = {
    "sigma_init": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing", **AS_GIVEN}, 1.0),
    # At the usual scaling of 10 a little of the noisy image stays in what it makes of the lowest levels.
    "unit_variance": ("LCMScheduler", {"clip_sample": False, "thresholding": False, "timestep_scaling": 1e6}, 0.0),
}
#: What keeps a flow's stock scheduler at the times that it is given.
UNSHIFTED = {
    "shift": 1.0, "use_dynamic_shifting": False, "shift_terminal": None, "invert_sigmas": False, **SPACED_ANEW,
}  # fmt: skip
#: The guidance that is none for every flow: most pipelines count from 1, Z-Image's from 0.
UNGUIDED = 0.0


class GeneratorOptions(Config):
    """`G(z, c) = D(k z, sigma_init, c)`; k is sigma_init, or for `unit_variance`, where the network sees z itself
    (DMD2's), sqrt(1 + sigma_init^2), and 1 + sigma_init for a network of flow matching.
    """

    name: str = "one_step"
    sigma_init: float = Field(
        2.5, gt=0, allow_inf_nan=True, description="for a flow t / (1 - t), and .inf for noise alone"
    )
    input_scale: Literal["sigma_init", "unit_variance"] = "sigma_init"

    def stock_scheduler(self, *, flow: bool) -> tuple[str, dict[str, Any], float]:
        """What draws the same, as an entry of `SCHEDULERS`. flow: whether the network is one of flow matching."""
        if flow:
            return "FlowMatchEulerDiscreteScheduler", {**UNSHIFTED, "stochastic_sampling": False}, UNGUIDED
        return SCHEDULERS[self.input_scale]


def _as_its_own(value: Any) -> Any:
    """The generator's options as its file has them; of `one_step`, and of what is no mapping, pydantic sees to it."""
    name = value.get("name", "one_step") if isinstance(value, Mapping) else "one_step"
    if name == "one_step":
        return value
    return member("align.generators", name, "build", what="generator.name").Options.model_validate(value)


#: Options as a config holds them: those of the generator that they name.
AnyGenerator = Annotated[SerializeAsAny[GeneratorOptions], BeforeValidator(_as_its_own)]


class Generator(Protocol):
    """Makes clean latents, and knows the stock scheduler that draws the same."""

    def sample(self, network: nn.Module, batch: "Batch") -> Tensor:
        """x0 `[B, ...]` of a batch, with a graph to the network's parameters where gradients are on."""

    def interval(self, batch_number: int | None, seed: int) -> tuple[float, float]:
        """The noise levels, from low to high, that the losses of a global batch may be taken at."""

    def is_rewarded(self, batch: "Batch") -> bool:
        """Whether rewards judge what this batch makes."""

    def export(self, scheduler: Any) -> tuple[Any, dict[str, Any]]:
        """The stock scheduler with which diffusers draws what `sample` makes of the same
        noise, and the recipe that calls it.

        scheduler: the reference's.
        """

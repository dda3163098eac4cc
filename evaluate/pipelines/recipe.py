"""A recipe: how a model is put together, and how images are drawn from it. A YAML file:

    pipeline: ../teacher      a folder, hub id or recipe with everything that is not here; without it, this folder
    revision: 462165984030d8  of that hub id; without it, its newest
    variant: fp16             which of its weights; without it, those without a suffix
    unet: unet                a subfolder with a network in place of the pipeline's,
    unet: {repo: tianweiy/DMD2, revision: 19179ac8ee16, file: dmd2_sdxl_1step_unet_fp16.bin}  or a bare file of weights
    delta: {file: delta.pt}   a file of weights to be added to the network's; without `repo` it lies beside the recipe
    lora: {repo: ..., file: ...}                    a LoRA
    scheduler: {name: LCMScheduler, options: {}}    in place of the pipeline's; options over those of the pipeline's
    steps: 1
    timesteps: [625]          in place of the scheduler's own
    sigmas: [1.0, 0.5]        the same for a flow, whose time is 1 where there is noise alone
    guidance_scale: 1.0       as the pipeline counts: 1 is no guidance, for Z-Image 0
    width: 1024               pixels; without it and `height`, the network's own size
    arguments: {eta: 0.3}     further arguments of the pipeline's call
    sampler: {name: best_of, n: 4, scorer: pickscore}   how images are drawn; without it, by the pipeline's call
    dtype: fp16               what it was published to run in, on a GPU
    about: {title: ...}       what it is, for people
    reported_only: ...        why there are no weights to load

A name that is no hub id is of something that lies beside the recipe, or of an embedded model.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator


class _Fields(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class About(_Fields):
    """What people want to know. rows: the papers' tables it is in. parameters: of its network, as they count them."""

    title: str
    rows: tuple[str, ...] = ()
    parameters: PositiveInt | None = None
    licence: str | None = None
    gated: bool = False
    note: str | None = None


class Weights(_Fields):
    """A file of weights: of a hub repository, or without `repo` beside the recipe."""

    repo: str | None = None
    revision: str | None = None
    file: str


class Scheduler(_Fields):
    """A scheduler's class, of diffusers or of `evaluate.pipelines.schedulers`, and options
    over those of the pipeline's own.
    """

    name: str
    options: dict[str, Any] = {}


class Recipe(_Fields):
    """How a model is put together, and how images are drawn from it."""

    about: About | None = None
    reported_only: str | None = None
    pipeline: str | None = None
    revision: str | None = None
    variant: str | None = None
    unet: str | Weights | None = None
    delta: Weights | None = None
    lora: Weights | None = None
    scheduler: Scheduler | None = None
    steps: PositiveInt = 50
    timesteps: tuple[int, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    guidance_scale: float = Field(7.5, ge=0)
    width: int | None = Field(None, ge=8, multiple_of=8)
    height: int | None = Field(None, ge=8, multiple_of=8)
    dtype: Literal["fp32", "fp16", "bf16"] | None = None
    arguments: dict[str, Any] | None = None
    sampler: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        for name in ("timesteps", "sigmas"):
            values = getattr(self, name)
            if values and "steps" in self.model_fields_set and len(values) != self.steps:
                raise ValueError(
                    f"steps {self.steps} contradicts {name}, of which there are {len(values)}; leave steps out"
                )
        return self

    def call(self) -> dict[str, Any]:
        """Arguments for the pipeline's call."""
        steps: dict[str, Any] = {"num_inference_steps": self.steps}
        if self.timesteps:
            steps = {"timesteps": list(self.timesteps)}
        elif self.sigmas:
            steps["sigmas"] = list(self.sigmas)
        size = {name: value for name, value in (("height", self.height), ("width", self.width)) if value is not None}
        return steps | {"guidance_scale": self.guidance_scale} | size | (self.arguments or {})

    def record(self) -> dict[str, Any]:
        """All that an image depends on, for records."""
        return self.model_dump(mode="json", exclude_none=True, exclude={"about", "dtype"})


def describe(recipe: Recipe) -> tuple[str, ...]:
    """What it is, steps, guidance, size, parameters, and licence. '-' where nobody has said."""
    fields, about = recipe.model_fields_set, recipe.about
    size = f"{recipe.width} x {recipe.height}" if recipe.width and recipe.height else "-"
    if about is None:  # an embedded model
        about = About(title="a model of the world shapes", licence="Apache-2.0")
    return (
        about.title,
        str(recipe.steps) if "steps" in fields else "-",
        f"{recipe.guidance_scale:g}" if "guidance_scale" in fields else "-",
        size,
        f"{about.parameters / 1e9:.2g} B" if about.parameters else "-",
        f"{about.licence or '-'}{', gated' if about.gated else ''}",
    )

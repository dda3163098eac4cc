"""The options of the world's own stages: of `align pretrain` and `align reward`."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from align.data.batches import NoiseLevelOptions
from align.options import Config, Fraction, NonNegative
from prompts.shapes.grammar import FAMILIES, MIX


class Fit(Config):
    """How a network is fitted to data: Adam, linear warm-up, cosine decay to zero, an average of the weights."""

    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    warmup: int = Field(100, ge=0, description="steps")
    weight_decay: NonNegative = 0.0
    max_grad_norm: PositiveFloat = 1.0
    ema: Fraction = 0.999
    save_every: PositiveInt = 500


class VaeConfig(Config):
    """Stage `vae`: a diffusers AutoencoderKL on rendered images."""

    stage: Literal["vae"]
    seed: int = Field(0, ge=0)
    fit: Fit
    kl: NonNegative = Field(
        description="weight of the KL term, per image, against mean squared error per channel value"
    )
    architecture: dict[str, Any]


class TeacherConfig(Config):
    """Stage `teacher`: text encoder and UNet, trained together in the latents of a finished autoencoder."""

    stage: Literal["teacher"]
    seed: int = Field(0, ge=0)
    fit: Fit
    vae: str = Field(description="folder of the autoencoder")
    images: PositiveInt = Field(description="images rendered and encoded once, before training")
    mix: Mapping[str, NonNegative] = Field(dict(MIX), description="how often each family of captions is drawn")
    drop_prompt: Fraction = Field(0.1, description="share of prompts replaced by the null prompt, for guidance")
    layout: NonNegative = Field(0.0, description="weight of predicting the clean latents from the text alone")
    layout_steps: int = Field(0, ge=0, description="first steps, in which nothing else is learned")
    noise_levels: NoiseLevelOptions
    scheduler: dict[str, Any]
    text_encoder: dict[str, Any]
    unet: dict[str, Any]

    @model_validator(mode="after")
    def _consistent(self) -> "TeacherConfig":
        if self.layout_steps and not self.layout:
            raise ValueError(
                f"layout_steps = {self.layout_steps} learn a layout, which layout = 0 leaves out; set both to 0, or"
                " neither"
            )
        if set(self.mix) - set(FAMILIES) or not sum(self.mix.values()) > 0:
            raise ValueError(f"mix: gives families of captions ({', '.join(FAMILIES)}) their shares; use these names")
        return self


class ClipConfig(Config):
    """Stage `clip`: a small CLIP on rendered images and their captions."""

    stage: Literal["clip"]
    seed: int = Field(0, ge=0)
    fit: Fit
    edited: float = Field(
        0.0, ge=0, le=0.5, description="share of a batch whose captions say what another one says but for one thing"
    )
    architecture: dict[str, Any]


class RewardConfig(Config):
    """Stage `reward`: a preference model by Bradley-Terry, from pairs of images of one prompt."""

    stage: Literal["reward"]
    seed: int = Field(0, ge=0)
    fit: Fit
    initial: str = Field(description="folder of the CLIP that it starts from")
    held_out: Fraction = Field(0.2, description="share of the pairs' prompts that accuracy is measured on")


#: Stage -> the model that validates it.
PRETRAIN: dict[str, type[Config]] = {"vae": VaeConfig, "teacher": TeacherConfig, "clip": ClipConfig}
REWARD: dict[str, type[Config]] = {"reward": RewardConfig}

"""Stage `train`: all its settings, the parts' own among them, and what must hold between them."""

from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from align.config.methods import METHODS
from align.critics.assistant import AssistantConfig
from align.data.batches import NoiseLevelOptions
from align.generators import AnyGenerator, GeneratorOptions
from align.networks.lora import LoraConfig
from align.networks.optimizers import Optimizer
from align.objectives.divergence import Divergence
from align.objectives.guidance import Guidance
from align.options import Config, Fraction, NonNegative
from align.rewards.differentiable import Reward


class HeldOut(Config):
    """Scorers that are not trained on, watched on fixed captions and noise while training runs."""

    scorers: dict[str, NonNegative] = Field({}, description="scorer -> the fall, in its units, that trips the guard")
    prompts: str | None = None
    images: PositiveInt = 64
    every: PositiveInt = Field(50, description="steps")
    guard: Literal["stop", "warn", "off"] = Field(
        "warn", description="when one fell by that while the reward rose, or there is none"
    )


class FinalComparison(Config):
    """The result beside its start, on held-out captions that `source` names."""

    prompts: int = Field(
        0, ge=0, description="how many captions, all of them where there are fewer; 0 compares nothing"
    )
    source: str | None = Field(
        None, description="where they are, as `prompts` of a run; by default those of `held_out`"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "FinalComparison":
        if self.prompts == 1:
            raise ValueError(
                "final_comparison.prompts = 1: of one caption there is no interval; ask for more, or for 0"
            )
        return self


class TrainConfig(Config):
    """Stage `train`: one- and few-step generators by Diff-Instruct, SIM, Diff-Instruct++ or Diff-Instruct*."""

    stage: Literal["train"]
    method: str = Field(description="a name in `align.config.methods.METHODS`")
    seed: int = Field(0, ge=0)
    reference: str = Field(
        description="embedded model, folder or hub id, or with `pipeline` anything that `initial` may be"
    )
    pipeline: str | None = Field(
        None, description="where everything but the network is, if the reference is a network alone"
    )
    initial: str | None = Field(
        None,
        description=(
            "what the student starts from: a folder or hub id, a file of weights, or a LoRA over the reference; "
            "by default the reference"
        ),
    )
    family: str = "sd15"
    size: tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="height and width of images in pixels; by default those that the network was made for"
    )
    generator: AnyGenerator = GeneratorOptions()
    terms: dict[str, dict[str, Any]] = Field({}, description="further terms of the student's loss: name -> its options")
    critics: dict[str, dict[str, Any]] = Field(
        {}, description="what else is trained beside the student: name -> its options"
    )
    prompts: str = Field(
        description=(
            "shapes:train; a text file with one prompt per line; FILE:COLUMN of a .parquet, .csv, .tsv, .json or .jsonl"
            " file; OWNER/NAME:COLUMN[@REVISION] of the hub"
        )
    )
    max_prompts: PositiveInt | None = Field(
        None,
        description="where there are more prompts, so many of them, evenly spread; each takes disk if encoded ahead",
    )
    text_encoding: Literal["ahead", "live"] = Field(
        "ahead",
        description="ahead encodes every prompt before training and lets go of the text encoders; live keeps them",
    )
    text_cache: str | None = Field(
        None, description="folder of the encoded prompts; by default one below ALIGN_CACHE or ~/.cache"
    )
    steps: PositiveInt
    batch_size: PositiveInt = Field(description="global: images per step, over all processes and micro-batches")
    gradient_accumulation_steps: PositiveInt = Field(1, description="micro-batches per step and process")
    noise_levels: NoiseLevelOptions = NoiseLevelOptions()
    divergence: Divergence = Divergence()
    guidance: Guidance = Guidance()
    rewards: tuple[Reward, ...] = ()
    reward_vae: str | None = Field(
        None, description="a tiny autoencoder's folder or hub id; by default the reference's own"
    )
    student: Optimizer
    assistant: AssistantConfig
    ema: Fraction = 0.95
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    parallel: Literal["ddp", "fsdp2"] = Field(
        "ddp", description="fsdp2 spreads weights and optimiser states over the processes"
    )
    lora: LoraConfig | None = None
    gradient_checkpointing: bool = False
    compile: bool = Field(False, description="compile the networks' repeated blocks (torch.compile), for a GPU")
    held_out: HeldOut = HeldOut()
    save_every: PositiveInt = 100
    sample_every: int = Field(50, ge=0, description="steps between grids of samples; 0 draws none")
    final_comparison: FinalComparison = FinalComparison()
    trackers: tuple[str, ...] = Field((), description="accelerate's, for example tensorboard")

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        if self.method not in METHODS:
            raise ValueError(f"method = {self.method}: unknown; choose from {', '.join(METHODS)}")
        method = METHODS[self.method]
        if method.rewarded and not self.rewards:
            raise ValueError(f"method {self.method} needs rewards; add one, or choose {method.otherwise}")
        if not method.rewarded and self.rewards:
            raise ValueError(f"method {self.method} takes no rewards; remove them, or choose {method.otherwise}")
        names = [reward.scorer for reward in self.rewards]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"rewards: {', '.join(sorted(twice))} is there twice; give one of them, with both scales")
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of gradient_accumulation_steps "
                f"{self.gradient_accumulation_steps}; change one of them"
            )
        if self.assistant.shares_images and self.gradient_accumulation_steps > 1:
            raise ValueError(
                f"assistant.shares_images keeps one batch's activations, and gradient_accumulation_steps is"
                f" {self.gradient_accumulation_steps}; set that to 1, or leave shares_images out"
            )
        if self.text_encoding == "live" and self.text_cache:
            raise ValueError(
                f"text_cache {self.text_cache} does nothing with text_encoding live; leave it out, or set ahead"
            )
        if self.held_out.scorers and not self.held_out.prompts:
            raise ValueError("held_out.scorers need held_out.prompts; name some, for example shapes:validation")
        if self.final_comparison.prompts and not self.compared_on:
            raise ValueError(
                "final_comparison.prompts need captions that are not trained on; name them with final_comparison.source"
            )
        for role in ("student", "assistant"):
            name = getattr(self, role).name
            if name.endswith("8bit") and (self.parallel == "fsdp2" or self.precision == "fp64"):
                raise ValueError(
                    f"{role}.name {name} works with neither parallel fsdp2 nor precision fp64; set it to"
                    f" {name.removesuffix('8bit')}"
                )
        if self.lora and self.lora.base and self.parallel == "fsdp2":
            raise ValueError(f"lora.base {self.lora.base} cannot be sharded; set parallel to ddp, or leave it out")
        if self.guidance.where == "off" and self.guidance.scale != 1:
            raise ValueError(
                f"guidance.scale {self.guidance.scale:g} does nothing with guidance.where off; set that to reference or"
                " reward"
            )
        return self

    @property
    def compared_on(self) -> str | None:
        """Where the captions of the final comparison are."""
        return self.final_comparison.source or self.held_out.prompts


#: Stage -> the model that validates it.
TRAIN: dict[str, type[Config]] = {"train": TrainConfig}

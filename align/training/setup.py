"""From a config to everything that a step touches: one `Run`, for training, for the memory
estimate and for the benchmark alike.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from align.config.train import TrainConfig
from align.critics import Critic
from align.data.batches import Batch, BatchSampler, Texts, seeded
from align.data.text_embeddings import TextEmbeddings, prepare, release
from align.generators import Generator
from align.networks import sharding
from align.networks.initial import check_trainable, load_into
from align.networks.lora import check_targets
from align.networks.optimizers import Optimizer
from align.networks.preconditioning import Preconditioning
from align.networks.roles import Roles
from align.objectives.denoisers import Denoisers
from align.objectives.term import Context, Term
from align.rewards.decoder import Decoder
from align.rewards.differentiable import Rewards
from align.training.checkpoints import Checkpoints
from align.training.ema import EMA
from align.training.learner import Learner
from align.training.process import Alone, precisions
from align.training.terms import terms
from align.training.validation import (
    SampleGrid,
    Sampler,
    Validation,
    compared_captions,
    fixed_batch,
    load_scorers,
    watched_captions,
)
from evaluate import families, pipelines, scorers
from evaluate.diffusion import NOISE_LEVELS
from evaluate.pipelines.random_init import random_pipeline
from prompts.extensions import member
from prompts.io.validate import validate
from prompts.readers import Prompts, read_prompts


@dataclass(kw_only=True)
class Run:
    """All that a step touches, and what a run does between steps.

    `critics` are trained before the student, each by its learner.
    """

    config: TrainConfig
    folder: Path
    process: Alone
    pipeline: Any
    preconditioning: Preconditioning
    roles: Roles
    generator: Generator
    terms: list[Term]
    critics: list[Critic]
    learners: dict[str, Learner]
    average: EMA
    batches: BatchSampler
    rewards: Rewards
    validation: Validation
    samples: SampleGrid
    checkpoints: Checkpoints
    example: str

    @property
    def student(self) -> Learner:
        """What the run is for."""
        return self.learners["student"]

    @property
    def steps(self) -> int:
        """All steps, those that warm the assistant up included."""
        return self.config.assistant.warmup + self.config.steps


class Scoring:
    """What judges images: the decoder, the rewards, and the scorers that nothing is trained on."""

    def __init__(
        self, config: TrainConfig, pipeline: Any, *, device: Any, dtype: torch.dtype, random_weights: bool = False
    ):
        self.decoder = Decoder(
            pipeline.vae,
            family=families.load(config.family),
            tiny=config.reward_vae,
            random_weights=random_weights,
            checkpointing=config.gradient_checkpointing,
            device=device,
        )
        # Where nothing is asked of precision, a network of billions keeps the one that it is published in.
        own = None if dtype == torch.float32 else dtype
        options = {"device": device, "dtype": own, "random_weights": random_weights}
        self.rewards = Rewards(config.rewards, self.decoder, **options)
        self.held_out: dict[str, scorers.Scorer] = load_scorers(config, **options)


def _captions(config: TrainConfig) -> Prompts:
    """What is trained on. Raises UserError where that, or what is looked at or compared, cannot be read: before
    anything is fetched.
    """
    compared_captions(config)
    watched_captions(config)
    return read_prompts(config.prompts, at_most=config.max_prompts)


def build(
    config: TrainConfig,
    folder: Path,
    process: Alone,
    *,
    show: bool = True,
    random_weights: bool = False,
    store: Callable[..., Roles] | None = None,
) -> Run:
    """Read every part, and put them together. show: progress.

    random_weights: networks are initialised at random, from their configs alone. store: how roles are kept, in place
    of what the config says.
    """
    prompts = _captions(config)
    dtype, narrow = precisions(config)
    torch.manual_seed(seeded(config.seed, 2, 0))  # adapters start alike in every process
    drawn_on = process.device if random_weights and not process.sharded else "cpu"
    pipeline = load_pipeline(config, dtype, random_weights=random_weights, device=drawn_on)
    preconditioning = make_preconditioning(config, pipeline, process)
    generator = make_generator(config, preconditioning)
    initial, reference, same = load_networks(config, pipeline, random_weights=random_weights)
    texts = prepare(
        config.family,
        preconditioning.family,
        pipeline,
        prompts,
        encoding=config.text_encoding,
        folder=config.text_cache,
        device=process.device,
        dtype=narrow or dtype,
        show=process.main and show,
    )
    watched = fixed_batch(config, preconditioning, pipeline, device=process.device, dtype=dtype)
    if config.text_encoding == "ahead":
        release(pipeline)
    scoring = Scoring(config, pipeline, device=process.device, dtype=dtype, random_weights=random_weights)
    # Sharding moves each process's part alone.
    roles = (store or make_roles)(
        config, initial, reference, same=same, device="cpu" if process.sharded else process.device
    )
    if process.sharded:
        for network in roles.networks():
            sharding.shard(network, process.device)
    if process.rank:
        torch.manual_seed(seeded(config.seed, 2, process.rank))
    return assemble(
        config,
        folder,
        process,
        pipeline=pipeline,
        preconditioning=preconditioning,
        generator=generator,
        roles=roles,
        texts=texts,
        scoring=scoring,
        watched=watched,
    )


def assemble(
    config: TrainConfig,
    folder: Path,
    process: Alone,
    *,
    pipeline: Any,
    preconditioning: Preconditioning,
    generator: Generator,
    roles: Roles,
    texts: TextEmbeddings,
    scoring: Scoring,
    watched: Batch | None,
) -> Run:
    """What has been read, as a run: averages, optimisers, terms, critics."""
    denoisers = Denoisers(
        preconditioning=preconditioning,
        roles=roles,
        guidance=config.guidance.scale if config.guidance.where == "reference" else 1.0,
    )
    critics, options = make_critics(config, denoisers)
    learners = make_learners(config, process, roles, critics, options)
    average = EMA(learners["student"].parameters, config.ema)
    context = Context(denoisers=denoisers, generator=generator, rewards=scoring.rewards, critics=critics)
    sampler = Sampler(generator, scoring.decoder, watched, at_a_time=1 if config.gradient_checkpointing else None)
    validation = Validation(config, sampler, scoring.rewards, scoring.held_out)
    return Run(
        config=config,
        folder=folder,
        process=process,
        pipeline=pipeline,
        preconditioning=preconditioning,
        roles=roles,
        generator=generator,
        terms=terms(config, context),
        critics=list(critics.values()),
        learners=learners,
        average=average,
        batches=make_batches(config, process, preconditioning, generator, texts, len(texts.prompts)),
        rewards=scoring.rewards,
        validation=validation,
        samples=SampleGrid(config, sampler, preconditioning),
        checkpoints=Checkpoints(
            folder, every=config.save_every, learners=learners, average=average, validation=validation, process=process
        ),
        example=texts.prompts[0],
    )


def make_generator(config: TrainConfig, preconditioning: Preconditioning) -> Generator:
    """How the student makes an image."""
    source = config.pipeline or config.reference
    generator: Generator = member("align.generators", config.generator.name, "build", what="generator.name").build(
        config.generator, preconditioning, source=source
    )
    return generator


def make_critics(config: TrainConfig, denoisers: Denoisers) -> tuple[dict[str, Critic], dict[str, Optimizer]]:
    """The assistant and whatever else is trained beside the student, and their options, by name."""
    options: dict[str, Any] = {"assistant": config.assistant}
    for name, content in config.critics.items():
        options_class = member("align.critics", name, "Options", what="critics").Options
        options[name] = validate(options_class, content, lambda field, name=name: f"critics.{name}.{field}")  # type: ignore[misc]
    critics = {
        name: member("align.critics", name, "build", what="critics").build(each, denoisers)
        for name, each in options.items()
    }
    return critics, options


def make_learners(
    config: TrainConfig, process: Alone, roles: Roles, critics: dict[str, Critic], options: dict[str, Optimizer]
) -> dict[str, Learner]:
    """What is trained, the student last; critics call what training has made of their networks."""
    # The assistant is a role, and where it should be.
    modules = {
        name: c.network if c.network is roles.assistant else c.network.to(process.device) for name, c in critics.items()
    }
    modules["student"] = roles.student
    # What a critic has frozen stays as it is.
    trainable = {name: {k: p for k, p in roles.trainable(m).items() if p.requires_grad} for name, m in modules.items()}
    learners = {}
    for name, module in modules.items():
        # DDP looks for gradients of whatever is trainable when it wraps; roles that share a base take turns.
        for other, parameters in trainable.items():
            for parameter in parameters.values():
                parameter.requires_grad_(other == name)
        buffers = {} if module in (roles.student, roles.assistant) else dict(module.named_buffers())
        learners[name] = Learner(
            name, module, trainable[name], options.get(name, config.student), process, buffers=buffers
        )
    for parameters in trainable.values():
        for parameter in parameters.values():
            parameter.requires_grad_(True)
    for name, critic in critics.items():
        critic.network = learners[name].module
    return learners


def load_pipeline(config: TrainConfig, dtype: torch.dtype, *, random_weights: bool, device: Any = "cpu") -> Any:
    """The pipeline that the reference is part of. device: where random weights are drawn, on a GPU in seconds.

    Raises UserError where what the student starts from, or the reference, is more than a network.
    """
    for field in ("initial", "reference"):
        check_trainable(field, getattr(config, field))
    source, dtypes = config.pipeline or config.reference, narrow_parts(config)
    if random_weights:
        pipeline = random_pipeline(source, dtype=dtype, device=device)
        for name, narrow in dtypes.items():
            if getattr(pipeline, name, None) is not None:
                getattr(pipeline, name).to(narrow)
    else:
        pipeline = pipelines.load(source, dtype=dtype, dtypes=dtypes)
    families.check(config.family, pipeline, source)
    return pipeline


def narrow_parts(config: TrainConfig) -> dict[str, torch.dtype]:
    """What is read in the precision that is computed in."""
    narrow = precisions(config)[1]
    return dict.fromkeys(families.load(config.family).language_models, narrow) if narrow else {}


def make_preconditioning(config: TrainConfig, pipeline: Any, process: Alone) -> Preconditioning:
    """How networks of the run's family become denoisers."""
    return Preconditioning(
        families.load(config.family),
        pipeline,
        process.autocast,
        source=config.reference,
        size=config.size,
        embedded_guidance=config.guidance.embedded,
    )


def load_networks(config: TrainConfig, pipeline: Any, *, random_weights: bool) -> tuple[nn.Module, nn.Module, bool]:
    """What the student starts from, the reference, and whether the two are one network."""
    name = families.load(config.family).network
    reference = getattr(pipeline, name)
    if config.lora and config.lora.target_modules:
        check_targets(reference, config.lora.target_modules)
    if config.pipeline and not random_weights:
        load_into(pipeline, name, reference, config.reference)
    same = config.initial in (None, config.reference)
    initial = reference if same else copy.deepcopy(reference)
    if not same and not random_weights:
        load_into(pipeline, name, initial, str(config.initial))
    return initial, reference, same


def make_roles(config: TrainConfig, initial: nn.Module, reference: nn.Module, *, same: bool, device: Any) -> Roles:
    """The roles as a config wants them stored, on `device`."""
    lora = config.lora
    if lora and lora.target_modules is None:
        lora = lora.model_copy(update={"target_modules": families.load(config.family).lora_targets})
    # What is sharded together has one precision.
    narrow = None if config.parallel == "fsdp2" and config.lora else precisions(config)[1]
    return Roles(
        initial,
        reference,
        same=same,
        lora=lora,
        checkpointing=config.gradient_checkpointing,
        compiled=config.compile,
        frozen=narrow or torch.float32,
        device=device,
    )


def make_batches(
    config: TrainConfig,
    process: Alone,
    preconditioning: Preconditioning,
    generator: Generator,
    texts: Texts,
    prompts: int,
) -> BatchSampler:
    """What draws this process's batches, of the size that the network was made for."""
    options = config.noise_levels
    noise_levels = NOISE_LEVELS[options.name](preconditioning.schedule, **options.parameters)
    return BatchSampler(
        texts,
        prompts,
        preconditioning.latent_shape,
        config.batch_size,
        noise_levels,
        seed=config.seed,
        interval=generator.interval,
        rank=process.rank,
        world=process.world,
        micro_batches=config.gradient_accumulation_steps,
        device=process.device,
        dtype=precisions(config)[0],
    )

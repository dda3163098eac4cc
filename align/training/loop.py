"""Stage 3: train a one-step generator. One loop for Diff-Instruct, SIM, Diff-Instruct++ and Diff-Instruct*."""

import copy
import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from align.config import TrainConfig
from align.data.batches import Draw, Source, seeded
from align.data.prompts import read_prompts
from align.data.text_embeddings import prepare, release, restore
from align.export.card import facts
from align.export.pipeline import export
from align.networks import sharding
from align.networks.initial import load_into
from align.networks.lora import adapter, merged
from align.networks.roles import Roles
from align.objectives.denoising import Denoiser, assistant_loss
from align.objectives.guidance import cfg_reward_loss, guided
from align.objectives.kl import ikl_loss
from align.objectives.score_divergence import score_divergence_loss
from align.objectives.weightings import WEIGHTS
from align.rewards.decoder import Decoder
from align.rewards.differentiable import Rewards
from align.training import checkpoints as state
from align.training import validation as monitor
from align.training.ema import Average
from align.training.health import Guarded, _check
from align.training.interrupt import stop_on_signal
from align.training.log import trim_log
from align.training.optimizers import descend, make_optimizer
from evaluate import families, hub, pipelines
from evaluate.console import Watch, console
from evaluate.diffusion import PREDICTIONS, TIMES, Schedule, denoise
from evaluate.timing import random_pipeline
from prompts.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}

#: `accelerator.backward`: what adds a scalar's gradient to the parameters'.
Backward = Callable[[Tensor], None]


class Model:
    """What turns the roles' networks into denoisers and the student into a generator."""

    def __init__(self, config: TrainConfig, pipeline: Any, autocast: Callable[[], Any]):
        self.family, self.autocast = families.load(config.family), autocast
        self.pixels: int = pipeline.vae_scale_factor
        self.example = read_prompts(config.prompts)[0]
        self.schedule = Schedule.from_scheduler(pipeline.scheduler)
        self.prediction = pipeline.scheduler.config.prediction_type
        if self.prediction not in PREDICTIONS:
            raise UserError(
                f"reference = {config.reference}: prediction type {self.prediction!r} is not known; known: {', '.join(PREDICTIONS)}"
            )
        if not self.schedule.holds(config.generator.sigma_init):
            raise UserError(
                f"generator.sigma_init = {config.generator.sigma_init:g}: the noise levels of {config.pipeline or config.reference} "
                f"are {self.schedule.sigma_min:.4g} to {self.schedule.sigma_max:.4g}; choose one between them"
            )
        self.sigma_init = self.schedule.snap(config.generator.sigma_init)
        self.k = self.sigma_init if config.generator.noise_scale == "sigma" else math.sqrt(1 + self.sigma_init**2)

    def denoiser(self, network: nn.Module, conditioning: dict[str, Tensor]) -> Denoiser:
        """`(x, sigma) -> x0_hat` of a network bound to its prompts."""

        def bound(y: Tensor, t: Tensor) -> Tensor:
            with self.autocast():
                out: Tensor = self.family.call(network, y, t, conditioning, self.pixels)
            return out

        return lambda x, sigma: denoise(bound, x, sigma, schedule=self.schedule, prediction=self.prediction)

    def generate(self, network: nn.Module, z: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
        """`G(z, c) = D(k z, sigma_init, c)` (DI++ eq. C.4): standard normal z `[B, C, H, W]` to x0."""
        sigma = torch.full((len(z),), self.sigma_init, dtype=z.dtype, device=z.device)
        return self.denoiser(network, conditioning)(self.k * z, sigma)


def student_terms(
    config: TrainConfig,
    x0: Tensor,
    draw: Draw,
    *,
    assistant: Denoiser,
    reference: Denoiser,
    null: Denoiser,
    rewards: Callable[[Tensor], Tensor] | None,
) -> dict[str, Callable[[], Tensor]]:
    """The terms of the student's loss by name, each a function that computes it, `[B]` (DI* eq. 3.3, DI++ eq. 3.7-3.9)."""
    options, target = config.divergence, reference
    if config.cfg.mode == "in":
        target = guided(reference, null, config.cfg.scale)
    common: dict[str, Any] = {"assistant": assistant, "reference": target, "weight": WEIGHTS[options.weight]}

    def divergence() -> Tensor:
        if config.method in ("di", "di++"):
            return ikl_loss(x0, draw.noise, draw.sigma, **common)
        distance = {"distance": options.distance, "huber_c": options.huber_c, "gradient": options.gradient}
        return score_divergence_loss(x0, draw.noise, draw.sigma, **common, **distance)  # type: ignore[arg-type]

    def cfg() -> Tensor:
        loss = cfg_reward_loss(
            x0, draw.noise, draw.sigma, conditional=reference, unconditional=null, weight=WEIGHTS[options.weight]
        )
        return (config.cfg.scale - 1) * loss

    terms = {"divergence": divergence}
    if config.cfg.mode == "out":
        terms["cfg"] = cfg
    if rewards:
        terms["reward"] = lambda: -rewards(x0)
    return terms


class Batch(NamedTuple):
    """A micro-batch on its device: what was drawn for it, its conditioning, the null prompt's, and the prompts."""

    draw: Draw
    given: dict[str, Tensor]
    null: dict[str, Tensor]
    prompts: list[str]


def assistant_pass(
    config: TrainConfig, model: Model, student: nn.Module, assistant: nn.Module, batch: Batch, backward: Backward
) -> dict[str, Tensor]:
    """Add a micro-batch's share to the assistant's gradient. Returns its share of the step's figures."""
    with record_function("assistant's update"):
        with torch.no_grad():
            x0 = model.generate(student, batch.draw.z, batch.given)
        loss = assistant_loss(
            x0, batch.draw.noise, batch.draw.sigma,
            assistant=model.denoiser(assistant, batch.given), weight=WEIGHTS[config.assistant.weight],
        ).mean()  # fmt: skip
        backward(loss / config.accumulate)
    return {"assistant": loss.detach() / config.accumulate}


def student_pass(
    config: TrainConfig, model: Model, roles: Roles, student: nn.Module, batch: Batch, rewards: Rewards, backward: Backward
) -> dict[str, Tensor]:
    """Add a micro-batch's share to the student's gradient. Returns its share of the step's figures.

    student: `roles.student`, or what it is wrapped in. Each term's gradient at x0 is taken by itself, so that of all networks
    only the student's activations are kept throughout.
    """
    with record_function("student's forward"):
        x0 = model.generate(student, batch.draw.z, batch.given)
    leaf = x0.detach().requires_grad_()
    figures: dict[str, Tensor] = {}

    def reward(latents: Tensor) -> Tensor:
        weighted, each = rewards.some_at_a_time(latents, batch.prompts)
        figures.update({f"reward/{name}": score.mean() for name, score in each.items()})
        return weighted

    terms = student_terms(
        config, leaf, batch.draw,
        assistant=model.denoiser(roles.assistant, batch.given), reference=model.denoiser(roles.reference, batch.given),
        null=model.denoiser(roles.reference, batch.null), rewards=reward if rewards else None,
    )  # fmt: skip
    direction = torch.zeros_like(leaf)
    for name, term in terms.items():
        with record_function(f"student's {name}"), roles.constant(roles.assistant):
            loss = term().mean()
            (slope,) = torch.autograd.grad(loss, leaf)
        direction += slope
        # Per picture, so that the figure does not depend on the batch.
        norm = slope.flatten(1).norm(dim=1).mean() * len(slope)
        figures |= {name: loss.detach(), f"{name}_gradient": norm}
    with record_function("student's backward"):
        backward((x0 * direction).sum() / config.accumulate)
    return {name: value / config.accumulate for name, value in figures.items()}


def train(config: TrainConfig, output: Path, *, resume: bool = False, show: bool = True) -> bool:
    """Train, and leave `output/checkpoint`. Returns whether it ran to its end (False: a signal stopped it).

    Raises Guarded, the checkpoint being written, when the guard stops the run, and Diverged.
    """
    from accelerate import Accelerator

    # ---- processes, precision ------------------------------------------------------------------------------------------
    mixed = config.precision if config.precision in ("bf16", "fp16") else "no"
    if config.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("precision = fp16 needs a GPU; set precision to bf16 or fp32")
    _check_trackers(config)
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=mixed,
        log_with=list(config.trackers) or None,
        project_dir=str(output),
    )
    rank, world, device, main = (
        accelerator.process_index,
        accelerator.num_processes,
        accelerator.device,
        accelerator.is_main_process,
    )
    if config.batch_size % (world * config.accumulate):
        raise UserError(
            f"batch_size = {config.batch_size} is not a multiple of {world} processes x accumulate {config.accumulate}; change one"
        )
    sharded = config.parallel == "fsdp2"
    if sharded and (world == 1 or config.precision == "fp16"):
        raise UserError("parallel = fsdp2 needs several processes (torchrun) and a precision other than fp16; change one")
    dtype, narrow = precisions(config)
    torch.manual_seed(seeded(config.seed, 2, 0))  # adapters start alike in every process

    # ---- models ----------------------------------------------------------------------------------------------------------
    pipeline = load_pipeline(config, dtype)
    model = Model(config, pipeline, accelerator.autocast)
    reference = getattr(pipeline, model.family.network)
    if config.pipeline:
        load_into(reference, config.reference, model.family.network)
    same = config.initial in (None, config.reference)
    initial = reference if same else copy.deepcopy(reference)
    if not same:
        load_into(initial, str(config.initial), model.family.network)
    texts = prepare(
        config, model.family, pipeline, read_prompts(config.prompts),
        device=device, dtype=narrow or dtype, show=main and show,
    )  # fmt: skip
    decoder = Decoder(pipeline.vae, tiny=config.reward_vae, checkpointing=config.gradient_checkpointing, device=device)
    rewards = Rewards(config.rewards, decoder, device=device, dtype=dtype)
    held_out = monitor.load_scorers(config, device=device, dtype=dtype)
    watcher = monitor.Monitor(config, pipeline, model, rewards, decoder, held_out, device=device, dtype=dtype)
    if config.text_encoding == "ahead":
        release(pipeline)
    # Sharding moves each process's part alone.
    roles = make_roles(config, initial, reference, same=same, device="cpu" if sharded else device)
    if sharded:
        for network in roles.networks():
            sharding.shard(network, device)
    if rank:
        torch.manual_seed(seeded(config.seed, 2, rank))
    trainable = {name: roles.trainable(getattr(roles, name)) for name in ("student", "assistant")}
    average = Average(trainable["student"], config.ema)

    # ---- optimisers ------------------------------------------------------------------------------------------------------
    optimizers, wrapped = {}, {}
    for name in ("assistant", "student"):
        # DDP looks for gradients of whatever is trainable when it wraps; roles that share a base take turns.
        for other, parameters in trainable.items():
            for parameter in parameters.values():
                parameter.requires_grad_(other == name)
        made = make_optimizer(getattr(config, name), list(trainable[name].values()))
        wrapped[name], optimizers[name] = (getattr(roles, name), made)
        if not sharded:
            wrapped[name], optimizers[name] = accelerator.prepare(getattr(roles, name), made)
    for parameters in trainable.values():
        for parameter in parameters.values():
            parameter.requires_grad_(True)
    source = make_source(config, model, reference, len(texts.prompts), config.batch_size)

    # ---- resuming --------------------------------------------------------------------------------------------------------
    start, total, warmup = 0, config.assistant.warmup + config.steps, config.assistant.warmup
    if resume and (found := state.load_newest(output / "state", mapped=True)):
        start, saved = found
        with torch.no_grad():
            for name, parameters in trainable.items():
                for key, parameter in parameters.items():
                    parameter.copy_(sharding.like(saved[name][key], parameter))
        average.load_state_dict(saved["average"])
        for name, optimizer in optimizers.items():
            sharding.load_optimizer(optimizer, saved["optimizers"][name], trainable[name].values())
        watcher.baseline = saved["baseline"]
        state.set_rng_state(saved["rng"][rank] if rank < len(saved["rng"]) else saved["rng"][0])
        del found, saved  # their files
    if main:
        trim_log(output / "log.jsonl", start)

    def save(step: int) -> None:
        rng = state.gather(state.rng_state(), world)
        parts = {name: {key: p.detach() for key, p in parameters.items()} for name, parameters in trainable.items()}
        extra = {"average": average.state_dict(), "optimizers": {name: o.state_dict() for name, o in optimizers.items()}}
        whole = sharding.gathered(parts | extra)
        if main:
            state.save(output / "state", step, whole | {"rng": rng, "baseline": watcher.baseline})
        accelerator.wait_for_everyone()

    # ---- the loop --------------------------------------------------------------------------------------------------------
    def batches(k: int) -> list[Batch]:
        """This process's micro-batches of global batch k."""
        rows = [source.rows(rank, world, m, config.accumulate) for m in range(config.accumulate)]
        parts = [source(k, dtype, part).to(device) for part in rows]
        return [Batch(part, *texts(part.prompts)) for part in parts]

    def syncing(module: nn.Module, m: int) -> Any:
        """Gradients are averaged over processes with the last micro-batch only."""
        if sharded:
            sharding.sync(module, m + 1 == config.accumulate)
        return nullcontext() if sharded or m + 1 == config.accumulate else accelerator.no_sync(module)

    def apply(name: str) -> Tensor:
        parameters, clip = trainable[name].values(), accelerator.clip_grad_norm_
        return sharding.full(descend(getattr(config, name), optimizers[name], parameters, clip)).detach()

    recent: dict[str, deque[float]] = {}
    guarded = False
    if config.trackers:
        accelerator.init_trackers("align", config.model_dump(mode="json"))
    title, per_step = f"{config.method}", config.assistant.updates + 1
    with (
        stop_on_signal() as stop,
        Watch(title, total, start=start, log=output / "log.jsonl" if main else None, show=main and show) as watch,
    ):
        if start == 0:
            watcher.evaluate(roles.student)  # the guard's baseline
            if main or sharded:
                watcher.draw(0, roles, output / "samples", keep=main)
        for step in range(start, total):
            began = time.perf_counter()
            figures: dict[str, Tensor] = {}
            prompts: list[str] = []

            # The assistant learns to denoise what the student makes now (DI* Algorithm 1, upper half).
            updates = config.assistant.updates if step >= warmup else 1
            for update in range(updates):
                for m, batch in enumerate(batches(step * per_step + update)):
                    with syncing(wrapped["assistant"], m):
                        part = assistant_pass(config, model, roles.student, wrapped["assistant"], batch, accelerator.backward)
                    _add(figures, {name: value / updates for name, value in part.items()})
                    prompts = batch.prompts
                figures["assistant_gradient"] = apply("assistant")

            # The student moves towards reward and reference (lower half).
            for m, batch in enumerate(batches(step * per_step + per_step - 1) if step >= warmup else []):
                with syncing(wrapped["student"], m):
                    _add(figures, student_pass(config, model, roles, wrapped["student"], batch, rewards, accelerator.backward))
                prompts = batch.prompts
            if step >= warmup:
                figures["student_gradient"] = apply("student")
                average.update()

            # What a person watches, and what stops a run.
            values = _reduce(accelerator, figures)
            if "reward" in values:
                values["reward_ratio"] = values["reward_gradient"] / max(values["divergence_gradient"], 1e-30)
            _check(values, recent, step + 1, prompts, output, main=main)
            tripped, seconds = None, time.perf_counter() - began
            values |= {
                "seconds": seconds,
                "images_per_second": config.batch_size / seconds,  # of a whole step, as `align bench` has it
            }
            if device.type == "cuda":
                values["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
            if (step + 1) % config.held_out.every == 0 or step + 1 == total:
                with average.applied():
                    tripped, seen = watcher.evaluate(roles.student)
                values |= seen
            due = config.sample_every and ((step + 1) % config.sample_every == 0 or step + 1 == total)
            if due and (main or sharded):
                with average.applied():
                    watcher.draw(step + 1, roles, output / "samples", keep=main)
            watch(step + 1, ("reward", "reward_ratio", "divergence", "assistant"), **values)
            if config.trackers:
                accelerator.log(values, step=step + 1)
            if tripped and main:
                console.print(f"step {step + 1}: {tripped}")
            guarded = bool(tripped) and config.held_out.guard == "stop"
            halt = state.any_of(bool(stop) or guarded, world)
            if halt or (step + 1) % config.save_every == 0 or step + 1 == total:
                save(step + 1)
            if halt:
                break
    # ---- the result ------------------------------------------------------------------------------------------------------
    if config.trackers:
        accelerator.end_training()
    with average.applied():
        result, added = merged(roles.student), adapter(roles.student)
        if main and not hub.without_weights():  # what was drawn is worth no checkpoint
            restore(pipeline, config)
            protocols = {name: scorer.protocol for name, scorer in rewards.scorers.items()}
            told = facts(
                config,
                step=watch.step,
                prompts=source.n,
                example=model.example,
                protocols=protocols,
                processes=world,
                device=device,
            )
            export(config, model, pipeline, result, output, adapter=added, facts=told)
    accelerator.wait_for_everyone()
    if guarded:
        raise Guarded(
            watch.step,
            f"stopped at step {watch.step} by held_out.guard ({tripped}); {output / 'checkpoint'} is that step's: start again with a lower reward scale",
        )
    if stop and main:
        console.print(f"stopped after step {watch.step}; go on with --resume")
    return watch.step == total


def precisions(config: TrainConfig) -> tuple[torch.dtype, torch.dtype | None]:
    """What is trained and drawn in, and what autocast computes in, None where it casts nothing."""
    wide = torch.float64 if config.precision == "fp64" else torch.float32
    return wide, DTYPES[config.precision] if config.precision in ("bf16", "fp16") else None


def load_pipeline(config: TrainConfig, dtype: torch.dtype) -> Any:
    """The pipeline that the reference is part of, drawn where weights are left out."""
    if hub.without_weights():
        return random_pipeline(config.pipeline or config.reference, dtype=dtype, device="cpu")
    return pipelines.load(config.pipeline or config.reference, dtype=dtype)


def make_roles(config: TrainConfig, initial: nn.Module, reference: nn.Module, *, same: bool, device: Any) -> Roles:
    """The roles as a config wants them stored, on `device`."""
    # What is sharded together has one precision.
    narrow = None if config.parallel == "fsdp2" and config.lora else precisions(config)[1]
    return Roles(
        initial, reference, same=same, lora=config.lora, checkpointing=config.gradient_checkpointing,
        frozen=narrow or torch.float32, device=device,
    )  # fmt: skip


def make_source(config: TrainConfig, model: Model, network: Any, prompts: int, batch: int) -> Source:
    """What draws batches of `batch` pictures of the size that `network` was made for, out of so many prompts."""
    shape = (network.config.in_channels, network.config.sample_size, network.config.sample_size)
    sigmas = TIMES[config.sigmas.name](model.schedule, **config.sigmas.parameters)
    return Source(prompts, shape, batch, sigmas, seed=config.seed)


def _check_trackers(config: TrainConfig) -> None:
    """accelerate passes over a tracker it cannot find without a word."""
    from accelerate.tracking import get_available_trackers

    available = [str(tracker.value) for tracker in get_available_trackers()]
    for name in config.trackers:
        if name not in available:
            raise UserError(f"trackers: {name!r} is not installed; install it, or choose from {', '.join(available) or 'none'}")


def _add(figures: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    for name, value in more.items():
        figures[name] = figures.get(name, torch.zeros_like(value)) + value


def _reduce(accelerator: Any, figures: dict[str, Tensor]) -> dict[str, float]:
    """The mean over processes of every figure, in one message."""
    stacked = torch.stack([value.double().reshape(()) for value in figures.values()])
    return dict(zip(figures, accelerator.reduce(stacked, reduction="mean").tolist(), strict=True))

"""Diff-Instruct* written down plainly: what the trainer is measured against by `align bench --plain`.

Three full copies in float32, autograd through all of them, the autoencoder and the rewards in one graph, nothing recomputed, and every
text encoded when it is drawn. Its gradient is the trainer's, which is tested.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from align.config import TrainConfig
from align.data import Source, read_prompts
from align.diffusion import TIMES, expand
from align.distances import default_huber_c, distance_gradient
from align.objectives import WEIGHTS
from align.rewards import Decoder, Rewards
from align.roles import Average, Roles
from align.texts import Live, encoders
from align.train import Batch, Model, load_pipeline, make_optimizer


def student_loss(config: TrainConfig, model: Model, roles: Roles, batch: Batch, rewards: Rewards) -> Tensor:
    """The loss of SIM and DI* (DI* eq. 3.3 and 3.4, guidance as in its Theorem 3.2), a scalar."""
    (z, noise, sigma), scale = (batch.draw.z, batch.draw.noise, batch.draw.sigma), config.cfg.scale
    assistant, reference = (model.denoiser(role, batch.given) for role in (roles.assistant, roles.reference))
    weight = WEIGHTS[config.divergence.weight]

    def weighted(u: Tensor, target: Tensor, term: Tensor) -> Tensor:
        w: Any = weight(sigma, x0.detach(), u.detach(), target.detach()) if callable(weight) else 1
        return w * term.flatten(1).sum(1)

    x0 = model.generate(roles.student, z, batch.given)
    x = x0 + expand(sigma, x0) * noise
    with torch.set_grad_enabled(config.divergence.gradient == "exact"):
        target = conditional = reference(x, sigma)
        if config.cfg.mode != "off":
            unconditional = model.denoiser(roles.reference, batch.null)(x, sigma)
        if config.cfg.mode == "in":
            target = unconditional + scale * (conditional - unconditional)
        prediction = assistant(x, sigma)
        u = prediction - target
        d_prime = distance_gradient(config.divergence.distance, u, config.divergence.huber_c or default_huber_c(x0))
    loss = -weighted(u, target, d_prime * (prediction - x0))
    if config.cfg.mode == "out":
        direction = (conditional - unconditional).detach()
        loss = loss - (scale - 1) * weighted(direction, conditional, direction * x)
    if rewards:
        loss = loss - rewards(x0, batch.prompts)[0]
    return loss.mean()


def assistant_loss(config: TrainConfig, model: Model, roles: Roles, batch: Batch) -> Tensor:
    """Denoising score matching on what the student makes (DI* Algorithm 1, step 3), a scalar."""
    with torch.no_grad():
        x0 = model.generate(roles.student, batch.draw.z, batch.given)
    x = x0 + expand(batch.draw.sigma, x0) * batch.draw.noise
    error = model.denoiser(roles.assistant, batch.given)(x, batch.draw.sigma) - x0
    weight = WEIGHTS[config.assistant.weight]
    w: Any = weight(batch.draw.sigma, x0, error.detach(), x0) if callable(weight) else 1
    return (w * error.square().flatten(1).sum(1)).mean()


class Plain:
    """A run without logs, samples, files or resuming: `step(k)` is all of it. roles: its networks; the student starts as the reference."""

    def __init__(self, config: TrainConfig, *, device: torch.device, autocast: Callable[[], Any] = nullcontext):
        self.config, self.device = config, device
        self.dtype = torch.float64 if config.precision == "fp64" else torch.float32
        pipeline = load_pipeline(config, self.dtype)
        self.model = Model(config, pipeline, autocast)
        for part in encoders(pipeline).values():
            if isinstance(part, nn.Module):
                part.to(device)
        prompts = read_prompts(config.prompts)
        self.texts = Live(self.model.family, pipeline, prompts, device=device, dtype=self.dtype)
        decoder = Decoder(pipeline.vae, tiny=config.reward_vae, device=device)
        self.rewards = Rewards(config.rewards, decoder, device=device, dtype=self.dtype)
        network: Any = getattr(pipeline, self.model.family.network)
        self.roles = Roles(network, network, same=True, lora=None, checkpointing=False, device=device)
        self.trainable = {name: list(getattr(self.roles, name).parameters()) for name in ("assistant", "student")}
        self.optimizers = {name: make_optimizer(getattr(config, name), own) for name, own in self.trainable.items()}
        self.average = Average(dict(self.roles.student.named_parameters()), config.ema)
        shape = (network.config.in_channels, network.config.sample_size, network.config.sample_size)
        sigmas = TIMES[config.sigmas.name](self.model.schedule, **config.sigmas.parameters)
        self.source = Source(len(prompts), shape, config.batch_size, sigmas, seed=config.seed)

    def step(self, k: int) -> None:
        """All updates of the assistant, then the student's (DI* Algorithm 1)."""
        config, first = self.config, k * (self.config.assistant.updates + 1)
        for number in range(config.assistant.updates):
            self._update("assistant", first + number, lambda batch: assistant_loss(config, self.model, self.roles, batch))
        last = first + config.assistant.updates
        self._update("student", last, lambda batch: student_loss(config, self.model, self.roles, batch, self.rewards))
        self.average.update()

    def _update(self, name: str, k: int, loss: Callable[[Batch], Tensor]) -> None:
        for other, parameters in self.trainable.items():
            for parameter in parameters:
                parameter.requires_grad_(other == name)
        whole = self.source(k, self.dtype)
        for m in range(self.config.accumulate):
            draw = whole.part(0, 1, m, self.config.accumulate).to(self.device)
            (loss(Batch(draw, *self.texts(draw.prompts))) / self.config.accumulate).backward()
        limit = getattr(self.config, name).clip
        nn.utils.clip_grad_norm_(self.trainable[name], math.inf if limit is None else limit)
        self.optimizers[name].step()
        self.optimizers[name].zero_grad(set_to_none=True)

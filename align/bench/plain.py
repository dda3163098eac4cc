"""Diff-Instruct* written down plainly: what the trainer is measured against by `align bench --plain`.

Three full copies in float32, autograd through all of them, the autoencoder and the rewards in one graph, nothing recomputed, and every
text encoded when it is drawn. Its gradient is the trainer's, which is tested.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from align.config import TrainConfig
from align.data.prompts import read_prompts
from align.data.text_embeddings import Live, encoders
from align.networks.roles import Roles
from align.objectives.distances import default_huber_c, distance_gradient
from align.objectives.weightings import WEIGHTS
from align.rewards.decoder import Decoder
from align.rewards.differentiable import Rewards
from align.training.ema import Average
from align.training.loop import Batch, Model, assistant_pass, load_pipeline, make_source, precisions
from align.training.optimizers import descend, make_optimizer
from evaluate.diffusion import expand


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


class Plain:
    """A run without logs, samples, files or resuming: `step(k)` is all of it. roles: its networks; the student starts as the reference."""

    def __init__(self, config: TrainConfig, *, device: torch.device):
        self.config, self.device = config, device
        self.dtype, narrow = precisions(config)
        pipeline = load_pipeline(config, self.dtype)
        self.model = Model(config, pipeline, lambda: torch.autocast(device.type, dtype=narrow) if narrow else nullcontext())
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
        self.source = make_source(config, self.model, network, len(prompts), config.batch_size)

    def step(self, k: int) -> None:
        """All updates of the assistant, then the student's (DI* Algorithm 1)."""
        first = k * (self.config.assistant.updates + 1)
        for number in range(self.config.assistant.updates):
            self._update("assistant", first + number, self._assistant)
        self._update("student", first + self.config.assistant.updates, self._student)
        self.average.update()

    def _assistant(self, batch: Batch) -> None:
        # As the trainer does it: nothing is to be had there.
        assistant_pass(self.config, self.model, self.roles.student, self.roles.assistant, batch, Tensor.backward)

    def _student(self, batch: Batch) -> None:
        loss = student_loss(self.config, self.model, self.roles, batch, self.rewards)
        (loss / self.config.accumulate).backward()

    def _update(self, name: str, k: int, backward: Callable[[Batch], None]) -> None:
        for other, parameters in self.trainable.items():
            for parameter in parameters:
                parameter.requires_grad_(other == name)
        for m in range(self.config.accumulate):
            rows = self.source.rows(0, 1, m, self.config.accumulate)
            draw = self.source(k, self.dtype, rows).to(self.device)
            backward(Batch(draw, *self.texts(draw.prompts)))
        descend(getattr(self.config, name), self.optimizers[name], self.trainable[name])

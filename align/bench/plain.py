"""Diff-Instruct* written down plainly: what the trainer is measured against by `align bench --plain`.

Three full copies in float32, autograd through all of them, the autoencoder and the rewards in one graph, nothing
recomputed, and every text encoded when it is drawn. Its gradient is the trainer's, which is tested.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from align.config.train import TrainConfig
from align.data.batches import Batch
from align.memory.estimate import Implementation
from align.networks.roles import Roles
from align.objectives.distances import default_huber_c, distance_gradient
from align.objectives.metrics import Metrics
from align.objectives.weightings import WEIGHTS
from align.training import setup
from align.training.loop import update_critics
from align.training.process import Alone
from align.training.setup import Run
from evaluate.diffusion import append_dims


def student_loss(run: Run, batch: Batch) -> Tensor:
    """The loss of SIM and DI* (DI* eq. 3.3 and 3.4, guidance as in its Theorem 3.2), a scalar."""
    config, bind = run.config, run.preconditioning.denoiser
    noise, sigma, scale = batch.noise("diffusion"), batch.sigma, config.guidance.scale
    assistant, reference = (bind(role, batch.cond) for role in (run.roles.assistant, run.roles.reference))
    weight = WEIGHTS[config.divergence.weight]

    def weighted(u: Tensor, target: Tensor, term: Tensor) -> Tensor:
        w: Any = weight(sigma, x0.detach(), u.detach(), target.detach()) if callable(weight) else 1
        return w * term.flatten(1).sum(1)

    with record_function("student's forward"):
        x0 = run.generator.sample(run.roles.student, batch)
    x = x0 + append_dims(sigma, x0) * noise
    with record_function("student's divergence"), torch.set_grad_enabled(config.divergence.gradient == "exact"):
        target = conditional = reference(x, sigma)
        if config.guidance.where != "off":
            unconditional = bind(run.roles.reference, batch.uncond)(x, sigma)
        if config.guidance.where == "reference":
            target = unconditional + scale * (conditional - unconditional)
        prediction = assistant(x, sigma)
        u = prediction - target
        d_prime = distance_gradient(config.divergence.distance, u, config.divergence.huber_c or default_huber_c(x0))
    loss = -weighted(u, target, d_prime * (prediction - x0))
    if config.guidance.where == "reward":
        direction = (conditional - unconditional).detach()
        loss = loss - (scale - 1) * weighted(direction, conditional, direction * x)
    if run.rewards and run.generator.is_rewarded(batch):
        with record_function("student's reward"):
            loss = loss - run.rewards(x0, batch.prompts)[0]
    return loss.mean()


def as_plain(config: TrainConfig) -> TrainConfig:
    """The config of three full copies, whatever it says; the student starts as the reference."""
    options = {
        "text_encoding": "live",
        "text_cache": None,
        "lora": None,
        "gradient_checkpointing": False,
        "initial": None,
    }
    return config.model_copy(update=options)


def build(config: TrainConfig, *, device: torch.device, random_weights: bool = False) -> Run:
    """A run of `as_plain(config)`."""
    plain = as_plain(config)
    return setup.build(
        plain, Path(), Alone(plain, device), show=False, random_weights=random_weights, store=_full_copies
    )


def _full_copies(config: TrainConfig, initial: Any, reference: Any, *, same: bool, device: Any) -> Roles:
    return Roles(initial, reference, same=same, lora=None, checkpointing=False, device=device)


def step(run: Run, k: int) -> None:
    """All updates of the assistant, then the student's (DI* Algorithm 1). Each takes its turn at having gradients."""
    metrics = Metrics()
    _train(run, "assistant")
    update_critics(run, k, metrics)
    _train(run, "student")
    updates = run.config.assistant.updates
    for batch in run.batches(k * (updates + 1) + updates):
        loss = student_loss(run, batch) / run.config.gradient_accumulation_steps
        with record_function("student's backward"):
            loss.backward()
    run.student.step(metrics)
    run.average.update()


#: For the estimate.
PLAIN = Implementation(store=_full_copies, step=lambda run: step(run, 0))


def _train(run: Run, name: str) -> None:
    for learner in run.learners.values():
        for parameter in learner.parameters.values():
            parameter.requires_grad_(learner.name == name)

"""Stage 3: train a one-step generator. One loop for Diff-Instruct, SIM, Diff-Instruct++ and Diff-Instruct*."""

from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import record_function

from align.config.train import TrainConfig
from align.data.batches import Batch
from align.objectives.metrics import Metrics
from align.training import setup
from align.training.checkpoints import gather
from align.training.health import Guarded
from align.training.interrupt import stop_on_signal
from align.training.observe import Observer
from align.training.process import Launched
from align.training.result import finish
from align.training.setup import Run
from evaluate.console import console
from prompts.io.errors import UserError


def train(config: TrainConfig, folder: Path, *, resume: bool = False, show: bool = True) -> bool:
    """Train a generator and leave `folder/checkpoint` (DI* Algorithm 1). Returns whether it ran to its
    end (False: a signal stopped it).

    Raises Guarded, the checkpoint being written, when the guard stops the run, and Diverged.
    """
    run = setup.build(config, folder, Launched(config, folder), show=show)
    step = run.checkpoints.restore() if resume else 0
    if len(set(gather(step, run.process.world))) > 1:
        raise UserError(
            f"{folder}: processes would go on from different steps; let all of them see the same folder, whole"
        )
    if step > run.steps:
        raise UserError(f"{folder}: is at step {step} of {run.steps} already; leave out steps={config.steps}")
    with stop_on_signal() as signal, Observer(run, step, show=show) as observer:
        observer.look_first()
        while step < run.steps and not observer.stopped:
            metrics = Metrics()
            with observer.timed():
                # Critics follow the student: the assistant learns to denoise what it makes
                # now (Algorithm 1, upper half).
                drawn = update_critics(run, step, metrics)
                # The student descends the sum of its terms: divergence, guidance, minus reward (lower half; eq. 3.3).
                if step >= config.assistant.warmup:
                    update_student(run, step, metrics, drawn)
            step += 1
            observer.observe(step, metrics, signal)
    finish(run, step)
    if observer.guarded:
        raise Guarded(
            step,
            f"stopped at step {step} by held_out.guard ({observer.guarded}); {folder / 'checkpoint'} is that step's: "
            "start again with a lower reward scale",
        )
    if signal and run.process.main:
        console.print(f"stopped after step {step}; continue with --resume")
    return step == run.steps


#: A batch and what the student made of it, `[B, ...]` with its graph.
Drawn = tuple[Batch, Tensor]


def update_critics(run: Run, step: int, metrics: Metrics) -> Drawn | None:
    """Each critic descends its loss on new images of the student, `assistant.updates` times;
    once a step while it warms up. Returns the last ones where the student is to share them.
    """
    options, drawn = run.config.assistant, None
    updates = options.updates if step >= options.warmup else 1
    for update in range(updates):
        shared = options.shares_images and step >= options.warmup and update + 1 == updates
        metrics.share = 1 / (updates * run.config.gradient_accumulation_steps)
        batches = run.batches(step * (options.updates + 1) + update)
        for m, batch in enumerate(batches):
            with record_function("critics' update"):
                with torch.set_grad_enabled(shared):
                    x0 = run.generator.sample(run.student.module if shared else run.roles.student, batch)
                drawn = (batch, x0) if shared else None
                for critic in run.critics:
                    with run.learners[critic.name].grad_sync(m + 1 == len(batches)):
                        loss = critic.loss(x0.detach(), batch).mean()
                        run.process.backward(loss / len(batches))
                    metrics.add(critic.name, loss)
        metrics.prompts = batches[-1].prompts
        for critic in run.critics:
            run.learners[critic.name].step(metrics)
    return drawn


def update_student(run: Run, step: int, metrics: Metrics, drawn: Drawn | None = None) -> None:
    """The student descends the sum of its terms. Each term's gradient at x0 is taken by itself, so that of all networks
    only the student's activations are kept throughout. drawn: images to take in place of new ones.
    """
    metrics.share = 1 / run.config.gradient_accumulation_steps
    updates = run.config.assistant.updates
    # Shared images meet other noise than the assistant has just learned to take away.
    batches = [run.batches.afresh(drawn[0])] if drawn else run.batches(step * (updates + 1) + updates)
    for m, batch in enumerate(batches):
        with run.student.grad_sync(m + 1 == len(batches)):
            with record_function("student's forward"):
                x0 = drawn[1] if drawn else run.generator.sample(run.student.module, batch)
            gradient = torch.zeros_like(x0)
            for term in run.terms:
                with record_function(f"student's {term.name}"), run.roles.constant(run.roles.assistant):
                    part = term.gradient(x0.detach(), batch, metrics)
                gradient += part
                # Per image, so that the figure does not depend on the batch.
                metrics.add(f"{term.name}_gradient", part.flatten(1).norm(dim=1).mean() * len(part))
            with record_function("student's backward"):
                run.process.backward((x0 * gradient).sum() / len(batches))
    metrics.prompts = batches[-1].prompts
    run.student.step(metrics)
    run.average.update()

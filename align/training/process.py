"""One process of a run: its device, its precision, and what it shares with the others."""

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from align.config.train import TrainConfig
from align.networks import sharding
from align.objectives.metrics import Metrics
from evaluate import families, precision
from prompts.io.errors import UserError

#: How long a process waits for the others: one of them may be writing a state, or a checkpoint, to a slow disk.
PATIENCE = timedelta(hours=2)
DTYPES = precision.DTYPES | {"fp64": torch.float64}


def precisions(config: TrainConfig) -> tuple[torch.dtype, torch.dtype | None]:
    """What is trained and drawn in, and what autocast computes in, None where it casts nothing."""
    wide = torch.float64 if config.precision == "fp64" else torch.float32
    return wide, torch.bfloat16 if config.precision == "bf16" else None


class Alone:
    """A process by itself, without accelerate: what the memory estimate and the plain implementation run in."""

    rank, world, sharded = 0, 1, False

    def __init__(self, config: TrainConfig, device: Any):
        self.device, self.narrow = torch.device(device), precisions(config)[1]
        if not self.narrow:  # fp32 is that: by default a GPU's convolutions round what they read to 10 bits
            torch.backends.cudnn.allow_tf32 = False

    @property
    def main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def autocast(self) -> Any:
        """Within: networks compute in the run's precision."""
        return torch.autocast(self.device.type, dtype=self.narrow) if self.narrow else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add a scalar's gradient to the parameters'."""
        loss.backward()

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The two as training calls them."""
        return module, optimizer

    def unsynced(self, module: nn.Module) -> Any:
        """Within: gradients are not averaged over processes."""
        return nullcontext()

    @property
    def clip_grad_norm(self) -> Callable[..., Any]:
        """Clips the gradients of parameters to a norm and returns the norm before."""
        return nn.utils.clip_grad_norm_

    def mean(self, metrics: Metrics) -> dict[str, float]:
        """Every metric's mean over processes."""
        return dict(zip(metrics.values, metrics.stacked().tolist(), strict=True))

    def wait(self) -> None:
        """Until every process is here."""

    def start_trackers(self, config: TrainConfig) -> None:
        """Begin what a config's trackers keep."""

    def track(self, values: dict[str, float], step: int) -> None:
        """Tell the trackers a step's numbers."""

    def end_trackers(self) -> None:
        """Have them finish."""


class Launched(Alone):
    """One of the processes that a launcher started, or the only one, through accelerate."""

    def __init__(self, config: TrainConfig, folder: Path):
        """Raises UserError where the config does not go with the machine or the number of processes."""
        from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

        _check_trackers(config)
        # Buffers are constants, a quantised base's billions of weights among them.
        spare = DistributedDataParallelKwargs(
            find_unused_parameters=families.load(config.family).spare_layers, broadcast_buffers=False
        )
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision="bf16" if config.precision == "bf16" else "no",
            log_with=list(config.trackers) or None,
            project_dir=str(folder),
            kwargs_handlers=[spare, InitProcessGroupKwargs(timeout=PATIENCE)],
        )
        super().__init__(config, self.accelerator.device)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        if config.batch_size % (self.world * config.gradient_accumulation_steps):
            raise UserError(
                f"batch_size = {config.batch_size} is not a multiple of {self.world} processes x"
                f" gradient_accumulation_steps {config.gradient_accumulation_steps}; change one"
            )
        self.sharded = config.parallel == "fsdp2"
        if self.sharded and self.world == 1:
            raise UserError("parallel = fsdp2 needs several processes (torchrun); start it with them, or set ddp")

    def autocast(self) -> Any:
        """As accelerate has it."""
        return self.accelerator.autocast()

    def backward(self, loss: Tensor) -> None:
        """As accelerate has it."""
        self.accelerator.backward(loss)

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Wrapped by accelerate, unless sharding has seen to it: roles are sharded, other critics are not."""
        if self.sharded and any(map(sharding.is_sharded, module.parameters())):
            return module, optimizer
        prepared: tuple[nn.Module, torch.optim.Optimizer] = self.accelerator.prepare(module, optimizer)
        if prepared[0] is not module and hasattr(module, "config"):
            prepared[0].config = module.config  # which a family may ask for
        return prepared

    def unsynced(self, module: nn.Module) -> Any:
        """DDP's way; a sharded network has its own (`networks.sharding.sync`)."""
        wrapped = isinstance(module, nn.parallel.DistributedDataParallel)
        return self.accelerator.no_sync(module) if wrapped else nullcontext()

    @property
    def clip_grad_norm(self) -> Callable[..., Any]:
        """Accelerate's, which knows of its ways to spread a network."""
        clip: Callable[..., Any] = self.accelerator.clip_grad_norm_
        return clip

    def mean(self, metrics: Metrics) -> dict[str, float]:
        """In one message."""
        means = self.accelerator.reduce(metrics.stacked(), reduction="mean").tolist()
        return dict(zip(metrics.values, means, strict=True))

    def wait(self) -> None:
        """For the other processes."""
        self.accelerator.wait_for_everyone()

    def start_trackers(self, config: TrainConfig) -> None:
        """Accelerate's, where a config names some."""
        if config.trackers:
            # TensorBoard takes numbers and words alone.
            self.accelerator.init_trackers("align", dict(_flat(config.model_dump(mode="json"))))

    def track(self, values: dict[str, float], step: int) -> None:
        """Nothing where there are none."""
        self.accelerator.log(values, step=step)

    def end_trackers(self) -> None:
        """Not `end_training`, which ends the processes' group too."""
        for tracker in self.accelerator.trackers:
            tracker.finish()


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, bool | int | float | str) else json.dumps(value)


def _check_trackers(config: TrainConfig) -> None:
    """accelerate passes over a tracker it cannot find without a word."""
    from accelerate.tracking import get_available_trackers

    available = [str(tracker.value) for tracker in get_available_trackers()]
    for name in config.trackers:
        if name not in available:
            raise UserError(
                f"trackers: {name!r} is not installed; install it, or choose from {', '.join(available) or 'none'}"
            )

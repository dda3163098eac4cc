"""What a run will need of a GPU's memory: one step carried out by the loop's own functions, on tensors that have a shape and no numbers.

Networks are made from their configs alone, as fake tensors (torch's FakeTensorMode), so neither weights nor a GPU are needed. Fake
tensors pose as a CPU's: autograd's engine refuses those of a GPU that is not there. Where CUDA differs in what it keeps, autocast's
list of operations in float32 and the allocator's blocks of 512 bytes, that is carried out here; attention keeps the same by CPU's
kernel as by flash's: queries, keys, values, output and a log-sum-exp.
"""

import copy
import itertools
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.profiler import record_function
from torch.utils._pytree import tree_leaves

from align.config import Optimizer, TrainConfig
from align.data.prompts import read_prompts
from align.data.text_embeddings import Live, encoders
from align.memory.tracker import BLOCK, FAKE, GRADIENTS, WEIGHTS, Tracker, as_on_cuda
from align.networks.lora import Adapted
from align.networks.roles import Roles
from align.rewards.decoder import Decoder
from align.rewards.differentiable import Rewards
from align.training import validation as monitor
from align.training.ema import Average
from align.training.loop import Batch, Model, assistant_pass, make_roles, make_source, precisions, student_pass
from align.training.optimizers import descend, make_optimizer
from evaluate import families, hub
from evaluate.timing import random_pipeline
from prompts.errors import UserError

#: Bytes that no tensor holds: CUDA's context, and what cuBLAS, cuDNN and the allocator's fragments take.
RESERVE = 2**30

GIB = 2**30


class Role(NamedTuple):
    """Parameters of a role, how many of them are trained, and where they are kept."""

    parameters: int
    trainable: int
    kept: str


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes that one process holds when it holds most. phases: the most in each. reserve: what no tensor of ours holds.

    flops: what a step's matrix products, convolutions and attention cost one process, those that are carried out twice included.
    state: what is gathered in the first process's CPU memory while a state is saved, 0 where nothing is sharded.
    """

    roles: dict[str, Role]
    parts: dict[str, float]
    phases: dict[str, float]
    phase: str
    reserve: float
    flops: float
    state: int

    @property
    def total(self) -> float:
        """All parts and the reserve."""
        return sum(self.parts.values()) + self.reserve


def estimate(config: TrainConfig, *, processes: int = 1, cuda: bool = True) -> Estimate:
    """Carry out a step, and the drawing of samples, without numbers. cuda: as on a GPU; else as on a CPU, where all parts stay."""
    if config.batch_size % (processes * config.accumulate):
        raise UserError(
            f"batch_size = {config.batch_size} is not a multiple of {processes} processes x accumulate {config.accumulate}; change one"
        )
    # Prompts are padded, so any do.
    held = config.held_out.model_copy(update={"prompts": "shapes:validation"})
    config = config.model_copy(update={"prompts": "shapes:train", "held_out": held})
    dtype, narrow = precisions(config)
    sharded = config.parallel == "fsdp2" and processes > 1

    def autocast() -> Any:
        return torch.autocast("cpu", dtype=narrow) if narrow else nullcontext()

    # ---- models, as train() makes them -----------------------------------------------------------------------------------
    pipeline = random_pipeline(config.pipeline or config.reference, dtype=dtype, device="meta")
    with torch.device("meta"), hub.weights_left_out():
        reference = getattr(pipeline, families.load(config.family).network)
        same = config.initial in (None, config.reference)
        initial = reference if same else copy.deepcopy(reference)
        decoder = Decoder(pipeline.vae, tiny=config.reward_vae, checkpointing=config.gradient_checkpointing, device="meta")
        rewards = Rewards(config.rewards, decoder, device="meta", dtype=dtype)
        held_out = monitor.load_scorers(config, device="meta", dtype=dtype)
        roles = make_roles(config, initial, reference, same=same, device="meta")
    modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    _fake(
        [
            *modules,
            *roles.networks(),
            roles.student,
            roles.assistant,
            decoder.vae,
            *rewards.scorers.values(),
            *held_out.values(),
        ]
    )
    # From here on factories make true tensors, small ones; what meets a fake one becomes fake.
    model = Model(config, pipeline, autocast)
    # Those that pass no gradient read numbers, on the CPU.
    networks = {name: scorer for name, scorer in held_out.items() if scorer.differentiable}
    watcher = monitor.Monitor(config, pipeline, model, rewards, decoder, networks, device="cpu", dtype=dtype)
    if config.gradient_checkpointing and not held.scorers:  # drawn one at a time, so that a few are as good as all
        watcher.z, watcher.noise = watcher.z[:4].clone(), watcher.noise[:4].clone()
        watcher.given = {key: value[:4].clone() for key, value in watcher.given.items()}
    texts = Live(model.family, pipeline, read_prompts(config.prompts), device="cpu", dtype=narrow or dtype)
    trainable = {name: roles.trainable(getattr(roles, name)) for name in ("student", "assistant")}

    tracker = Tracker(block=BLOCK if cuda else 1, shares=_shares(config, processes) if sharded else {})
    for name, tensors in _weights(roles).items():
        tracker.hold(f"{WEIGHTS}: {name}", tensors)
    tracker.hold("autoencoder", _tensors(decoder.vae))
    tracker.hold("scorers", [t for scorer in [*rewards.scorers.values(), *held_out.values()] for t in _tensors(scorer)])
    told = [part for part in encoders(pipeline).values() if isinstance(part, nn.Module)]
    if config.text_encoding == "live":
        tracker.hold("text encoders", [tensor for part in told for tensor in _tensors(part)])
    if not cuda:  # where all of the pipeline but the text encoders stays
        others = [tensor for part in modules if part not in told for tensor in _tensors(part)]
        tracker.hold("rest of the pipeline", [tensor for tensor in others if not tracker.part(tensor)])
    for parameters in trainable.values():
        for parameter in parameters.values():
            parameter.register_post_accumulate_grad_hook(lambda p: tracker.hold(GRADIENTS, [p.grad]))

    with as_on_cuda() if cuda else nullcontext(), tracker:
        average = Average(trainable["student"], config.ema)
        tracker.hold("average", average.values.values())
        tracker.hold("watched pictures", [watcher.z, watcher.noise, *watcher.given.values()])
        optimizers = {name: _primed(getattr(config, name), parameters) for name, parameters in trainable.items()}
        for optimizer in optimizers.values():
            tracker.hold("optimiser states", (t for t in tree_leaves(list(optimizer.state.values())) if isinstance(t, Tensor)))
        buckets = _extra(config, roles, trainable, processes)
        for part, tensor in buckets.items():
            tracker.hold(part, [tensor])

        def apply(name: str) -> None:
            with record_function(f"{name}'s optimiser"):
                descend(getattr(config, name), optimizers[name], trainable[name].values())

        size = config.batch_size // (processes * config.accumulate)
        source = make_source(config, model, reference, len(texts.prompts), size)
        draws = [source(k, dtype) for k in range(config.accumulate)]
        batches = [Batch(draw, *texts(draw.prompts)) for draw in draws]  # the loop holds all of an update's
        tracker.hold(
            "batch",
            (t for b in batches for t in (b.draw.z, b.draw.noise, b.draw.sigma, *b.given.values(), *b.null.values())),
        )

        def later(name: str) -> Batch:
            """A micro-batch, and where there are several, the gradients that all but the first one find."""
            for parameter in trainable[name].values() if config.accumulate > 1 else ():
                parameter.grad = torch.zeros_like(parameter)
                tracker.hold(GRADIENTS, [parameter.grad])
            return batches[-1]

        assistant_pass(config, model, roles.student, roles.assistant, later("assistant"), Tensor.backward)
        apply("assistant")
        student_pass(config, model, roles, roles.student, later("student"), rewards, Tensor.backward)
        apply("student")
        average.update()
        with average.applied():
            if held.scorers:
                watcher.scores(roles.student)
            watcher.draw(0, roles, Path(), keep=False)
        saved = _state(trainable, average, optimizers) if sharded else []
        if sharded:  # of what is saved and exported, one whole tensor at a time
            with record_function("saving"):
                largest = max(_bytes([tensor]) for tensor in [*saved, *_tensors(roles.student)])
                tracker.hold("a whole tensor", [_room(largest)])
    passes = {"assistant's update": config.accumulate * config.assistant.updates}
    flops = sum(
        count * passes.get(phase, config.accumulate)
        for phase, count in tracker.flops.items()
        if phase.startswith(("assistant's", "student's"))
    )
    return Estimate(
        roles=_roles(config, roles, trainable, same=same), parts=dict(tracker.peak), phases=dict(tracker.peaks),
        phase=tracker.phase, reserve=RESERVE if cuda else 0.0,
        flops=float(flops), state=_bytes(saved),
    )  # fmt: skip


def _fake(modules: Iterable[nn.Module]) -> None:
    """Put a fake tensor in the place of every parameter and buffer. Modules have to be finished: fake parameters cannot be cast."""
    made: dict[int, nn.Parameter] = {}
    with FAKE:
        for module in {id(each): each for root in modules for each in root.modules()}.values():
            for name, old in [*module._parameters.items(), *module._buffers.items()]:
                if old is None or isinstance(old, FakeTensor):
                    continue
                new = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device="cpu")
                if isinstance(old, nn.Parameter):
                    module._parameters[name] = made.setdefault(id(old), nn.Parameter(new, requires_grad=old.requires_grad))
                else:
                    module._buffers[name] = new


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(module.parameters(), module.buffers())


def _weights(roles: Roles) -> dict[str, list[Tensor]]:
    """Every role's own tensors, each once; a base goes by the first role that needs it."""
    found: dict[str, list[Tensor]] = {}
    for name in ("student", "assistant"):
        role = getattr(roles, name)
        if isinstance(role, Adapted):
            found[f"{name}'s adapter"] = list(role.trainable().values())
    seen = {id(tensor) for tensors in found.values() for tensor in tensors}
    for name in ("reference", "assistant", "student"):
        role = getattr(roles, name)
        own = [tensor for tensor in _tensors(role) if id(tensor) not in seen]
        seen |= {id(tensor) for tensor in own}
        if own:
            found[f"{name}'s base" if isinstance(role, Adapted) else name] = own
    return found


def _primed(options: Optimizer, parameters: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    """An optimiser that has its states already."""
    optimizer = make_optimizer(options, list(parameters.values()))
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer


def _state(
    trainable: dict[str, dict[str, nn.Parameter]], average: Average, optimizers: dict[str, torch.optim.Optimizer]
) -> list[Tensor]:
    """The tensors of a state on disk."""
    states = [average.state_dict(), *(optimizer.state_dict() for optimizer in optimizers.values())]
    return [leaf for leaf in tree_leaves([trainable, states]) if isinstance(leaf, Tensor)]


def _shares(config: TrainConfig, processes: int) -> dict[str, float]:
    """What FSDP2 leaves one process of each part. Between micro-batches gradients are kept whole (`sharding.sync`)."""
    names = ("student", "assistant", "reference")
    parts = [f"{WEIGHTS}: {name}{end}" for name in names for end in ("", "'s base", "'s adapter")]
    whole = [] if config.accumulate > 1 else [GRADIENTS]
    return dict.fromkeys([*parts, *whole, "optimiser states", "average"], 1 / processes)


def _extra(
    config: TrainConfig, roles: Roles, trainable: dict[str, dict[str, nn.Parameter]], processes: int
) -> dict[str, Tensor]:
    """What DDP or FSDP2 hold beside: buckets as large as the gradients, or blocks gathered from all processes."""
    if processes == 1:
        return {}
    if config.parallel == "ddp":
        return {"gradient buckets (DDP)": _room(sum(_bytes(p.values()) for p in trainable.values()))}
    blocks, rest = [0], 0
    for network in roles.networks():
        lists = [child for child in network.children() if isinstance(child, nn.ModuleList)]
        own = [_bytes(block.parameters()) for each in lists for block in each]
        blocks += own
        rest += _bytes(network.parameters()) - sum(own)
    # A block in use, the next one on its way, and the gradients of one on their way back.
    return {"gathered blocks (FSDP2)": _room(rest + 3 * max(blocks))}


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def _room(size: int) -> Tensor:
    with FAKE:
        return torch.empty(size, dtype=torch.uint8)


def _roles(config: TrainConfig, roles: Roles, trainable: dict[str, dict[str, nn.Parameter]], *, same: bool) -> dict[str, Role]:
    found = {}
    for name in ("student", "assistant", "reference"):
        role = getattr(roles, name)
        mine = sum(p.numel() for p in trainable.get(name, {}).values())
        if isinstance(role, Adapted):
            base = sum(p.numel() for key, p in role.base.named_parameters() if ".lora_" not in key)
            over = "a base of its own" if name == "student" and not same else "the reference"
            kept = "base of the adapters" if name == "reference" else f"adapter of rank {config.lora.rank} over {over}"  # type: ignore[union-attr]
            found[name] = Role(base + mine, mine, kept)
        else:
            found[name] = Role(sum(p.numel() for p in role.parameters()), mine, "full copy")
    return found

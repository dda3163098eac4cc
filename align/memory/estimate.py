"""What a run will need of a GPU's memory: one step carried out by the loop's own functions, on fake tensors.

Networks are made from their configs alone, as fake tensors (torch's FakeTensorMode), so neither weights nor a GPU are
needed. Fake tensors pose as a CPU's: autograd's engine refuses those of a GPU that is not there. Where CUDA differs in
what it keeps, autocast's list of operations in float32 and the allocator's blocks of 512 bytes, that is carried out
here; attention keeps the same by CPU's kernel as by flash's: queries, keys, values, output and a log-sum-exp.
"""

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.profiler import record_function
from torch.utils._pytree import tree_leaves

from align.config.train import TrainConfig
from align.data.batches import Batch
from align.data.text_embeddings import ENCODING, Conditioning, OnlineTextEncoder, encoders
from align.memory.tracker import BLOCK, FAKE, GRADIENTS, WEIGHTS, Tracker, as_on_cuda
from align.networks.lora import Adapted
from align.networks.roles import Roles
from align.objectives.metrics import Metrics
from align.training import setup
from align.training.loop import update_critics, update_student
from align.training.process import Alone, precisions
from align.training.validation import fixed_batch
from evaluate.families import Family
from prompts.io.errors import UserError
from prompts.readers import Prompts, read_prompts

#: Bytes that no tensor holds: CUDA's context, and what cuBLAS, cuDNN and the allocator's fragments take.
RESERVE = 2**30

GIB = 2**30


class Role(NamedTuple):
    """Parameters of a role, how many of them are trained, and where they are kept."""

    parameters: int
    trainable: int
    kept: str


def _train(run: setup.Run) -> None:
    update_student(run, 0, Metrics(), update_critics(run, 0, Metrics()))


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """What is carried out. store: how roles are kept, as `setup.make_roles`. step: one step of a run."""

    store: Callable[..., Roles]
    step: Callable[[setup.Run], None]


#: The phase before the first step.
AHEAD = "encoding prompts ahead"
TRAINER = Implementation(store=setup.make_roles, step=_train)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes that one process holds when it holds most. phases: the most in each. reserve: what no tensor of ours holds.

    operations: of a step's matrix products, convolutions and attention in one process, by phase, those that are
    carried out twice included; of a few-step generator, where its last step is trained, which takes most. state: what
    is gathered in the first process's CPU memory while a state is saved, 0 where nothing is sharded. load: of each
    process's CPU memory while networks are read. written: of the first process's while the checkpoint is. encoding: of
    the GPU's while prompts are encoded ahead, without what lies between layers, and row: of the disk for each of them;
    0 where none are.
    """

    roles: dict[str, Role]
    parts: dict[str, float]
    phases: dict[str, float]
    phase: str
    reserve: float
    operations: dict[str, float]
    state: int
    load: int
    written: int
    encoding: int
    row: int

    @property
    def flops(self) -> float:
        """All operations."""
        return sum(self.operations.values())

    @property
    def total(self) -> float:
        """All parts and the reserve."""
        return sum(self.parts.values()) + self.reserve


def estimate(
    config: TrainConfig, *, processes: int = 1, cuda: bool = True, implementation: Implementation = TRAINER
) -> Estimate:
    """Carry out a step, and the drawing of samples, on fake tensors.

    cuda: as on a GPU; else as on a CPU, where all parts stay. implementation: whose step.
    """
    if config.batch_size % (processes * config.gradient_accumulation_steps):
        raise UserError(
            f"batch_size = {config.batch_size} is not a multiple of {processes} processes x "
            f"gradient_accumulation_steps {config.gradient_accumulation_steps}; change one"
        )
    sharded = config.parallel == "fsdp2" and processes > 1
    tracker = Tracker(block=BLOCK if cuda else 1, shares=_shares(config, processes) if sharded else {})
    run, parts = _read(_carried_out(config, processes), tracker, cuda=cuda, sharded=sharded, store=implementation.store)
    with as_on_cuda() if cuda else nullcontext(), warnings.catch_warnings(), tracker:
        # `pad_sequence` makes a true tensor of fake ones, with a graph, and torch asks it for its gradient.
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        built = run()
        if sharded:  # it leaves sharded parameters as they are, and those here only stand for such
            built.roles.constant = nullcontext  # type: ignore[assignment, method-assign]
        _prepare(built, tracker)
        for part, tensor in _extra(config, built, processes).items():
            tracker.hold(part, [tensor])
        passes = built.config.gradient_accumulation_steps
        _hold_batches(built, tracker, more=config.gradient_accumulation_steps - passes)
        implementation.step(built)
        with built.average.applied():
            if parts.scoring.held_out:
                built.validation.scores(built.roles.student)
            built.samples.draw(0, built.roles, Path(), keep=False)
        saved = [leaf for leaf in tree_leaves(built.checkpoints.state()) if isinstance(leaf, Tensor)] if sharded else []
        if sharded:  # of what is saved and exported, one whole tensor at a time
            with record_function("saving"):
                largest = max(_bytes([tensor]) for tensor in [*saved, *_tensors(built.roles.student)])
                tracker.hold("a whole tensor", [_room(largest)])
    peak, phase = dict(tracker.peak), tracker.phase
    if cuda and parts.encoding > sum(peak.values()):
        peak, phase = {"text encoders": float(parts.encoding)}, AHEAD
    return Estimate(
        roles=_roles(config, built, same=parts.same),
        parts=peak,
        phases=dict(tracker.peaks) | ({AHEAD: float(parts.encoding)} if cuda and parts.encoding else {}),
        phase=phase,
        reserve=RESERVE if cuda else 0.0,
        operations=_operations(config, tracker, passes),
        state=_bytes(saved),
        load=parts.load,
        written=parts.written,
        encoding=parts.encoding,
        row=parts.row,
    )


def _operations(config: TrainConfig, tracker: Tracker, passes: int) -> dict[str, float]:
    """Of a whole step, whose critics are updated more than once and whose micro-batches are more than `passes`."""
    updates = config.assistant.updates
    # Texts are encoded for each update of the critics and for the student's, of which one each has been carried out.
    times = {"critics' update": float(updates), ENCODING: (updates + 1) / 2}
    micro_batches = config.gradient_accumulation_steps / passes
    return {
        phase: count * micro_batches * times.get(phase, 1.0)
        for phase, count in tracker.flops.items()
        if phase in times or phase.startswith("student's")
    }


def _carried_out(config: TrainConfig, processes: int) -> TrainConfig:
    """One process's step with one update of the assistant and at most two micro-batches: the second finds the first's
    gradients, and all others are like it. Prompts count as the longest, so any do.
    """
    passes = min(config.gradient_accumulation_steps, 2)
    return config.model_copy(
        update={
            "prompts": "shapes:train",
            "held_out": config.held_out.model_copy(update={"prompts": "shapes:validation"}),
            "gradient_accumulation_steps": passes,
            "compile": False,
            "batch_size": config.batch_size // (processes * config.gradient_accumulation_steps) * passes,
            "assistant": config.assistant.model_copy(update={"updates": 1, "warmup": 0}),
        }
    )


class LongestTexts(OnlineTextEncoder):
    """Prompts without padding: some networks see a prompt's tokens alone, and as many as it has."""

    def _moved(self, rows: Mapping[str, Tensor]) -> Conditioning:
        return {key: torch.ones_like(x) if key == "mask" else x for key, x in super()._moved(rows).items()}


class _FromFiles(LongestTexts):
    """Texts that were encoded ahead: by the time of a step their encoders are not there, so one row stands for all."""

    def __init__(self, family: Family, pipeline: Any, prompts: Prompts, *, device: Any, dtype: torch.dtype):
        super().__init__(family, pipeline, prompts, device=device, dtype=dtype)
        self.row = self._encode([prompts[0]])

    def cond(self, picks: Any, texts: list[str]) -> Conditioning:
        """As many rows as there are texts."""
        return {key: value.repeat(len(texts), *[1] * (value.dim() - 1)) for key, value in self.row.items()}


class Parts(NamedTuple):
    """What is read before a run is put together. same: whether the student starts from the reference's network.
    load, written, encoding, row: `Estimate`'s.
    """

    scoring: setup.Scoring
    same: bool
    load: int
    written: int
    encoding: int
    row: int


def _read(
    config: TrainConfig, tracker: Tracker, *, cuda: bool, sharded: bool, store: Callable[..., Roles]
) -> tuple[Callable[[], setup.Run], Parts]:
    """Fake networks, counted, and what makes a run of them."""
    process = Alone(config, "cpu")
    dtype, narrow = precisions(config)
    pipeline = setup.load_pipeline(config, dtype, random_weights=True, device="meta")
    with torch.device("meta"):
        initial, reference, same = setup.load_networks(config, pipeline, random_weights=True)
        modules = _modules(pipeline.components)
        readers = _modules(encoders(pipeline))
        read = {id(tensor): tensor for part in [*modules, initial] for tensor in _tensors(part)}
        load, written = _bytes(read.values()), _written(modules, reference, dtype)
        scoring = setup.Scoring(config, pipeline, device="meta", dtype=dtype, random_weights=True)
        roles = store(config, initial, reference, same=same, device="meta")
    if sharded:
        load += _copied(roles, known=read, readers=readers)
    scorers = [*scoring.rewards.scorers.values(), *scoring.held_out.values()]
    _fake([*modules, *roles.networks(), roles.student, roles.assistant, scoring.decoder.vae, *scorers])
    # From here on factories make true tensors, small ones; what meets a fake one becomes fake.
    for name, tensors in _weights(roles).items():
        tracker.hold(f"{WEIGHTS}: {name}", tensors)
    tracker.hold("autoencoder", _tensors(scoring.decoder.vae))
    tracker.hold("scorers", [tensor for scorer in scorers for tensor in _tensors(scorer)])
    if config.text_encoding == "live":
        tracker.hold("text encoders", [tensor for part in readers for tensor in _tensors(part)])
    if not cuda:  # where all of the pipeline but the text encoders stays
        others = [tensor for part in modules if part not in readers for tensor in _tensors(part)]
        tracker.hold("rest of the pipeline", [tensor for tensor in others if not tracker.part(tensor)])
    # Those that pass no gradient read numbers, on the CPU.
    scoring.held_out = {name: scorer for name, scorer in scoring.held_out.items() if scorer.differentiable}
    preconditioning = setup.make_preconditioning(config, pipeline, process)
    # Where they are drawn one at a time a few are as good as all.
    few = 4 if config.gradient_checkpointing and not config.held_out.scorers else None
    watched = fixed_batch(config, preconditioning, pipeline, device="cpu", dtype=dtype, limit=few)
    texts = (LongestTexts if config.text_encoding == "live" else _FromFiles)(
        preconditioning.family,
        pipeline,
        read_prompts(config.prompts, at_most=config.max_prompts),
        device="cpu",
        dtype=narrow or dtype,
    )
    make = partial(
        setup.assemble,
        config,
        Path(),
        process,
        pipeline=pipeline,
        preconditioning=preconditioning,
        generator=setup.make_generator(config, preconditioning),
        roles=roles,
        texts=texts,
        scoring=scoring,
        watched=watched,
    )
    encoding = row = 0
    if isinstance(texts, _FromFiles):
        encoding = _bytes(tensor for part in readers for tensor in _tensors(part))
        row = sum(value.numel() for value in texts.row.values()) * (narrow or dtype).itemsize
    return make, Parts(scoring, same, load, written, encoding, row)


def _modules(parts: Mapping[str, Any]) -> list[nn.Module]:
    return [part for part in parts.values() if isinstance(part, nn.Module)]


def _copied(roles: Roles, *, known: Mapping[int, Tensor], readers: Sequence[nn.Module]) -> int:
    """How many bytes more the CPU holds where roles are made there: of their tensors that are not `known` by their id,
    less those of the text encoders, which have left by then.
    """
    made = {id(tensor): tensor for network in roles.networks() for tensor in _tensors(network)}
    copies = _bytes(tensor for key, tensor in made.items() if key not in known)
    return max(0, copies - _bytes(tensor for part in readers for tensor in _tensors(part)))


def _written(modules: Sequence[nn.Module], network: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of a whole pipeline as it is exported: its network in float32, whatever it was kept in, and all else in
    `dtype`.
    """
    kept = ((tensor, torch.float32 if part is network else dtype) for part in modules for tensor in _tensors(part))
    return sum(tensor.numel() * (to if tensor.is_floating_point() else tensor.dtype).itemsize for tensor, to in kept)


def _prepare(run: setup.Run, tracker: Tracker) -> None:
    """Give optimisers their states, and count what is there from the first step on."""
    if run.config.ema:  # else it is the student
        tracker.hold("average", run.average.values.values())
    if watched := run.samples.sampler.batch:
        tracker.hold("watched images", [watched.noise("z"), watched.noise("diffusion"), *watched.cond.values()])
    for learner in run.learners.values():
        for parameter in learner.parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        learner.optimizer.step()
        learner.optimizer.zero_grad(set_to_none=True)
        states = tree_leaves(list(learner.optimizer.state.values()))
        tracker.hold("optimiser states", (tensor for tensor in states if isinstance(tensor, Tensor)))
        for parameter in learner.parameters.values():
            parameter.register_post_accumulate_grad_hook(lambda p: tracker.hold(GRADIENTS, [p.grad]))


def _hold_batches(run: setup.Run, tracker: Tracker, *, more: int) -> None:
    """Count batches as such: the loop holds all of an update's.

    more: micro-batches that are there and are not carried out.
    """
    run.batches.numbered = False
    draw = run.batches.draw

    def counted(k: int, m: int) -> Batch:
        batch = draw(k, m)
        parts = [batch.sigma, batch.noise("z"), batch.noise("diffusion"), *batch.cond.values(), *batch.uncond.values()]
        tracker.hold("batch", parts)
        if more and not filler:
            filler.append(_room(more * _bytes(parts)))
            tracker.hold("batch", filler)
        return batch

    filler: list[Tensor] = []
    run.batches.draw = counted  # type: ignore[method-assign]


def _fake(modules: Iterable[nn.Module]) -> None:
    """Put a fake tensor in the place of every parameter and buffer, and of what a module keeps beside them, as
    Qwen-Image's does its places.

    Modules have to be finished: fake parameters cannot be cast.
    """
    parameters: dict[int, nn.Parameter] = {}
    with FAKE:
        for module in {id(each): each for root in modules for each in root.modules()}.values():
            for name, old in [*module._parameters.items(), *module._buffers.items()]:
                if old is None or isinstance(old, FakeTensor):
                    continue
                new = _like(old)
                if isinstance(old, nn.Parameter):
                    module._parameters[name] = parameters.setdefault(
                        id(old), nn.Parameter(new, requires_grad=old.requires_grad)
                    )
                else:
                    module._buffers[name] = new
            beside = {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
            vars(module).update({name: _like(value) for name, value in beside.items() if value.is_meta})


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(module.parameters(), module.buffers())


def _weights(roles: Roles) -> dict[str, list[Tensor]]:
    """Every role's own tensors, each once; a base goes by the first role that needs it."""
    weights: dict[str, list[Tensor]] = {}
    for name in ("student", "assistant"):
        role = getattr(roles, name)
        if isinstance(role, Adapted):
            weights[f"{name}'s adapter"] = list(role.trainable().values())
    seen = {id(tensor) for tensors in weights.values() for tensor in tensors}
    for name in ("reference", "assistant", "student"):
        role = getattr(roles, name)
        tensors_of_role = [tensor for tensor in _tensors(role) if id(tensor) not in seen]
        seen |= {id(tensor) for tensor in tensors_of_role}
        if tensors_of_role:
            weights[f"{name}'s base" if isinstance(role, Adapted) else name] = tensors_of_role
    return weights


def _shares(config: TrainConfig, processes: int) -> dict[str, float]:
    """What FSDP2 leaves one process of each part. Between micro-batches gradients are kept whole (`sharding.sync`)."""
    names = ("student", "assistant", "reference")
    parts = [f"{WEIGHTS}: {name}{end}" for name in names for end in ("", "'s base", "'s adapter")]
    whole = [] if config.gradient_accumulation_steps > 1 else [GRADIENTS]
    return dict.fromkeys([*parts, *whole, "optimiser states", "average"], 1 / processes)


def _extra(config: TrainConfig, run: setup.Run, processes: int) -> dict[str, Tensor]:
    """What DDP or FSDP2 hold beside: buckets as large as the gradients, or blocks gathered from all processes."""
    if processes == 1:
        return {}
    if config.parallel == "ddp":
        return {
            "gradient buckets (DDP)": _room(
                sum(_bytes(learner.parameters.values()) for learner in run.learners.values())
            )
        }
    blocks, rest = [0], 0
    for network in run.roles.networks():
        lists = [child for child in network.children() if isinstance(child, nn.ModuleList)]
        block_bytes = [_bytes(block.parameters()) for each in lists for block in each]
        blocks += block_bytes
        rest += _bytes(network.parameters()) - sum(block_bytes)
    # A block in use, the next one on its way, and the gradients of one on their way back.
    return {"gathered blocks (FSDP2)": _room(rest + 3 * max(blocks))}


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def _room(size: int) -> Tensor:
    with FAKE:
        return torch.empty(size, dtype=torch.uint8)


def _roles(config: TrainConfig, run: setup.Run, *, same: bool) -> dict[str, Role]:
    roles = {}
    for name in ("student", "assistant", "reference"):
        role = getattr(run.roles, name)
        trainable = sum(p.numel() for p in run.learners[name].parameters.values()) if name in run.learners else 0
        if isinstance(role, Adapted):
            base = sum(p.numel() for key, p in role.base.named_parameters() if ".lora_" not in key)
            over = "a base of its own" if name == "student" and not same else "the reference"
            kept = "base of the adapters" if name == "reference" else f"adapter of rank {config.lora.rank} over {over}"  # type: ignore[union-attr]
            roles[name] = Role(base + trainable, trainable, kept)
        else:
            roles[name] = Role(sum(p.numel() for p in role.parameters()), trainable, "full copy")
    return roles

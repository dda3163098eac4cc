"""Counting bytes and operations while a step is carried out on fake tensors.

torch's own `MemTracker` (2.15) cannot: it refuses a network that is called twice in a step, weights that are frozen,
parts with names of our own, and it knows modules where the estimate tells phases.
"""

import functools
import warnings
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

BLOCK = 512  # bytes: what CUDA's caching allocator rounds to

WEIGHTS, ACTIVATIONS, CASTS, GRADIENTS = "weights", "activations", "weights cast by autocast", "gradients"

#: What a fake tensor meets becomes fake.
FAKE = FakeTensorMode(allow_non_fake_inputs=True)


class Tracker(TorchDispatchMode):
    """Within: counts the bytes of every storage that an operation makes, until it is freed.

    block: what sizes are rounded up to. shares: of a part's bytes, the share that one process holds. live: bytes now,
    by part; peak: bytes by part when there were most; phase: the innermost `record_function` then. flops: of matrix
    products, convolutions and attention, by phase.
    """

    def __init__(self, *, block: int = 1, shares: dict[str, float] | None = None):
        super().__init__()
        self.block, self.shares = block, shares or {}
        self.live: Counter[str] = Counter()
        self.total, self.most = 0.0, 0.0
        self.peak: dict[str, float] = {}
        self.phase = ""
        self.peaks: dict[str, float] = {}
        self.flops: Counter[str] = Counter()
        self._phases: list[str] = []
        self._known: dict[int, tuple[Any, str, float]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.name()
        if name.startswith("profiler::_record_function_enter"):
            self._phases.append(args[0])
        elif name.startswith("profiler::_record_function_exit"):
            self._phases.pop()
        else:
            if func._overloadpacket in flop_registry:
                self.flops[self._inside()] += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
            part = ACTIVATIONS
            if name == "aten::_to_copy" and isinstance(args[0], Tensor) and self.part(args[0]).startswith(WEIGHTS):
                part = CASTS
            for tensor in tree_leaves(out):
                # What wraps other tensors, as a sharded one does its part, has a storage in name only.
                if isinstance(tensor, Tensor) and not is_traceable_wrapper_subclass(tensor):
                    self._add(tensor, part)
        return out

    def _inside(self) -> str:
        return next((each for each in reversed(self._phases) if not each.startswith("Optimizer.")), "")

    def part(self, tensor: Tensor) -> str:
        """What a tensor is counted as; nothing where it is not."""
        return self._known.get(tensor.untyped_storage()._cdata, (None, "", 0))[1]

    def hold(self, part: str, tensors: Iterable[Tensor]) -> None:
        """Count these as `part`, whether or not they have been counted as something else."""
        for tensor in tensors:
            key = tensor.untyped_storage()._cdata
            if key in self._known:
                self._free(key, None)
            self._add(tensor, part)

    def _add(self, tensor: Tensor, part: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = -(-storage.nbytes() // self.block) * self.block * self.shares.get(part, 1.0)
        self._known[key] = (weakref.ref(storage, partial(self._free, key)), part, size)
        self.live[part] += size  # type: ignore[assignment]
        self.total += size
        phase = self._inside()
        if self.total > self.peaks.get(phase, 0):
            self.peaks[phase] = self.total
        if self.total > self.most:
            self.most, self.peak, self.phase = self.total, dict(self.live), phase

    def _free(self, key: int, _: Any) -> None:
        _, part, size = self._known.pop(key)
        self.live[part] -= size  # type: ignore[assignment]
        self.total -= size


#: What autocast computes in float32 on CUDA and leaves as it comes on a CPU, of all that networks do
#: (torch's reference of autocast).
WIDE = (
    "layer_norm", "group_norm", "softmax.int", "log_softmax.int", "norm.ScalarOpt_dim", "sum.dim_IntList", "cumsum",
    "pow.Tensor_Scalar",
    "exp", "log", "rsqrt", "reciprocal", "mse_loss", "cosine_similarity",
)  # fmt: skip


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """Within: autocast on a CPU keeps in float32 what it would on CUDA.

    Not a mode of torch functions: backward passes leave those.
    """

    def register(library: Any, name: str) -> None:
        operation: Any = functools.reduce(getattr, name.split("."), torch.ops.aten)

        def kernel(*args: Any, **kwargs: Any) -> Any:
            wide = [
                a.float() if isinstance(a, Tensor) and a.dtype in (torch.bfloat16, torch.float16) else a for a in args
            ]
            with torch.autocast("cpu", enabled=False):
                return operation(*wide, **kwargs)

        library.impl(name, kernel, "AutocastCPU")

    with torch.library._scoped_library("aten", "IMPL") as library, warnings.catch_warnings():
        # Some have a kernel, which this replaces.
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        for name in WIDE:
            register(library, name)
        yield

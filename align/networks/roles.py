"""The three networks of every method, apart from how they are stored.

`student` is the generator, `assistant` follows the student's distribution, `reference` stays what it was. They are
three full copies, or LoRA adapters: the assistant an adapter over the reference, the student one over the network it
starts from, which is the reference's own where the two are the same.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from align.networks.lora import Adapted, LoraConfig, _add_adapter
from align.networks.quantized import quantize
from align.networks.sharding import is_sharded
from evaluate.pipelines.fast import compile_blocks


class Roles:
    """student, assistant, reference: modules called like the network they were made from."""

    def __init__(
        self,
        initial: nn.Module,
        reference: nn.Module,
        *,
        same: bool,
        lora: LoraConfig | None,
        checkpointing: bool,
        compiled: bool = False,
        frozen: torch.dtype = torch.float32,
        device: Any = None,
    ):
        """Both networks are made into roles and belong to them.

        initial: what the student starts from; `same` says that it is the reference's network. frozen: what
        autocast computes in, for the weights that are not trained. device: where they end up; what is not
        trained arrives there in `frozen`.
        """
        if lora is None:
            initial, reference = initial.to(device), reference.to(device)
            self.assistant: nn.Module = copy.deepcopy(reference).requires_grad_(True)
            self.student: nn.Module = (copy.deepcopy(initial) if same else initial).requires_grad_(True)
            self.reference: nn.Module = _freeze(reference, frozen).eval()
        else:
            base = _freeze(reference, frozen)
            student_base = base if same else _freeze(initial, frozen)
            if lora.base:
                for network in dict.fromkeys((base, student_base)):
                    quantize(network, lora.target_modules or (), lora.base, device=device)
            _add_adapter(base, "assistant", lora)
            _add_adapter(student_base, "student", lora)
            self.reference = Adapted(base, None)
            self.assistant, self.student = Adapted(base, "assistant"), Adapted(student_base, "student")
            for network in self.networks():
                network.to(device)
            for module in (self.assistant, self.student):
                for parameter in module.trainable().values():
                    parameter.requires_grad_(True)
        if compiled:
            for network in self.networks():
                compile_blocks(network)
        if checkpointing:
            for role in (self.student, self.assistant, self.reference):
                _enable_checkpointing(role)

    def networks(self) -> list[nn.Module]:
        """The networks that the roles are stored in, each once."""
        roles = (self.student, self.assistant, self.reference)
        return list(dict.fromkeys(role.base if isinstance(role, Adapted) else role for role in roles))

    @contextmanager
    def constant(self, role: nn.Module) -> Iterator[None]:
        """Within: nothing is kept for the gradient of what `role` trains.

        Sharded parameters stay as they are: FSDP2 copies this once.
        """
        parameters = [p for p in self.trainable(role).values() if p.requires_grad and not is_sharded(p)]
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)

    @staticmethod
    def trainable(role: nn.Module) -> dict[str, nn.Parameter]:
        """What an optimiser of this role updates."""
        return role.trainable() if isinstance(role, Adapted) else dict(role.named_parameters())


def _freeze(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """`network` without gradients, its matrices and kernels stored as autocast would cast them at every call anyway."""
    for module in network.requires_grad_(False).modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.dtype == torch.float32:
            module.to(dtype)
    return network


def _enable_checkpointing(role: nn.Module) -> None:
    if not isinstance(role, Adapted):
        role.enable_gradient_checkpointing()  # type: ignore[operator]
        return
    base = role.base

    def run(function: Callable[..., Any], *args: Any) -> Any:
        # Backward runs the block again, and by then another adapter may be switched on.
        adapted: Any = base.running
        return checkpoint(function, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), adapted.active()))

    base.enable_gradient_checkpointing(gradient_checkpointing_func=run)  # type: ignore[operator]

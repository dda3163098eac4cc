"""The three networks of every method, apart from how they are stored.

`student` is the generator, `assistant` follows the student's distribution, `reference` stays what it was. They are three
full copies, or LoRA adapters: the assistant an adapter over the reference, the student one over the network it starts from,
which is the reference's own where the two are the same.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from align.config import LoraConfig
from align.sharding import gathered, like


class Average:
    """Exponential moving average of a module's trainable parameters."""

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float):
        self.decay, self.live = decay, parameters
        self.values = {name: value.detach().clone() for name, value in parameters.items()}

    def update(self) -> None:
        """One step of `average <- decay * average + (1 - decay) * live`."""
        torch._foreach_lerp_(list(self.values.values()), [p.detach() for p in self.live.values()], 1 - self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return self.values

    def load_state_dict(self, values: dict[str, Tensor]) -> None:
        """Undo `state_dict`."""
        for name, value in self.values.items():
            value.copy_(like(values[name], value))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within: the module holds the averaged parameters."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the module's parameters and their averages."""
        for name, parameter in self.live.items():
            held = parameter.detach().clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(held)


class Adapted(nn.Module):
    """A network with one LoRA adapter switched on while it runs, or with all of them off (`adapter=None`)."""

    def __init__(self, base: nn.Module, adapter: str | None):
        super().__init__()
        from peft.tuners.tuners_utils import BaseTunerLayer

        self.base, self.adapter = base, adapter
        self._layers = [module for module in base.modules() if isinstance(module, BaseTunerLayer)]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within: this adapter is the one in use."""
        trainable = [p for p in self.base.parameters() if p.requires_grad]
        for layer in self._layers:
            layer.enable_adapters(self.adapter is not None)
            if self.adapter is not None:
                layer.set_adapter([self.adapter])
        # peft freezes what it switches off; which parameters are trained is not for it to say here.
        for parameter in trainable:
            parameter.requires_grad_(True)
        yield

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output with this adapter."""
        # Not a submodule: assigned past nn.Module's bookkeeping.
        self.base.__dict__["running"] = self
        with self.active():
            return self.base(*args, **kwargs)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The adapter's parameters by name."""
        return {name: p for name, p in self.base.named_parameters() if self.adapter and f".{self.adapter}." in name}


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
        frozen: torch.dtype = torch.float32,
        device: Any = None,
    ):
        """Both networks are made into roles and belong to them.

        initial: what the student starts from; `same` says that it is the reference's network. frozen: what autocast computes
        in, for the weights that are not trained. device: where they end up; what is not trained arrives there in `frozen`.
        """
        if lora is None:
            initial, reference = initial.to(device), reference.to(device)
            self.assistant: nn.Module = copy.deepcopy(reference).requires_grad_(True)
            self.student: nn.Module = (copy.deepcopy(initial) if same else initial).requires_grad_(True)
            self.reference: nn.Module = _freeze(reference, frozen).eval()
        else:
            base = _freeze(reference, frozen)
            own = base if same else _freeze(initial, frozen)
            _add_adapter(base, "assistant", lora)
            _add_adapter(own, "student", lora)
            self.reference = Adapted(base, None)
            self.assistant, self.student = Adapted(base, "assistant"), Adapted(own, "student")
            for network in self.networks():
                network.to(device)
            for module in (self.assistant, self.student):
                for parameter in module.trainable().values():
                    parameter.requires_grad_(True)
        if checkpointing:
            for role in (self.student, self.assistant, self.reference):
                _enable_checkpointing(role)

    def networks(self) -> list[nn.Module]:
        """The networks that the roles are stored in, each once."""
        roles = (self.student, self.assistant, self.reference)
        return list(dict.fromkeys(role.base if isinstance(role, Adapted) else role for role in roles))

    @contextmanager
    def constant(self, role: nn.Module) -> Iterator[None]:
        """Within: nothing is kept for the gradient of what `role` trains. Sharded parameters stay as they are: FSDP2 copies this once."""
        parameters = [p for p in self.trainable(role).values() if p.requires_grad and not isinstance(p, DTensor)]
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


def _add_adapter(network: nn.Module, name: str, lora: LoraConfig) -> None:
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    config = PeftConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), init_lora_weights=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # two adapters on one base is the point
        inject_adapter_in_model(config, network, adapter_name=name)
    for part, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and part.endswith((f".lora_A.{name}", f".lora_B.{name}")):
            # peft gives it the base's precision; in half of it an update of learning rate 1e-5 is rounded away.
            module.to(torch.promote_types(module.weight.dtype, torch.float32))


def merged(role: nn.Module) -> dict[str, Tensor]:
    """The role's network as one state dict of whole tensors, an adapter added into the weights it adapts.

    Every process must call it where the network is sharded; it is the first's alone, and empty for the others.
    """
    if not isinstance(role, Adapted):
        return cast(dict[str, Tensor], gathered(role.state_dict()))
    own = {name: value for name, value in role.base.state_dict().items() if ".lora_" not in name}
    state = {name.replace(".base_layer.", "."): value for name, value in gathered(own).items()}
    for name, down, up in _factors(role):
        weight = state[f"{name}.weight"].cpu()  # a sum on the device would be a second network there
        state[f"{name}.weight"] = weight + (up.flatten(1) @ down.flatten(1)).cpu().view_as(weight)
    return state


def adapter(role: nn.Module) -> dict[str, Tensor]:
    """The role's LoRA alone: whole tensors `LAYER.lora_A.weight` and `LAYER.lora_B.weight`, float32; none where it has no LoRA.

    Their product is what is added: `alpha / rank` is part of the second. Every process must call it where the network is sharded;
    it is the first's alone, and empty for the others.
    """
    tensors: dict[str, Tensor] = {}
    for name, down, up in _factors(role) if isinstance(role, Adapted) else ():
        tensors |= {f"{name}.lora_A.weight": down.float(), f"{name}.lora_B.weight": up.float()}
    return tensors


def _factors(role: Adapted) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each adapted layer's name and the two tensors of its LoRA, whole and scaled, for the first process."""
    from peft.tuners.lora import LoraLayer

    for name, layer in role.base.named_modules():
        if isinstance(layer, LoraLayer) and role.adapter in layer.lora_A:
            # peft multiplies what lies in the layer, and where that is sharded all of the network would have to be gathered for it.
            for down, up in gathered([[part[role.adapter].weight.detach() for part in (layer.lora_A, layer.lora_B)]]):
                yield name, down, layer.scaling[role.adapter] * up


def _enable_checkpointing(role: nn.Module) -> None:
    if not isinstance(role, Adapted):
        role.enable_gradient_checkpointing()  # type: ignore[operator]
        return
    base = role.base

    def run(function: Callable[..., Any], *args: Any) -> Any:
        # Backward runs the block again, and by then another adapter may be switched on.
        mine: Any = base.running
        return checkpoint(function, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), mine.active()))

    base.enable_gradient_checkpointing(gradient_checkpointing_func=run)  # type: ignore[operator]

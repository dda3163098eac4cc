"""LoRA: roles that are adapters over a base they share, and what is left of one when training ends."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, cast

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from align.networks.quantized import Bits
from align.networks.sharding import gathered
from align.options import Config
from prompts.io.errors import UserError


class LoraConfig(Config):
    """LoRA adapters in place of full copies."""

    rank: PositiveInt = 64
    alpha: PositiveFloat = Field(64.0, description="what is learned is added times alpha / rank; by default the rank")
    target_modules: tuple[str, ...] | None = Field(
        None, description="ends of the names of the layers that have one; by default the family's"
    )
    base: Bits | None = Field(None, description="keep these layers of the frozen base in 8 or 4 bits (bitsandbytes)")

    @model_validator(mode="before")
    @classmethod
    def _as_large_as_the_rank(cls, content: Any) -> Any:
        if isinstance(content, dict) and "rank" in content and "alpha" not in content:
            return content | {"alpha": content["rank"]}
        return content


class Adapted(nn.Module):
    """A network with one LoRA adapter switched on while it runs, or with all of them off (`adapter=None`)."""

    def __init__(self, base: nn.Module, adapter: str | None):
        super().__init__()
        from peft.tuners.tuners_utils import BaseTunerLayer

        self.base, self.adapter = base, adapter
        self._layers = [module for module in base.modules() if isinstance(module, BaseTunerLayer)]

    @property
    def config(self) -> Any:
        """The network's."""
        return self.base.config

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within: this adapter is the one in use."""
        # Checkpointed blocks ask one by one, and switching walks all layers.
        if self.base.__dict__.get("switched_on", "nothing yet") == self.adapter:
            yield
            return
        trained = [(p, p.requires_grad) for p in self.base.parameters()]
        for layer in self._layers:
            layer.enable_adapters(self.adapter is not None)
            if self.adapter is not None:
                layer.set_adapter([self.adapter])
        # peft freezes what it switches off and trains what it switches on, which is not for it to say here.
        for parameter, flag in trained:
            parameter.requires_grad_(flag)
        self.base.__dict__["switched_on"] = self.adapter
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


def check_targets(network: nn.Module, targets: Sequence[str]) -> None:
    """Raise UserError where one of `target_modules` is no layer of the network: peft passes over it without a word."""
    names = [f".{name}" for name, module in network.named_modules() if next(module.children(), None) is None]
    for target in targets:
        if not any(name.endswith(f".{target}") for name in names):
            ends = sorted({name.rpartition(".")[2] for name in names if not name.rpartition(".")[2].isdecimal()})
            close = get_close_matches(target, ends, 1, 0)
            raise UserError(f"lora.target_modules: {target!r} is no layer of the network; did you mean {close[0]!r}?")


def _add_adapter(network: nn.Module, name: str, lora: LoraConfig) -> None:
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    targets = list(lora.target_modules or ())
    config = PeftConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=targets,
        exclude_modules=_lists(network, targets) or None,
        init_lora_weights=True,
    )
    with warnings.catch_warnings():
        # Two adapters on one base is the point.
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        inject_adapter_in_model(config, network, adapter_name=name)
    for part, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and part.endswith((f".lora_A.{name}", f".lora_B.{name}")):
            # peft gives it the base's precision; in half of it an update of learning rate 1e-5 is rounded away.
            module.to(torch.promote_types(module.weight.dtype, torch.float32))


def _lists(network: nn.Module, targets: list[str]) -> list[str]:
    """The targets that are lists of layers, which have no adapter: FLUX.2 has layers and lists of one name."""
    ends = tuple(f".{target}" for target in targets)
    lists = (name for name, module in network.named_modules() if isinstance(module, nn.ModuleList | nn.Sequential))
    return [name for name in lists if f".{name}".endswith(ends)]


def merged(role: nn.Module) -> dict[str, Tensor]:
    """The role's network as one state dict of whole tensors, an adapter added into the weights it adapts.

    Every process must call it where the network is sharded; it is the first's alone, and empty for the others.
    """
    if not isinstance(role, Adapted):
        return cast(dict[str, Tensor], gathered(role.state_dict()))
    base = {name: value for name, value in role.base.state_dict().items() if ".lora_" not in name}
    state = {name.replace(".base_layer.", "."): value for name, value in gathered(base).items()}
    for name, down, up in _factors(role):
        weight = state[f"{name}.weight"].cpu()  # a sum on the device would be a second network there
        state[f"{name}.weight"] = weight + (up.flatten(1) @ down.flatten(1)).cpu().view_as(weight)
    return state


def adapter(role: nn.Module) -> dict[str, Tensor]:
    """The role's LoRA alone: whole tensors `LAYER.lora_A.weight` and `LAYER.lora_B.weight`,
    float32; none where it has no LoRA.

    Their product is what is added: `alpha / rank` is part of the second. Every process must call it where the network
    is sharded; it is the first's alone, and empty for the others.
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
            # peft multiplies what lies in the layer, and where that is sharded all of the network
            # would have to be gathered for it.
            for down, up in gathered([[part[role.adapter].weight.detach() for part in (layer.lora_A, layer.lora_B)]]):
                yield name, down, layer.scaling[role.adapter] * up

"""LoRA: products of low rank that are added to a network's weights, under whichever names their trainers gave them."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prompts.io.errors import UserError

#: The ends of a LoRA's keys -> what the tensor is. peft, diffusers before it, and kohya's scripts each have their own.
PARTS = {
    ".lora_A.weight": "down", ".lora_B.weight": "up", ".lora.down.weight": "down", ".lora.up.weight": "up",
    ".lora_down.weight": "down", ".lora_up.weight": "up", ".alpha": "alpha",
}  # fmt: skip


#: Parts of a UNet as diffusers calls them -> as Stable Diffusion's first code did.
BLOCKS = {"down_blocks": "input_blocks", "up_blocks": "output_blocks"}
INNER = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
OUTER = {
    "conv_in": "input_blocks.0.0", "conv_out": "out.2", "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
PLACE = re.compile(
    r"(?:(down_blocks|up_blocks)\.(\d+)|(mid_block))\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
)


def is_lora(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are a LoRA's tensors rather than a whole network's."""
    return any(".lora" in key for key in tensors)


@torch.no_grad()
def add(network: nn.Module, tensors: Mapping[str, Tensor], name: str, source: object) -> None:
    """Add `alpha / rank * up @ down` to every layer's weight that a LoRA names (Hu et al. 2021, section 4.1).

    Layers are called as in the network, with or without `name.` before them, or joined by `_` after `lora_unet_` as
    kohya's scripts do, which know a UNet's layers by the names of Stable Diffusion's first code too. Raises UserError
    for a key of anything else: a text encoder, another architecture, another kind of adapter.
    """
    layers = {key: layer for key, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    called = {f"{prefix}{key}": key for prefix in (f"{name}.", "base_model.model.", "") for key in layers}
    for key in layers:
        called |= {f"lora_unet_{each.replace('.', '_')}": key for each in (key, *_first_name(network, key))}
    factors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        end = next((end for end in PARTS if key.endswith(end)), "")
        layer = called.get(key.removesuffix(end)) if end else None
        if layer is None:
            raise UserError(
                f"{source}: {key!r} is no LoRA of a layer of this {name}; choose one for its architecture and nothing"
                " else"
            )
        factors.setdefault(layer, {})[PARTS[end]] = tensor.float()
    deltas = {}
    for key, parts in factors.items():
        weight, down, up = layers[key].weight, parts.get("down"), parts.get("up")
        if down is None or up is None:
            raise UserError(f"{source}: half of the LoRA of {key!r} is missing; fetch it again")
        flat = up.flatten(1) @ down.flatten(1) if up[0].numel() == len(down) else None
        if flat is None or flat.shape != weight.flatten(1).shape:
            raise UserError(
                f"{source}: the LoRA of {key!r}, {tuple(up.shape)} x {tuple(down.shape)}, does not fit a weight of"
                f" shape {tuple(weight.shape)}; it is for another architecture"
            )
        scale = parts["alpha"].item() / len(down) if "alpha" in parts else 1.0
        deltas[key] = scale * flat.reshape(weight.shape)
    for key, delta in deltas.items():
        layers[key].weight += delta.to(layers[key].weight)


def _first_name(network: nn.Module, layer: str) -> tuple[str, ...]:
    """What Stable Diffusion's first code called a UNet's layer; nothing where it had none.

    There a level's blocks are numbered through, the down- or upsampler being part of the last or one of its own.
    """
    per_level = getattr(getattr(network, "config", None), "layers_per_block", None)
    match = PLACE.fullmatch(layer)
    if match is None or not isinstance(per_level, int):
        return (OUTER[layer],) if layer in OUTER else ()
    side, level, middle, kind, number, rest = match.groups()
    if middle:
        return (f"middle_block.{1 if kind == 'attentions' else 2 * int(number)}.{INNER.get(rest, rest)}",)
    first = int(level) * (per_level + 1)
    if kind == "downsamplers":
        return (f"input_blocks.{first + per_level + 1}.0.op",)
    if kind == "upsamplers":
        attends = any(name.startswith(f"{side}.{level}.attentions.") for name, _ in network.named_modules())
        return (f"output_blocks.{first + per_level}.{2 if attends else 1}.{rest}",)
    place = first + int(number) + (side == "down_blocks")
    inner = f"1.{rest}" if kind == "attentions" else f"0.{INNER.get(rest, rest)}"
    return (f"{BLOCKS[side]}.{place}.{inner}",)

"""What a network starts from: a diffusers folder or hub id, a bare file of weights, or a LoRA.

A source is a local path, the name of an embedded model, `OWNER/NAME` or `OWNER/NAME/FILE` of the hub, the last two with
`@REVISION` where one is to be pinned. Whatever it is, its tensors go into a network of known architecture, and every key and
every shape has to match.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from evaluate import hub, pipelines, weights
from prompts.errors import UserError

SUFFIXES = ("safetensors", "bin", "pt", "pth", "ckpt")
LORA = "pytorch_lora_weights.safetensors"  # as diffusers names it


class HubId(NamedTuple):
    """Where something lies on the hub."""

    repository: str
    file: str | None
    revision: str


def hub_id(source: str) -> HubId | None:
    """`OWNER/NAME[/FILE][@REVISION]` taken apart; None for what is none."""
    match = re.fullmatch(rf"([\w.-]+/[\w.-]+)(?:/([^@]+\.(?:{'|'.join(SUFFIXES)})))?(?:@([\w./-]+))?", source)
    return HubId(match[1], match[2], match[3] or "main") if match and not source.startswith(".") else None


def is_pipeline(source: str) -> bool:
    """Whether `source` is a pipeline on this machine, with a recipe of its own, rather than a network or something of the hub."""
    where = hub_id(source)
    if Path(source).suffix[1:] in SUFFIXES or (where and (where.file or where.revision != "main")):
        return False
    found = pipelines.locate(source)
    return found is not None and (
        found.is_file() or (found / "model_index.json").is_file() or (found / "recipe.yaml").is_file()
    )


def load_into(network: nn.Module, source: str, name: str) -> None:
    """Give `network` the weights that `source` names, or add its LoRA to those it has.

    name: what the network is called in a pipeline, `unet` or `transformer`. Raises UserError for what cannot be found or does
    not match; the network is then untouched.
    """
    tensors = read(source, name)
    if is_lora(tensors):
        add_lora(network, tensors, name, source)
    else:
        weights.load_strict(network, tensors, source)


def read(source: str, name: str) -> dict[str, Tensor]:
    """The tensors that `source` names, of the network `name` or of a LoRA."""
    path = Path(source)
    if path.is_file() and path.suffix[1:] in SUFFIXES:
        return weights.read(path)
    where = None if path.exists() else hub_id(source)
    if where and where.file:
        return weights.read(hub.fetch(where.repository, where.file, where.revision))
    if where and pipelines.locate(where.repository) is None:
        return _read_files(_fetch(where, source, name))
    found = pipelines.locate(source)
    if found is None:
        raise UserError(f"{source}: no such file or folder, and no hub id; check it")
    how = pipelines.recipe(source)
    if how.pipeline or how.unet:
        whole: nn.Module = getattr(pipelines.load(source), name)
        return dict(whole.state_dict())
    return _read_files(_pick(sorted(str(p.relative_to(found)) for p in found.rglob("*")), source, name), found)


def _pick(files: list[str], source: str, name: str) -> list[str]:
    """Of a folder's files those that hold the network: its own subfolder's, or the folder's; or else a LoRA."""
    for prefix in (f"{name}/", ""):
        if f"{prefix}config.json" in files:
            whole = re.compile(re.escape(prefix) + r"diffusion_pytorch_model(-\d{5}-of-\d{5})?\.safetensors")
            pickle = [file for file in files if file == f"{prefix}diffusion_pytorch_model.bin"]
            if found := [file for file in files if whole.fullmatch(file)] or pickle:
                return found
    if LORA in files:
        return [LORA]
    raise UserError(f"{source}: holds neither a {name} nor {LORA}; name a file of it, as in OWNER/NAME/FILE")


def _fetch(where: HubId, source: str, name: str) -> list[str]:
    """Local copies of the files of a hub repository that hold the network."""
    from huggingface_hub import list_repo_files

    try:
        files = list_repo_files(where.repository, revision=where.revision)
    except Exception as error:  # what a broken line raises is its HTTP library's
        raise hub.refusal(error, where.repository, "its files", where.revision) from None
    return [str(hub.fetch(where.repository, file, where.revision)) for file in _pick(sorted(files), source, name)]


def _read_files(files: list[str], folder: Path = Path()) -> dict[str, Tensor]:
    return {key: value for file in files for key, value in weights.read(folder / file).items()}


# ---- LoRA ----------------------------------------------------------------------------------------------------------------

#: The ends of a LoRA's keys -> what the tensor is. peft, diffusers before it, and kohya's scripts each have their own.
PARTS = {
    ".lora_A.weight": "down", ".lora_B.weight": "up", ".lora.down.weight": "down", ".lora.up.weight": "up",
    ".lora_down.weight": "down", ".lora_up.weight": "up", ".alpha": "alpha",
}  # fmt: skip


def is_lora(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are a LoRA's tensors rather than a whole network's."""
    return any(".lora" in key for key in tensors)


@torch.no_grad()
def add_lora(network: nn.Module, tensors: Mapping[str, Tensor], name: str, source: object) -> None:
    """Add `alpha / rank * up @ down` to every layer's weight that a LoRA names (Hu et al. 2021, section 4.1).

    Layers are called as in the network, with or without `name.` before them, or joined by `_` after `lora_unet_` as kohya's
    scripts do. Raises UserError for a key of anything else: a text encoder, another architecture, another kind of adapter.
    """
    layers = {key: layer for key, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    called = {f"{prefix}{key}": key for prefix in (f"{name}.", "base_model.model.", "") for key in layers}
    called |= {f"lora_unet_{key.replace('.', '_')}": key for key in layers}
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        end = next((end for end in PARTS if key.endswith(end)), "")
        layer = called.get(key.removesuffix(end)) if end else None
        if layer is None:
            raise UserError(
                f"{source}: {key!r} is no LoRA of a layer of this {name}; choose one for its architecture and nothing else"
            )
        found.setdefault(layer, {})[PARTS[end]] = tensor.float()
    deltas = {}
    for key, parts in found.items():
        weight, down, up = layers[key].weight, parts.get("down"), parts.get("up")
        if down is None or up is None:
            raise UserError(f"{source}: half of the LoRA of {key!r} is missing; fetch it again")
        flat = up.flatten(1) @ down.flatten(1) if up[0].numel() == len(down) else None
        if flat is None or flat.shape != weight.flatten(1).shape:
            raise UserError(
                f"{source}: the LoRA of {key!r}, {tuple(up.shape)} x {tuple(down.shape)}, does not fit a weight of shape "
                f"{tuple(weight.shape)}; it is for another architecture"
            )
        scale = parts["alpha"].item() / len(down) if "alpha" in parts else 1.0
        deltas[key] = scale * flat.reshape(weight.shape)
    for key, delta in deltas.items():
        layers[key].weight += delta.to(layers[key].weight)

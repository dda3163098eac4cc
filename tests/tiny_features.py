"""The networks whose features distribution metrics compare, small and random, on the loopback hub under their names."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hub import Hub
from safetensors.torch import save_file
from upstream.make_distribution import ALEXNET, CLIP_336, DINOV2, seeded, shapes_of_alexnet, shapes_of_dinov2

from evaluate.distribution import diversity, kid
from evaluate.features import clip_336, dinov2, inception, lpips


class Pooled(torch.nn.Module):
    """In Inception's place: means of 9 patches."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, 3).mean(1).flatten(1)


def publish(hub: Hub) -> None:
    """Write the repositories, and AlexNet's file at an address of its own."""
    publish_clip(hub.folder(clip_336.REPOSITORY, clip_336.REVISION))
    folder = hub.folder(dinov2.REPOSITORY, dinov2.REVISION)
    (folder / "config.json").write_text(json.dumps(DINOV2))
    save_file(tensors("dinov2", shapes_of_dinov2()), folder / "model.safetensors", metadata={"format": "pt"})
    torch.save(tensors(*ALEXNET, shapes_of_alexnet()), alexnet_file(hub))


def publish_clip(folder: Path) -> None:
    """As `openai/clip-vit-large-patch14-336` is: a config of both towers, a pickle with the numbering of positions."""
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(**CLIP_336)
    config.to_json_file(folder / "config.json")
    with torch.device("meta"):
        layout = {name: tuple(tensor.shape) for name, tensor in CLIPModel(config).state_dict().items()}
    state = tensors("clip-336", layout)
    torch.save(state | {"vision_model.embeddings.position_ids": torch.zeros(1, 37).long()}, folder / clip_336.FILES[1])


def tensors(seed: str, layout: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in seeded(seed, layout).items()}


def alexnet_file(hub: Hub) -> Path:
    return hub.folder("alexnet", "main") / "alexnet.pth"


def shrink(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    """Networks are small ones, no metric of another test has loaded them, and what takes time for nothing is less."""
    from weakref import WeakValueDictionary

    from evaluate import features, weights

    monkeypatch.setattr(features, "_loaded", WeakValueDictionary())
    monkeypatch.setattr(inception, "load_network", lambda *_: (Pooled(), "0" * 64))
    monkeypatch.setattr(lpips, "URL", f"{hub.url}/alexnet/resolve/main/alexnet.pth")
    monkeypatch.setattr(lpips, "SHA256", weights.sha256(alexnet_file(hub)))
    monkeypatch.setattr(diversity, "SIZE", 64)
    monkeypatch.setattr(kid, "SUBSETS", 3)

"""Every real scorer as a random network of a few thousand parameters, on the loopback hub under its real names."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hub import Hub
from safetensors.torch import save_file
from upstream import judge, seeded

from evaluate import weights
from evaluate.scorers import _judge, aesthetic, clipscore, hpsv2, imagereward, pickscore, unifiedreward

GENEVAL2 = json.loads((Path(__file__).parent / "upstream" / "geneval2.json").read_text(encoding="utf-8"))
REFERENCE = json.loads((Path(__file__).parent / "upstream" / "reference.json").read_text(encoding="utf-8"))

#: A CLIP of transformers, small; the activation is OpenAI's or LAION's.
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def tensors(seed: str, layout: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in seeded.weights(seed, layout).items()}


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def write_clip(folder: Path, seed: str, activation: str) -> None:
    """`config.json`, `model.safetensors`, `vocab.json` and `merges.txt`, as transformers' CLIPs are published."""
    from transformers import CLIPConfig, CLIPModel

    from align.world.pretrain import make_tokenizer

    tokenizer = make_tokenizer()
    content = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(content["vocab"]), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{' '.join(pair)}\n" for pair in content["merges"]))
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 1}
    common = {**SIZES, "hidden_act": activation, "projection_dim": 24}
    text = {**common, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": 77}
    config = CLIPConfig(
        projection_dim=24, text_config=text, vision_config={**common, "image_size": 224, "patch_size": 16}
    )
    config.to_json_file(folder / "config.json")
    # The numbering of positions, which today's transformers computes, is in the published files.
    extra = {"text_model.embeddings.position_ids": (1, 77), "vision_model.embeddings.position_ids": (1, 197)}
    save_file(tensors(seed, shapes(CLIPModel(config)) | extra), folder / "model.safetensors", metadata={"format": "pt"})


def publish(hub: Hub) -> None:
    """Write every repository that a real scorer loads from."""
    from open_clip import CLIP

    folder = hub.folder(hpsv2.REPOSITORY, hpsv2.REVISION)
    for version, file in hpsv2.FILES.items():
        torch.save({"state_dict": tensors(version, REFERENCE["hpsv2"]["layout"]), "epoch": 1}, folder / file)
    folder = hub.folder(imagereward.REPOSITORY, imagereward.REVISION)
    torch.save(tensors("imagereward", REFERENCE["imagereward"]["layout"]), folder / "ImageReward.pt")
    folder = hub.folder(imagereward.WORDS, imagereward.WORDS_REVISION)
    (folder / "vocab.txt").write_text("\n".join(seeded.WORDS) + "\n", encoding="utf-8")
    folder = hub.folder(clipscore.LAION, clipscore.LAION_REVISION)
    torch.save(tensors("vit-g", shapes(CLIP(**seeded.VIT_G_14))), folder / "open_clip_pytorch_model.bin")
    write_clip(hub.folder(pickscore.REPOSITORY, pickscore.REVISION), "pickscore", "gelu")
    for file in ("vocab.json", "merges.txt"):
        words = hub.folder(pickscore.REPOSITORY, pickscore.REVISION) / file
        words.rename(hub.folder(pickscore.WORDS, pickscore.WORDS_REVISION) / file)
    write_clip(hub.folder(clipscore.OPENAI, clipscore.OPENAI_REVISION), "vit-l", "quick_gelu")
    from evaluate.scorers._clip import regressor

    head = {f"layers.{name}": shape for name, shape in shapes(regressor(24)).items()}
    torch.save(tensors("aesthetic", head), hub.folder(aesthetic.HEAD, aesthetic.HEAD_REVISION) / aesthetic.HEAD_FILE)
    publish_judges(hub)


def publish_judges(hub: Hub) -> None:
    """Qwen3-VL in two files of weights, and what was made of it in one."""
    arrays = judge.weights(GENEVAL2["layout"])
    content = {name: torch.from_numpy(array) for name, array in arrays.items()}
    words = judge.tokenizer()
    folders = [hub.folder(_judge.REPOSITORY, _judge.REVISION)]
    for size, revision in unifiedreward.REVISIONS.items():
        folders.append(hub.folder(unifiedreward.REPOSITORY.format(size), revision))
    for folder in folders:
        (folder / "config.json").write_text(json.dumps(judge.config(words)), encoding="utf-8")
        words.save(str(folder / "tokenizer.json"))
    for folder in folders[1:]:
        save_file(content, folder / "model.safetensors")
    names = [f"model-{i:05d}-of-00002.safetensors" for i in (1, 2)]
    index = {name: names[i % 2] for i, name in enumerate(content)}
    (folders[0] / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}), encoding="utf-8")
    for file in names:
        save_file({name: content[name] for name in content if index[name] == file}, folders[0] / file)


def shrink(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    """The tables that hold real sizes hold small ones, and the one pinned hash is that of the small file."""
    import open_clip.factory

    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-H-14", seeded.VIT_H_14)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-g-14", seeded.VIT_G_14)
    monkeypatch.setattr(imagereward, "ARCHITECTURE", seeded.BLIP)
    head = hub.folder(aesthetic.HEAD, aesthetic.HEAD_REVISION) / aesthetic.HEAD_FILE
    monkeypatch.setattr(aesthetic, "HEAD_SHA256", weights.sha256(head))
    # Small judges are float32, so that the last digits can be compared.
    monkeypatch.setattr(_judge, "DTYPE", torch.float32)

"""Every real scorer as a random network of a few thousand parameters, on the loopback hub under its real names."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hub import Hub
from safetensors.torch import save_file
from upstream import geneval_cases, judge, make_aesthetic, make_hpsv3, make_mps, seeded, vqascore_parts

from evaluate import weights
from evaluate.preprocess import SmartResize
from evaluate.scorers import (
    _detector,
    _geneval,
    _judge,
    _mask2former,
    aesthetic,
    clipscore,
    hpsv2,
    hpsv3,
    imagereward,
    mps,
    pickscore,
    unifiedreward,
    vqascore,
)

UPSTREAM = Path(__file__).parent / "upstream"
REFERENCE = json.loads((UPSTREAM / "reference.json").read_text(encoding="utf-8"))
GENEVAL2 = json.loads((UPSTREAM / "geneval2.json").read_text(encoding="utf-8"))
#: What t2v-metrics made, by model and kind: `clip-flant5-xl/scores`.
VQASCORE = json.loads((UPSTREAM / "vqascore.json").read_text(encoding="utf-8"))

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
    publish_vqascore(hub)
    publish_preferences(hub)
    publish_geneval(hub)
    publish_judges(hub)


def write_vqascore(folder: Path, model: str) -> None:
    """`config.json` and the weights' files of a CLIP-FlanT5."""
    (folder / "config.json").write_text(json.dumps(vqascore_parts.LANGUAGE))
    tensors = vqascore_parts.weights(model, VQASCORE[f"{model}/layout"])
    for name, content in vqascore_parts.files(model, tensors).items():
        if name.endswith(".json"):
            (folder / name).write_text(json.dumps(content))
        else:
            torch.save(content, folder / name)


def publish_vqascore(hub: Hub) -> None:
    """Both CLIP-FlanT5s, and the words of both FLAN-T5s."""
    words = json.dumps(vqascore_parts.tokenizer_json())
    for model in vqascore_parts.SEEDS:
        write_vqascore(hub.folder(*vqascore.REPOSITORIES[model]), model)
        (hub.folder(*vqascore.WORDS[model]) / "tokenizer.json").write_text(words)


def upstream(name: str, prefix: str = "") -> Any:
    """What an original made of seeded weights: of those of a prefix."""
    return json.loads((Path(seeded.__file__).parent / f"{name}.json").read_text(encoding="utf-8"))["prefixes"][prefix]


def torched(arrays: Any) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def write_hpsv3(folder: Path, base: Path, prefix: str = "") -> None:
    """`HPSv3.safetensors`, and the base's config and tokenizer."""
    layout = json.loads((Path(seeded.__file__).parent / "hpsv3.json").read_text(encoding="utf-8"))["layout"]
    save_file(torched(make_hpsv3.weights(prefix, layout)), folder / hpsv3.FILE)
    for name, content in (("config", make_hpsv3.small_config()), ("tokenizer", make_hpsv3.tokenizer())):
        (base / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def write_aesthetic(folder: Path, tower: Path, prefix: str = "") -> Path:
    """The head of v2.5, and its tower's config and weights, a text tower's among them. Returns the head."""
    made = torched(seeded.weights(f"{prefix}aesthetic-v2.5", upstream("aesthetic", prefix)["layout"]))
    head = folder / aesthetic.SIGLIP_HEAD_URL.rpartition("/")[2]
    torch.save({key.removeprefix("layers."): value for key, value in made.items() if key.startswith("layers.")}, head)
    vision = {key: value for key, value in made.items() if key.startswith("vision_model.")}
    save_file(vision | {"text_model.head.bias": torch.zeros(1)}, tower / "model.safetensors")
    (tower / "config.json").write_text(json.dumps({"vision_config": make_aesthetic.VISION}), encoding="utf-8")
    return head


def publish_preferences(hub: Hub) -> None:
    """HPSv3, MPS and Aesthetic v2.5, whose head is no hub's file but lies at an address like one's."""
    base = hub.folder(hpsv3.BASE, hpsv3.BASE_REVISION)
    write_hpsv3(hub.folder(hpsv3.REPOSITORY, hpsv3.REVISION), base, "fourth/")
    base = hub.folder(mps.BASE, mps.BASE_REVISION)  # where PickScore's words are
    words = json.loads((base / "vocab.json").read_text(encoding="utf-8"))
    config, layout = make_mps.config(), dict(upstream("mps")["layout"])
    config["text_config"] |= {"vocab_size": len(words), "eos_token_id": words["<|endoftext|>"]}
    layout["model.text_model.embeddings.token_embedding.weight"] = (len(words), make_mps.TOWER["hidden_size"])
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    made = {f"mps.{name}": tensor for name, tensor in torched(make_mps.weights("", layout)).items()}
    save_file(made, hub.folder(mps.REPOSITORY, mps.REVISION) / mps.FILE)
    write_aesthetic(hub.folder("discus0434", "models"), hub.folder(aesthetic.SIGLIP, aesthetic.SIGLIP_REVISION))


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
    monkeypatch.setattr(vqascore, "VISION", vqascore_parts.VISION)
    head = hub.folder(aesthetic.HEAD, aesthetic.HEAD_REVISION) / aesthetic.HEAD_FILE
    monkeypatch.setattr(aesthetic, "HEAD_SHA256", weights.sha256(head))
    # Small ones are float32, so that the last digits can be compared.
    monkeypatch.setattr(_judge, "DTYPE", torch.float32)
    for scorer in (hpsv3.HPSv3, vqascore.VQAScore):
        monkeypatch.setattr(scorer, "dtype", torch.float32)
    shrink_preferences(monkeypatch, hub)
    shrink_geneval(monkeypatch, hub)


def shrink_preferences(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    """HPSv3 sees few patches, MPS has few layers, and the address of Aesthetic v2.5's head is the hub's."""
    small = 16 * 28 * 28
    monkeypatch.setattr(hpsv3, "PREPARE", SmartResize(factor=28, min_pixels=small, max_pixels=small))
    for name, value in zip(("LAYERS", "HEADS", "HEAD_WIDTH"), make_mps.CROSS.values(), strict=True):
        monkeypatch.setattr(mps, name, value)
    head = hub.folder("discus0434", "models") / aesthetic.SIGLIP_HEAD_URL.rpartition("/")[2]
    monkeypatch.setattr(aesthetic, "SIGLIP_HEAD_URL", f"{hub.url}/discus0434/resolve/models/{head.name}")
    monkeypatch.setattr(aesthetic, "SIGLIP_HEAD_SHA256", weights.sha256(head))


# ---- GenEval ---------------------------------------------------------------------------------------------------------

DETECTOR = json.loads((Path(__file__).parent / "upstream" / "geneval.json").read_text(encoding="utf-8"))["detector"]
#: Where the detector's file lies on the loopback hub, which is not where it is published.
MMDETECTION, DETECTOR_FILE = ("openmmlab/mask2former", "main"), _mask2former.URL.rpartition("/")[2]


def publish_geneval(hub: Hub) -> None:
    """The detector's file, as MMDetection publishes it; GenEval's CLIP is CLIPScore's."""
    layout = {name: small for name, (small, _) in DETECTOR["layout"].items()}
    state = geneval_cases.detector_weights(layout)
    state["panoptic_head.cls_embed.weight"] *= 4  # so that it is certain of something, and mostly of these
    for name in ("bicycle", "dog", "backpack"):
        state["panoptic_head.cls_embed.bias"][_geneval.CLASSES.index(name)] += 4
    index = {name: torch.zeros(shape, dtype=torch.long) for name, shape in layout.items() if name not in state}
    content = {"meta": {"epoch": 50, "CLASSES": ("person",)}, "state_dict": state | index}
    torch.save(content, hub.folder(*MMDETECTION) / DETECTOR_FILE)


def shrink_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    """GenEval's detector is narrow, and looks at small images."""
    features, inner = geneval_cases.FEATURES, geneval_cases.INNER
    backbone = {"embed_dim": geneval_cases.WIDTH, "num_heads": list(geneval_cases.HEADS)}
    head = {"num_queries": geneval_cases.QUERIES, "encoder_feedforward_dim": inner, "dim_feedforward": inner}
    head |= dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim"), features)
    for part, sizes in (("backbone", backbone), ("head", head)):
        monkeypatch.setitem(_mask2former.ARCHITECTURE, part, {**_mask2former.ARCHITECTURE[part], **sizes})
    monkeypatch.setattr(_detector, "LONG", geneval_cases.EDGES[0])
    monkeypatch.setattr(_detector, "SHORT", geneval_cases.EDGES[1])


def shrink_geneval(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    """The same, from the loopback hub, with its hash's first digits."""
    shrink_detector(monkeypatch)
    repository, revision = MMDETECTION
    monkeypatch.setattr(_mask2former, "URL", f"{hub.url}/{repository}/resolve/{revision}/{DETECTOR_FILE}")
    digest = weights.sha256(hub.folder(*MMDETECTION) / DETECTOR_FILE)
    monkeypatch.setattr(_mask2former, "SHA256", digest[:8])

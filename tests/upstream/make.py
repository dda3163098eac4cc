"""Run hpsv2's and image-reward's own code on seeded weights and write `reference.json`: `tox run -e upstream`.

It holds what they make of the weights, images and prompts of each of `seeded.PREFIXES`. `tox run -e upstream -- make.py third/ fourth/`
writes those of other prefixes in their place, which the tests then compare.

Their code is used as published. Where it would load what is not there, or build what is too large to commit numbers of, exactly
the tables and files are replaced, never a computation:

* hpsv2's architecture table by the small one, the weights it starts from, and overwrites, by seeded ones, its missing word list by
  the same file of `clip`;
* BLIP's sizes by small ones, BERT's words by a short list of our own.
"""

import functools
import hashlib
import importlib.util
import json
import platform
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import seeded  # noqa: E402

PACKAGES = (
    "hpsv2", "image-reward", "clip-anytorch", "torch", "torchvision", "transformers", "timm", "pillow", "numpy", "tokenizers",
)  # fmt: skip


def layout(module: torch.nn.Module) -> dict[str, list[int]]:
    """Names and shapes of all that a module would save."""
    return {name: list(tensor.shape) for name, tensor in module.state_dict().items()}


def write_weights(seed: str, names: dict[str, list[int]], path: Path) -> str:
    """Seeded weights as the file the original would download; the digest of the tensors."""
    arrays = seeded.weights(seed, names)
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)
    return seeded.sha256(arrays)


def write_pictures(folder: Path, prefix: str) -> dict[str, Path]:
    """The pictures as PNG files, written over those of another prefix."""
    files = {}
    for name, array in seeded.pictures(prefix).items():
        files[name] = folder / f"{name}.png"
        Image.fromarray(array).save(files[name])
    return files


def add_words() -> None:
    """hpsv2's wheel lacks its tokenizer's words; `clip` brings the same file."""
    package = Path(importlib.util.find_spec("hpsv2").origin).parent
    words = Path(importlib.util.find_spec("clip").origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    shutil.copy(words, package / "src" / "open_clip")


def use_words(folder: Path) -> None:
    """BERT's tokenizer with our short list of words, which is written into `folder`."""
    from transformers import BertTokenizer

    (folder / "vocab.txt").write_text("\n".join(seeded.WORDS) + "\n", encoding="utf-8")
    from_pretrained = BertTokenizer.from_pretrained
    BertTokenizer.from_pretrained = lambda name: from_pretrained(str(folder / "vocab.txt"))


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_hpsv2(prefixes: list[str], folder: Path) -> dict[str, object]:
    """hpsv2.img_score.score on every picture and prompt of every prefix, with and without antialiasing."""
    add_words()
    from hpsv2.src.open_clip import factory, get_tokenizer, model

    full = dict(factory._MODEL_CONFIGS["ViT-H-14"])
    with torch.device("meta"):
        published = layout(model.CLIP(**full))
    factory._MODEL_CONFIGS["ViT-H-14"] = seeded.VIT_H_14
    small = layout(model.CLIP(**seeded.VIT_H_14))
    start = folder / "start.pt"
    write_weights("start", small, start)
    factory.download_pretrained = lambda *_, **__: str(start)
    scores, digests = {}, {}
    for prefix in prefixes:
        files, scores[prefix] = write_pictures(folder, prefix), {}
        for release in ("hpsv2.0", "hpsv2.1"):
            checkpoint = folder / f"{release}.pt"
            digests[prefix + release] = write_weights(prefix + release, small, checkpoint)
            torch.save({"state_dict": torch.load(checkpoint)}, checkpoint)
            for name, antialias in (("aa", True), ("noaa", False)):
                scores[prefix][f"{release}/{name}"] = score_hpsv2(files, seeded.prompts(prefix), checkpoint, antialias)
    tokens = {prefix: get_tokenizer("ViT-H-14")(seeded.prompts(prefix)).tolist() for prefix in prefixes}
    return {
        "scores": scores, "weights_sha256": digests, "layout": small, "tokens": tokens,
        "published": seeded.census(published),
    }  # fmt: skip


def score_hpsv2(files: dict[str, Path], prompts: list[str], checkpoint: Path, antialias: bool) -> dict[str, list[float]]:
    """100 x img_score.score by picture, a number a prompt."""
    from hpsv2 import img_score
    from hpsv2.src.open_clip import transform

    resize = transform.F.resize
    transform.F.resize = functools.partial(resize, antialias=antialias)
    rows = {
        picture: [100 * float(img_score.score(str(file), prompt, str(checkpoint))[0]) for prompt in prompts]
        for picture, file in files.items()
    }
    transform.F.resize = resize
    return rows


def run_imagereward(prefixes: list[str], folder: Path) -> dict[str, object]:
    """ImageReward.score on every picture and prompt of every prefix."""
    import ImageReward  # noqa: F401, its __init__ imports what the modules below need

    module = sys.modules["ImageReward.ImageReward"]
    blip, pretrain = (sys.modules[f"ImageReward.models.BLIP.{name}"] for name in ("blip", "blip_pretrain"))

    use_words(folder)

    def config(text: dict[str, object]) -> str:
        path = folder / "med_config.json"
        path.write_text(json.dumps({"add_cross_attention": True, "type_vocab_size": 2, "pad_token_id": 0, **text}))
        return str(path)

    published = layout(module.ImageReward(med_config=config({"vocab_size": 30524})))
    vision, text = seeded.BLIP["vision"], seeded.BLIP["text"]

    def create_vit(*_: object) -> tuple[torch.nn.Module, int]:
        width = vision["hidden_size"]
        tower = blip.VisionTransformer(
            img_size=224, patch_size=16, embed_dim=width, depth=vision["num_hidden_layers"],
            num_heads=vision["num_attention_heads"],
        )  # fmt: skip
        return tower, width

    pretrain.create_vit = create_vit
    head = module.MLP
    module.MLP = lambda _: head(text["hidden_size"])
    model = module.ImageReward(med_config=config(text)).eval()
    small = layout(model)
    checkpoint = folder / "ImageReward.pt"
    scores, digests, tokens = {}, {}, {}
    for prefix in prefixes:
        digests[f"{prefix}imagereward"] = write_weights(f"{prefix}imagereward", small, checkpoint)
        model.load_state_dict(torch.load(checkpoint))
        files, prompts = write_pictures(folder, prefix), seeded.prompts(prefix)
        rows = {picture: [model.score(prompt, str(file)) for prompt in prompts] for picture, file in files.items()}
        scores[prefix] = {"imagereward": rows}
        tokens[prefix] = model.blip.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
        ).input_ids.tolist()
    return {
        "scores": scores, "weights_sha256": digests, "layout": small, "tokens": tokens,
        "published": seeded.census(published),
    }  # fmt: skip


def main(prefixes: list[str]) -> None:
    """Write reference.json beside this file."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = {"hpsv2": run_hpsv2(prefixes, folder), "imagereward": run_imagereward(prefixes, folder)}
    made_by = {
        "command": "tox run -e upstream",
        "python": platform.python_version(),
        "packages": {package: version(package) for package in PACKAGES},
        "make_sha256": file_sha256(Path(__file__)),
        "seeded_sha256": file_sha256(HERE / "seeded.py"),
        "pictures_sha256": {prefix: seeded.sha256(seeded.pictures(prefix)) for prefix in prefixes},
    }
    text = json.dumps({"made_by": made_by, **parts}, indent=1, ensure_ascii=False)
    (HERE / "reference.json").write_text(text + "\n", encoding="utf-8")
    for prefix in prefixes:
        tables = parts["hpsv2"]["scores"][prefix] | parts["imagereward"]["scores"][prefix]
        spread = {name: float(np.std([*rows.values()])) for name, rows in tables.items()}
        print(f"spread of the scores, {prefix!r}:", spread)


if __name__ == "__main__":
    main(sys.argv[1:] or list(seeded.PREFIXES))

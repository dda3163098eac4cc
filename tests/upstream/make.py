"""Run hpsv2's and image-reward's own code on seeded weights and write `reference.json`: `tox run -e upstream`.

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


def write_pictures(folder: Path) -> dict[str, Path]:
    """The pictures as PNG files."""
    files = {}
    for name, array in seeded.pictures().items():
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


def run_hpsv2(files: dict[str, Path], folder: Path) -> dict[str, object]:
    """hpsv2.img_score.score on every picture and prompt, with and without antialiasing."""
    add_words()
    from hpsv2 import img_score
    from hpsv2.src.open_clip import factory, model, transform

    full = dict(factory._MODEL_CONFIGS["ViT-H-14"])
    with torch.device("meta"):
        published = layout(model.CLIP(**full))
    factory._MODEL_CONFIGS["ViT-H-14"] = seeded.VIT_H_14
    small = layout(model.CLIP(**seeded.VIT_H_14))
    start = folder / "start.pt"
    write_weights("start", small, start)
    factory.download_pretrained = lambda *_, **__: str(start)
    scores, digests = {}, {}
    resize = transform.F.resize
    for release in ("hpsv2.0", "hpsv2.1"):
        checkpoint = folder / f"{release}.pt"
        digests[release] = write_weights(release, small, checkpoint)
        torch.save({"state_dict": torch.load(checkpoint)}, checkpoint)
        for name, antialias in (("aa", True), ("noaa", False)):
            transform.F.resize = functools.partial(resize, antialias=antialias)
            rows = {}
            for picture, file in files.items():
                rows[picture] = [
                    100 * float(img_score.score(str(file), prompt, str(checkpoint))[0]) for prompt in seeded.PROMPTS
                ]
            scores[f"{release}/{name}"] = rows
    transform.F.resize = resize
    from hpsv2.src.open_clip import get_tokenizer

    tokens = get_tokenizer("ViT-H-14")(list(seeded.PROMPTS)).tolist()
    return {
        "scores": scores, "weights_sha256": digests, "layout": small, "tokens": tokens,
        "published": seeded.census(published),
    }  # fmt: skip


def run_imagereward(files: dict[str, Path], folder: Path) -> dict[str, object]:
    """ImageReward.score on every picture and prompt."""
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
    digest = write_weights("imagereward", small, checkpoint)
    model.load_state_dict(torch.load(checkpoint))
    scores = {picture: [model.score(prompt, str(file)) for prompt in seeded.PROMPTS] for picture, file in files.items()}
    tokens = model.blip.tokenizer(
        list(seeded.PROMPTS), padding="max_length", truncation=True, max_length=35, return_tensors="pt"
    )  # fmt: skip
    return {
        "scores": {"imagereward": scores}, "weights_sha256": {"imagereward": digest}, "layout": small,
        "tokens": tokens.input_ids.tolist(),
        "published": seeded.census(published),
    }  # fmt: skip


def main() -> None:
    """Write reference.json beside this file."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_pictures(folder)
        parts = {"hpsv2": run_hpsv2(files, folder), "imagereward": run_imagereward(files, folder)}
    made_by = {
        "command": "tox run -e upstream",
        "python": platform.python_version(),
        "packages": {package: version(package) for package in PACKAGES},
        "make_sha256": file_sha256(Path(__file__)),
        "seeded_sha256": file_sha256(HERE / "seeded.py"),
        "pictures_sha256": seeded.sha256(seeded.pictures()),
    }
    text = json.dumps({"made_by": made_by, **parts}, indent=1, ensure_ascii=False)
    (HERE / "reference.json").write_text(text + "\n", encoding="utf-8")
    spread = {name: float(np.std([*row.values()])) for part in parts.values() for name, row in part["scores"].items()}
    print("spread of the scores:", spread)


if __name__ == "__main__":
    main()

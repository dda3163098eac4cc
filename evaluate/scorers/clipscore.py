"""CLIPScore (Hessel et al. 2021, arXiv:2104.08718), of which no two papers mean the same:
the backbone is part of the name.

`vit-g-14-dmd2`: as DMD2 computes it. Hub: `laion/CLIP-ViT-g-14-laion2B-s12B-b42K`, file
`open_clip_pytorch_model.bin`. The centre square, Lanczos to 256, bicubic to 224, 'A photo depicts ' before the
prompt, the raw cosine (range [-1, 1], images about 0.3).

`vit-l-14-torchmetrics`: as torchmetrics computes it. Hub: `openai/clip-vit-large-patch14`, files `config.json`,
`model.safetensors`, `vocab.json` and `merges.txt`. 100 x cosine (range [-100, 100], images 20 to 35), one image at a
time: torchmetrics' maximum with 0 is of the mean, not of an image.
"""

from evaluate.preprocess import PROCESSOR_224, Preprocess, Resize
from evaluate.scorers import Scorer
from evaluate.weights import Files

LAION, LAION_REVISION = "laion/CLIP-ViT-g-14-laion2B-s12B-b42K", "4b0305adc6802b2632e11cbe6606a9bdd43d35c9"
OPENAI, OPENAI_REVISION = "openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41"
PREFIX = "A photo depicts "

VARIANTS = {
    "clipscore/vit-g-14-dmd2": "CLIPScore as DMD2 computes it: open_clip ViT-g-14, cosine",
    "clipscore/vit-l-14-torchmetrics": "CLIPScore as torchmetrics computes it: OpenAI ViT-L/14, 100 x cosine",
}
VERIFIED_BY = {"clipscore/vit-g-14-dmd2": "formula", "clipscore/vit-l-14-torchmetrics": "torchmetrics"}


def load(name: str, files: Files) -> Scorer:
    """`files.path`: the variant's weights file for `vit-g-14-dmd2`, or a folder with all its files."""
    from evaluate.scorers._clip import OpenClip, TransformersClip, clip_tokenizer, open_clip_model, transformers_clip

    if name == "clipscore/vit-g-14-dmd2":
        file = files.fetch(LAION, "open_clip_pytorch_model.bin", LAION_REVISION, local=files.path)
        steps = (Resize(size=256, fit="square", filter="lanczos"), Resize(size=224, fit="shortest"))
        clip = open_clip_model("ViT-g-14", file, files)
        return OpenClip(
            name,
            Preprocess(size=224, resize=steps),
            clip,
            scale=1.0,
            prefix=PREFIX,
            weights_sha256=files.sha256(file),
        )
    config, file, *words = (
        files.fetch(OPENAI, part, OPENAI_REVISION, local=files.path)
        for part in ("config.json", "model.safetensors", "vocab.json", "merges.txt")
    )
    return TransformersClip(
        name,
        PROCESSOR_224,
        transformers_clip(config, file, files),
        tokenizer=clip_tokenizer(*words),
        scale=100.0,
        weights_sha256=files.sha256(file),
    )

"""PickScore v1 (Kirstain et al. 2023, arXiv:2305.01569): a CLIP ViT-H/14 trained on Pick-a-Pic's choices.

Hub: `yuvalkirstain/PickScore_v1`, files `config.json` and `model.safetensors`; words of
`laion/CLIP-ViT-H-14-laion2B-s32B-b79K`, files `vocab.json` and `merges.txt`. Papers report the cosine (range [-1, 1],
images 0.17 to 0.25); the model card's number is `exp(logit_scale)`, about 100, times it. They are two protocols.
"""

from pathlib import Path

from evaluate.preprocess import PROCESSOR_224
from evaluate.scorers import Scorer
from evaluate.weights import Files

REPOSITORY, REVISION = "yuvalkirstain/PickScore_v1", "a4e4367c6dfa7288a00c550414478f865b875800"
WORDS, WORDS_REVISION = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "1c2b8495b28150b8a4922ee1c8edee224c284c0c"

VARIANTS = {
    "pickscore": "PickScore v1, the raw cosine that papers report",
    "pickscore/scaled": "PickScore v1 times exp(logit_scale), the model card's score",
}
VERIFIED_BY = dict.fromkeys(VARIANTS, "formula")


def load(name: str, files: Files) -> Scorer:
    """`files.path`: a folder with `config.json` and `model.safetensors`, and with `vocab.json` and
    `merges.txt` if those are local too.
    """
    from evaluate.scorers._clip import TransformersClip, clip_tokenizer, transformers_clip

    config, file = (
        files.fetch(REPOSITORY, part, REVISION, local=files.path) for part in ("config.json", "model.safetensors")
    )
    folder = files.path if files.path and (Path(files.path) / "vocab.json").is_file() else None
    words = [files.fetch(WORDS, part, WORDS_REVISION, local=folder) for part in ("vocab.json", "merges.txt")]
    return TransformersClip(
        name,
        PROCESSOR_224,
        transformers_clip(config, file, files),
        tokenizer=clip_tokenizer(*words),
        scale=None if name == "pickscore/scaled" else 1.0,
        weights_sha256=files.sha256(file),
    )

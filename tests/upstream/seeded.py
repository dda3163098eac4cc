"""What both sides of the comparison with the originals are made of: small architectures, seeded weights, pictures, prompts.

Needs numpy alone, so that it runs in the originals' environment as it does in ours. Nothing here depends on a version of it
beyond its PCG64 streams; hashes of what was drawn are in `reference.json`, and a test compares them first.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

#: open_clip's tables, small: what replaces `ViT-H-14` and `ViT-g-14` on both sides.
VIT_H_14 = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 64, "head_width": 16, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
VIT_G_14 = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 44, "head_width": 11, "mlp_ratio": 4.3637, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
#: BERT's words, few: pieces, so that the greedy split into the longest ones is exercised.
WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz0123456789", *".,!?'\"-()[]:;&",
    *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"),
    "the", "cat", "red", "photo", "of", "in", "on", "snow", "##ing", "##ed", "##s", "bicycle", "paint", "moon", "cafe", "猫",
]  # fmt: skip
#: ImageReward's BLIP, small, in transformers' words.
BLIP = {
    "vision": {
        "image_size": 224, "patch_size": 16, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "layer_norm_eps": 1e-6,
    },
    "text": {
        "vocab_size": len(WORDS) + 2, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 512, "layer_norm_eps": 1e-12,
    },
}  # fmt: skip

#: What is put before the names of all streams: other weights, images and prompts for each. `reference.json` holds these: the first, and of
#: a dozen others the one whose ImageReward differs most.
PREFIXES = ("", "fourth/")
PROMPTS = (
    "a photo of a red bicycle in the snow",
    "Painting: the moon, 3 cats & a café – “l'été” &amp; more!",
    "",
    "猫 on the MOON   with odd\tblanks",
    "a very long prompt that goes on, " * 12,
)
#: Name -> height, width, channels. 500 x 331 and 301 x 437 leave odd numbers of pixels on both sides of every centre.
SIZES = {
    "square": (224, 224, 3), "wide": (480, 720, 3), "tall": (500, 331, 3), "odd": (301, 437, 3), "large": (1024, 768, 3),
    "small": (150, 97, 3), "grey": (300, 256, 1),
}  # fmt: skip


def generator(*key: object) -> np.random.Generator:
    """A stream of its own for every key."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "big")))


def prompts(prefix: str = "") -> list[str]:
    """PROMPTS for the first prefix; for another as many of random words, from a few to more than are read, and a blank one."""
    if not prefix:
        return list(PROMPTS)
    rng = generator(f"{prefix}prompts")
    words = [word.removeprefix("##") for word in WORDS[5:]]
    return [" ".join(words[i] for i in rng.integers(0, len(words), length)) for length in (0, 3, 8, 20, 60)]


def pictures(prefix: str = "") -> dict[str, np.ndarray]:
    """Blocks of colour under fine noise: `[H, W, 3]` or, grey, `[H, W]`, uint8."""
    made = {}
    for name, (height, width, channels) in SIZES.items():
        rng = generator(f"{prefix}picture", name)
        coarse = rng.integers(0, 256, (-(-height // 24), -(-width // 24), channels))
        blocks = np.repeat(np.repeat(coarse, 24, 0), 24, 1)[:height, :width]
        noisy = np.clip(blocks + rng.integers(-24, 25, blocks.shape), 0, 255).astype(np.uint8)
        made[name] = noisy[:, :, 0] if channels == 1 else noisy
    return made


def weights(seed: str, layout: Mapping[str, Iterable[int]]) -> dict[str, np.ndarray]:
    """Tensors of `layout`, name -> shape. Each depends on (seed, its name, its shape) alone.

    Scaled so that signals neither die nor explode, and far from where a network starts, so that every part matters.
    """
    return {name: _tensor(seed, name, tuple(shape)) for name, shape in layout.items()}


def _tensor(seed: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name.endswith("position_ids"):
        return np.arange(shape[-1]).reshape(shape)
    normal = generator("weights", seed, name, shape).standard_normal(shape)
    if not shape:
        values = np.log(50) + 0.1 * normal  # logit_scale
    elif len(shape) == 1:
        values = name.endswith("weight") + 0.2 * normal  # norms around 1, biases around 0
    else:
        values = normal * np.sqrt(2 / np.prod(shape[1:]))
    return np.asarray(values, dtype=np.float32)


def sha256(arrays: Mapping[str, np.ndarray]) -> str:
    """Hex digest of named arrays, types and shapes included."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def census(layout: Mapping[str, Iterable[int]]) -> dict[str, int]:
    """A network's tensors, counted by name and shape, numbers in names as `*`: layers fold into one line."""
    lines = (re.sub(r"[.]\d+[.]", ".*.", name) + f" {list(shape)}" for name, shape in layout.items())
    return dict(sorted(Counter(lines).items()))

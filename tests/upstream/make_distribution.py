"""Writes `distribution.json`, with `tox run -e upstream-distribution`: what the originals of distribution metrics make
of features, images and weights that seeds make.

torch-fidelity and clean-fid (KID), prdc and torch-fidelity (precision, recall, density, coverage), vendi-score,
clip-mmd (CMMD), lpips, and FAIR's own dinov2. What comes before the originals is shared with the tests.
"""

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH = 24
#: Images of each side, for each comparison.
KID, SMALL_KID, PRDC, CMMD = (1100, 1300), (60, 60), (400, 500), (600, 700)
VENDI = (20, 1100)  # fewer than features, and more
#: Seed and sizes of AlexNet's part that is compared, as torchvision names it.
ALEXNET = ("alexnet",)
CONVOLUTIONS = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
#: DINOv2 as transformers describes it, small; trained at 518 pixels as the published ones are.
DINOV2 = {
    "model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 4,
    "image_size": 518, "patch_size": 14, "layer_norm_eps": 1e-6, "hidden_act": "gelu", "qkv_bias": True,
}  # fmt: skip
#: A CLIP as transformers describes it, small, at the published one's resolution.
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
CLIP_336 = {
    "projection_dim": 24,
    "text_config": {**TOWER, "vocab_size": 8, "max_position_embeddings": 8, **ENDS},
    "vision_config": {**TOWER, "image_size": 336, "patch_size": 56, "hidden_act": "quick_gelu"},
}
IMAGE_SIZES = ((512, 512), (300, 437), (700, 611), (224, 224))


def generator(*key: object) -> np.random.Generator:
    """One for each name."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big"))


def make_features(side: str, n: int) -> np.ndarray:
    """float32 `[n, WIDTH]`, not negative, of two sides that differ."""
    rng = generator("features", side)
    mixing = np.random.default_rng(7).normal(size=(WIDTH, WIDTH)) / WIDTH**0.5
    shift = {"generated": 0.3, "real": 0.5}[side]
    return np.maximum(rng.normal(size=(n, WIDTH)) @ mixing + shift, 0).astype(np.float32)


def make_images() -> list[np.ndarray]:
    """uint8 `[H, W, 3]` of IMAGE_SIZES: waves and noise."""
    images = []
    for i, (height, width) in enumerate(IMAGE_SIZES):
        rng = generator("image", i)
        y, x = np.mgrid[0:height, 0:width] / 40
        waves = [np.sin(x * rng.uniform(0.2, 4) + y * rng.uniform(0.2, 4) + rng.uniform(0, 6)) for _ in range(3)]
        image = 127.5 + 90 * np.stack(waves, -1) + rng.normal(0, 20, (height, width, 3))
        images.append(image.clip(0, 255).astype(np.uint8))
    return images


def seeded(seed: str, layout: dict[str, Any]) -> dict[str, np.ndarray]:
    """float32 by name: matrices and kernels that keep a signal's size, vectors around 0, or 1 for scales."""
    arrays = {}
    for name, shape in layout.items():
        draw = generator(seed, name).normal(size=shape)
        if len(shape) > 1:
            draw *= (shape[0] / np.prod(shape)) ** 0.5
        else:
            draw = 0.1 * draw + ("norm" in name and name.endswith("weight")) + (name.endswith(("gamma", "lambda1")))
        arrays[name] = np.asarray(draw, np.float32)
    return arrays


def shapes_of_alexnet() -> dict[str, tuple[int, ...]]:
    """By the names of torchvision's file."""
    weights = {f"features.{i}.weight": (out, into, k, k) for i, (out, into, k) in CONVOLUTIONS.items()}
    return weights | {f"features.{i}.bias": (out,) for i, (out, _, _) in CONVOLUTIONS.items()}


def shapes_of_dinov2() -> dict[str, tuple[int, ...]]:
    """By the names of transformers' file."""
    width, patch = DINOV2["hidden_size"], DINOV2["patch_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.mask_token": (1, width),
        "embeddings.position_embeddings": (1, 1 + 37**2, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
    }
    matrices = {f"attention.attention.{each}": (width, width) for each in ("query", "key", "value")}
    matrices |= {"attention.output.dense": (width, width), "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    vectors = [f"norm{i}.{part}" for i in (1, 2) for part in ("weight", "bias")] + [
        f"layer_scale{i}.lambda1" for i in (1, 2)
    ]
    for i in range(DINOV2["num_hidden_layers"]):
        for name, shape in matrices.items():
            shapes |= {f"encoder.layer.{i}.{name}.weight": shape, f"encoder.layer.{i}.{name}.bias": shape[:1]}
        shapes |= {f"encoder.layer.{i}.{name}": (width,) for name in vectors}
    return shapes | {"layernorm.weight": (width,), "layernorm.bias": (width,)}


# ---- the originals ---------------------------------------------------------------------------------------------------


def kid() -> dict[str, float]:
    import torch
    from cleanfid.fid import kernel_distance
    from torch_fidelity.metric_kid import kid_features_to_metric

    a, b = (make_features(side, n) for side, n in zip(("generated", "real"), KID, strict=True))
    found = kid_features_to_metric(
        torch.from_numpy(a).double(), torch.from_numpy(b).double(), verbose=False, rng_seed=2020
    )
    small = [make_features(side, n).astype(float) for side, n in zip(("generated", "real"), SMALL_KID, strict=True)]
    np.random.seed(0)  # noqa: NPY002
    return {
        "torch-fidelity": found["kernel_inception_distance_mean"],
        # Subsets as large as the sets are all the same.
        "clean-fid, 60 images": kernel_distance(*small, num_subsets=2),
    }


def neighbours() -> dict[str, Any]:
    import torch
    from prdc import compute_prdc
    from torch_fidelity.metric_prc import prc_features_to_metric

    a, b = (make_features(side, n).astype(float) for side, n in zip(("generated", "real"), PRDC, strict=True))
    both = prc_features_to_metric(torch.from_numpy(a), torch.from_numpy(b), verbose=False)
    return {
        "prdc": {f"k = {k}": {name: float(x) for name, x in compute_prdc(b, a, k).items()} for k in (3, 5)},
        "torch-fidelity": {name: both[name] for name in ("precision", "recall")},
    }


def vendi() -> dict[str, float]:
    from vendi_score import vendi as original

    sets = {n: make_features("generated", n).astype(float) for n in VENDI}
    return {
        f"{VENDI[0]} images": float(original.score_X(sets[VENDI[0]])),
        f"{VENDI[1]} images": float(original.score_dual(sets[VENDI[1]])),
    }


def cmmd() -> float:
    import torch
    from clip_mmd.calculation import mmd

    a, b = (make_features(side, n).astype(float) for side, n in zip(("generated", "real"), CMMD, strict=True))
    units = [torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True)) for x in (a, b)]
    return float(mmd(*units))


def lpips() -> dict[str, float]:
    """Of pairs of images at 512 by Lanczos."""
    import torch
    from lpips import LPIPS

    network = LPIPS(net="alex", version="0.1", pnet_rand=True, verbose=False)
    state = {
        key.removeprefix("features."): torch.from_numpy(x) for key, x in seeded(*ALEXNET, shapes_of_alexnet()).items()
    }
    own = network.net.state_dict()
    network.net.load_state_dict({key: state[key.partition(".")[2]] for key in own})
    resized = [Image.fromarray(image).resize((512, 512), Image.Resampling.LANCZOS) for image in make_images()]
    tensors = [torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255 for image in resized]
    with torch.no_grad():
        return {
            f"{i}-{j}": network(tensors[i], tensors[j], normalize=True).item()
            for i in range(len(tensors))
            for j in range(i + 1, len(tensors))
        }


def dinov2() -> list[list[float]]:
    """Class tokens of images, through dgm-eval's transform."""
    import torch
    from dinov2.models.vision_transformer import DinoVisionTransformer
    from torchvision import transforms

    state = {name: torch.from_numpy(array) for name, array in seeded("dinov2", shapes_of_dinov2()).items()}
    depth, heads = DINOV2["num_hidden_layers"], DINOV2["num_attention_heads"]
    network = DinoVisionTransformer(
        img_size=518, patch_size=14, embed_dim=DINOV2["hidden_size"], depth=depth, num_heads=heads, init_values=1.0,
        block_chunks=0,
    )  # fmt: skip
    network.load_state_dict(as_fair_names_them(state, depth))
    resize = transforms.Resize((224, 224), transforms.InterpolationMode.BICUBIC)
    normalise = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    prepare = transforms.Compose([resize, transforms.ToTensor(), normalise])
    with torch.no_grad():
        rows = network.eval()(torch.stack([prepare(Image.fromarray(image)) for image in make_images()]))
    return [[float(x) for x in row] for row in rows]


def as_fair_names_them(state: dict[str, Any], depth: int) -> dict[str, Any]:
    import torch

    names = {
        "cls_token": "embeddings.cls_token",
        "mask_token": "embeddings.mask_token",
        "pos_embed": "embeddings.position_embeddings",
        **{f"patch_embed.proj.{part}": f"embeddings.patch_embeddings.projection.{part}" for part in ("weight", "bias")},
        **{f"norm.{part}": f"layernorm.{part}" for part in ("weight", "bias")},
    }
    same = [f"{name}.{part}" for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2") for part in ("weight", "bias")]
    found = {}
    for i in range(depth):
        layer = f"encoder.layer.{i}"
        names |= {f"blocks.{i}.{name}": f"{layer}.{name}" for name in same}
        names |= {f"blocks.{i}.ls{j}.gamma": f"{layer}.layer_scale{j}.lambda1" for j in (1, 2)}
        names |= {
            f"blocks.{i}.attn.proj.{part}": f"{layer}.attention.output.dense.{part}" for part in ("weight", "bias")
        }
        for part in ("weight", "bias"):
            three = [state[f"{layer}.attention.attention.{each}.{part}"] for each in ("query", "key", "value")]
            found[f"blocks.{i}.attn.qkv.{part}"] = torch.cat(three)
    return found | {theirs: state[ours] for theirs, ours in names.items()}


def main() -> None:
    packages = (
        "torch-fidelity", "clean-fid", "prdc", "vendi-score", "clip-mmd", "lpips", "dinov2", "torch", "torchvision",
        "numpy", "scipy", "pillow",
    )  # fmt: skip
    content = {
        "made_by": "tests/upstream/make_distribution.py",
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
        "kid": kid(),
        "neighbours": neighbours(),
        "vendi": vendi(),
        "cmmd": cmmd(),
        "lpips": lpips(),
        "dinov2": dinov2(),
    }
    (Path(__file__).parent / "distribution.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

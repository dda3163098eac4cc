"""Writes `mps.json`: what the authors' own code makes of seeded weights, images and prompts.

It is no package: `tox run -e upstream-hpsv3 -- make_mps.py CHECKOUT` with a checkout of github.com/Kwai-Kolors/MPS.

Their code is used as published, with two differences: sizes are small, and where they halve precision it stays, so that
what is compared is arithmetic and not rounding.
"""

import hashlib
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import seeded  # noqa: E402

PACKAGES = ("transformers", "tokenizers", "einops", "torch", "pillow", "numpy")
#: The CLIP's towers, how wide its embeddings are, and the layers behind it.
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_act": "gelu",
}
WIDTH = 24
CROSS = {"layer_num": 2, "heads": 3, "dim_head": 8}
CONDITION = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance,"
    " texture, quantity, attributes, position, number, location, word, things."
)


def words() -> tuple[dict[str, int], list[str]]:
    """`vocab.json` and the lines of `merges.txt` of a CLIP that knows bytes and some pairs of them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte if byte in plain else 256 + sum(b not in plain for b in range(byte))) for byte in range(256)]
    pairs = ("t h", "th e</w>", "i n", "r e", "p h", "ph o", "o f</w>", "a n", "s t", "l o", "c o", "a r", "t i", "t u")
    made = [*letters, *(f"{letter}</w>" for letter in letters), *(pair.replace(" ", "") for pair in pairs)]
    return {word: i for i, word in enumerate([*made, "<|startoftext|>", "<|endoftext|>"])}, list(pairs)


def config() -> dict[str, Any]:
    """Of the CLIP; its `eos_token_id` is the one of all that were published first, which means the largest number."""
    vocabulary, _ = words()
    text = TOWER | {
        "vocab_size": len(vocabulary),
        "max_position_embeddings": 77,
        "eos_token_id": 2,
        "projection_dim": WIDTH,
    }
    vision = TOWER | {"image_size": 224, "patch_size": 32, "projection_dim": WIDTH}
    return {"model_type": "clip", "projection_dim": WIDTH, "text_config": text, "vision_config": vision}


def weights(prefix: str, layout: dict[str, Iterable[int]]) -> dict[str, np.ndarray]:
    """Seeded, but for what the authors' modules compute themselves."""
    own = {name: shape for name, shape in layout.items() if not name.endswith(("norm.bias", "inv_freq"))}
    mine = {name: shape for name, shape in layout.items() if name.startswith("model.") and name.endswith("norm.bias")}
    return seeded.weights(f"{prefix}mps", own | mine)


def make_model() -> Any:
    """The authors' CLIPModel, small."""
    import torch
    from trainer.models.clip_model import CLIPModel, XCLIPModel
    from trainer.models.cross_modeling import Cross_model
    from transformers import CLIPConfig

    model = object.__new__(CLIPModel)
    torch.nn.Module.__init__(model)
    model.model, model.cross_model = XCLIPModel(CLIPConfig.from_dict(config())), Cross_model(dim=WIDTH, **CROSS)
    return model.eval()


def make_tokenizer(folder: Path) -> Any:
    """Of the CLIP's words."""
    from transformers import CLIPTokenizerFast

    vocabulary, pairs = words()
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{pair}\n" for pair in pairs), encoding="utf-8")
    return CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def forward(model: Any, image: Path, prompt: str, tokenizer: Any, processor: Any) -> float:
    """The module's own `forward`, called with an image beside itself and its features compared as in the README."""
    import torch
    from PIL import Image

    pixels = processor(Image.open(image).convert("RGB"), return_tensors="pt")["pixel_values"]
    ids = [
        tokenizer(text, max_length=77, padding="max_length", truncation=True, return_tensors="pt").input_ids
        for text in (prompt, CONDITION)
    ]
    text, one, other = (
        each / each.norm(dim=-1, keepdim=True) for each in model(ids[0], torch.cat([pixels, pixels]), ids[1])
    )
    assert torch.equal(one, other)
    return float(model.logit_scale.exp() * (text * one).sum())


def run(prefix: str, folder: Path) -> dict[str, Any]:
    """Scores by variant, image and prompt of weights that the prefix names."""
    import torch
    from eval_overall_mps_on_hpdv2 import infer_one_sample
    from PIL import Image
    from transformers import CLIPImageProcessor

    model, tokenizer, processor = make_model(), make_tokenizer(folder), CLIPImageProcessor()
    layout = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    arrays = weights(prefix, layout)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, strict=False)
    scores: dict[str, dict[str, list[float]]] = {"mps": {}, "mps/forward": {}}
    for name, array in seeded.pictures(prefix).items():
        Image.fromarray(array).save(folder / f"{name}.png")
        image, prompts = folder / f"{name}.png", seeded.prompts(prefix)
        scores["mps"][name] = [
            float(infer_one_sample(str(image), prompt, model, processor, tokenizer, "cpu")) for prompt in prompts
        ]
        scores["mps/forward"][name] = [forward(model, image, prompt, tokenizer, processor) for prompt in prompts]
    tokens = tokenizer(seeded.prompts(prefix), max_length=77, padding="max_length", truncation=True).input_ids
    return {"scores": scores, "layout": layout, "weights_sha256": seeded.sha256(arrays), "tokens": tokens}


def main(checkout: Path) -> None:
    """Write mps.json beside this file."""
    import torch

    sys.path.insert(0, str(checkout))
    torch.set_num_threads(1)
    torch.Tensor.half = torch.Tensor.float  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        results = {prefix: run(prefix, Path(name)) for prefix in seeded.PREFIXES}
    files = ("trainer/models/clip_model.py", "trainer/models/cross_modeling.py", "eval_overall_mps_on_hpdv2.py")
    commit = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    content = {
        "made_by": "tests/upstream/make_mps.py",
        "make_sha256": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
        "commit": commit.stdout.strip(),
        "files": {file: hashlib.sha256((checkout / file).read_bytes()).hexdigest() for file in files},
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        "prefixes": results,
    }
    (HERE / "mps.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
    for prefix, result in results.items():
        tables = {name: np.array([*rows.values()]) for name, rows in result["scores"].items()}
        print(prefix, {name: (table.std(0), table.std(1).mean()) for name, table in tables.items()})
        print(np.abs(tables["mps"] - tables["mps/forward"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Writes `aesthetic.json`, with `tox run -e upstream-hpsv3 -- make_aesthetic.py`: what the package
aesthetic-predictor-v2-5 makes of seeded weights and images, at a small size.
"""

import hashlib
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import seeded  # noqa: E402

PACKAGES = ("aesthetic-predictor-v2-5", "transformers", "torch", "pillow", "numpy")
#: The tower's config.
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 384,
    "patch_size": 32,
}  # fmt: skip


def run(prefix: str) -> dict[str, Any]:
    """A score an image, of weights that the prefix names."""
    import torch
    from aesthetic_predictor_v2_5.siglip_v2_5 import AestheticPredictorV2_5Model, AestheticPredictorV2_5Processor
    from PIL import Image
    from transformers import SiglipVisionConfig

    model = AestheticPredictorV2_5Model(SiglipVisionConfig(**VISION)).eval()
    # What google/siglip-so400m-patch14-384 says beside the class's own numbers, bicubic among them.
    processor = AestheticPredictorV2_5Processor(size={"height": 384, "width": 384})
    layout = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    arrays = seeded.weights(f"{prefix}aesthetic-v2.5", layout)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    scores = {}
    for name, array in seeded.pictures(prefix).items():
        pixels = processor(images=Image.fromarray(array).convert("RGB"), return_tensors="pt").pixel_values
        scores[name] = float(model(pixels).logits)
    return {"scores": scores, "layout": layout, "weights_sha256": seeded.sha256(arrays)}


def main() -> None:
    """Write aesthetic.json beside this file."""
    import torch

    torch.set_num_threads(1)
    with torch.no_grad():
        results = {prefix: run(prefix) for prefix in seeded.PREFIXES}
    content = {
        "made_by": "tests/upstream/make_aesthetic.py",
        "make_sha256": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        "prefixes": results,
    }
    (HERE / "aesthetic.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
    for result in results.values():
        print(result["scores"], np.std([*result["scores"].values()]))


if __name__ == "__main__":
    main()

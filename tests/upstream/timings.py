"""Time hpsv2's and image-reward's public calls at full size on random weights, for `evaluate bench --originals`.

python tests/upstream/timings.py FOLDER, in the environment `upstream`, writes into FOLDER the weights (6 GB, kept if
they are there) and `originals.json`; then, in the project's own environment,

evaluate bench --scorer hpsv2.1/aa=FOLDER --scorer imagereward=FOLDER --scorer
clipscore/vit-l-14-torchmetrics=FOLDER/clip \\
    --originals FOLDER/originals.json --frechet --harness
"""

import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import make  # noqa: E402

IMAGES, EDGE, PROMPT = 32, 512, "a photo of red bicycles in the snow"
WARMUP, REPEATS = 1, 2


def images() -> list[Image.Image]:
    """As `evaluate.bench.scorers.scorers.images` draws them."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, 3, EDGE, EDGE), dtype=torch.uint8, generator=generator)
    return [Image.fromarray(each) for each in pixels.permute(0, 2, 3, 1).numpy()]


def hardware() -> str:
    """As `evaluate.environment.hardware` words it."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return f"{name}, {torch.get_num_threads()} threads"


def measure(call: Callable[[], object]) -> dict[str, object]:
    """Median seconds of warm calls, and what the last one returned."""
    seconds = []
    for _ in range(WARMUP + REPEATS):
        began = time.perf_counter()
        result = call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return {
        "seconds": statistics.median(seconds[WARMUP:]),
        "scores": np.asarray(result, dtype=float).reshape(-1).tolist(),
    }


def time_hpsv2(folder: Path) -> dict[str, object]:
    """`hpsv2.img_score.score` of a list of images, which reads its checkpoint anew in every call."""
    make.add_words()
    from hpsv2 import img_score
    from hpsv2.src.open_clip import factory, model

    checkpoint = folder / "HPS_v2.1_compressed.pt"
    if not checkpoint.is_file():
        torch.manual_seed(0)
        torch.save({"state_dict": model.CLIP(**factory._MODEL_CONFIGS["ViT-H-14"]).state_dict()}, checkpoint)
    factory.download_pretrained = lambda *_, **__: str(checkpoint)
    result = measure(functools.partial(img_score.score, images(), PROMPT, str(checkpoint)))
    result["scores"] = [100 * score for score in result["scores"]]
    return result | {"weights_sha256": make.file_sha256(checkpoint)}


def time_imagereward(folder: Path) -> dict[str, object]:
    """`ImageReward.score` of a list of images."""
    import ImageReward  # noqa: F401, its __init__ imports what the modules below need

    module = sys.modules["ImageReward.ImageReward"]
    make.use_words(folder)
    config = folder / "med_config.json"
    config.write_text(
        json.dumps({"add_cross_attention": True, "type_vocab_size": 2, "pad_token_id": 0, "vocab_size": 30524})
    )
    torch.manual_seed(0)
    network = module.ImageReward(med_config=str(config)).eval()
    checkpoint = folder / "ImageReward.pt"
    if checkpoint.is_file():
        network.load_state_dict(torch.load(checkpoint))
    else:
        torch.save(network.state_dict(), checkpoint)
    if torch.cuda.is_available():
        network = network.cuda()
        network.device = "cuda"
    with torch.no_grad():
        return measure(lambda: network.score(PROMPT, images())) | {"weights_sha256": make.file_sha256(checkpoint)}


def write_clip(folder: Path) -> None:
    """CLIP ViT-L/14 as `openai/clip-vit-large-patch14` is laid out, for the scorers whose originals run beside ours."""
    import gzip

    from hpsv2.src.open_clip.tokenizer import bytes_to_unicode, default_bpe
    from transformers import CLIPConfig, CLIPModel

    if (folder / "model.safetensors").is_file():
        return
    torch.manual_seed(0)
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "eos_token_id": 49407}
    config = CLIPConfig(
        projection_dim=768,
        text_config=text,
        vision_config=vision | {"image_size": 224, "patch_size": 14, "projection_dim": 768},
    )
    CLIPModel(config).save_pretrained(folder)
    pairs = gzip.decompress(Path(default_bpe()).read_bytes()).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = list(bytes_to_unicode().values())
    merged = ["".join(pair.split()) for pair in pairs]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *merged, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n", encoding="utf-8")


def main() -> None:
    """Write originals.json into the folder that is given."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "hardware": hardware(),
        "images": IMAGES,
        "edge": EDGE,
        "prompt": PROMPT,
        "versions": ", ".join(f"{name} {version(name)}" for name in ("hpsv2", "image-reward", "torch", "transformers")),
        "scorers": {"imagereward": time_imagereward(folder), "hpsv2.1/aa": time_hpsv2(folder)},
    }
    write_clip(folder / "clip")
    (folder / "originals.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print({name: each["seconds"] for name, each in content["scorers"].items()})


if __name__ == "__main__":
    main()

"""Run t2v-metrics' own VQAScore on a small CLIP-FlanT5 of seeded weights and write `vqascore.json`:
`tox run -e upstream-vqascore`.

Its code is used as published, from the image's file and the prompt to the score. Only what it would fetch is made here,
in the files' published format; the packages that it imports for other models stay out (`t2v_metrics/__init__.py` is not
run), and the network is widened to float32 after it was loaded in bfloat16, since float32 is what can be compared.
"""

import hashlib
import importlib
import json
import platform
import sys
import tempfile
import types
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from upstream import seeded, vqascore_parts  # noqa: E402

PACKAGES = ("t2v-metrics", "torch", "transformers", "sentencepiece", "pillow", "numpy")
PROCESSOR = {
    "crop_size": 336, "do_center_crop": True, "do_normalize": True, "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "size": 336,
}  # fmt: skip


def import_original() -> types.ModuleType:
    """`clip_t5_model`, without the packages around it being run."""
    root = Path(next(iter(find_spec("t2v_metrics").submodule_search_locations)))
    for name in ("t2v_metrics", "t2v_metrics.models", "t2v_metrics.models.vqascore_models"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(root.joinpath(*name.split(".")[1:]))]
    return importlib.import_module("t2v_metrics.models.vqascore_models.clip_t5_model")


def save_tower(folder: Path) -> None:
    """The tower that the original loads first; its weights are other ones than those of the checkpoint."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(1)
    CLIPVisionModel(CLIPVisionConfig(**vqascore_parts.VISION)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))


def save_model(original: types.ModuleType, model: str, folder: Path, tower: Path) -> tuple[dict[str, list[int]], str]:
    """Writes config, words and weights; the layout of what was written, and its digest."""
    classes = original.CLIPT5ForConditionalGeneration
    config = {**vqascore_parts.LANGUAGE, "mm_vision_tower": str(tower)}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "spiece.model").write_bytes(vqascore_parts.spiece())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "T5Tokenizer", "model_max_length": 512})
    )
    network = classes(classes.config_class.from_pretrained(folder))
    layout = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    tensors = vqascore_parts.weights(model, layout)
    for name, content in vqascore_parts.files(model, tensors).items():
        if name.endswith(".json"):
            (folder / name).write_text(json.dumps(content))
        else:
            torch.save(content, folder / name)
    return layout, seeded.sha256({name: tensor.float().numpy() for name, tensor in tensors.items()})


def image_bytes(scorer: object, file: Path) -> str:
    """Digest of the bytes that the original makes of an image, before it scales them."""
    pixels = scorer.load_images([str(file)])[0]
    mean, std = (torch.tensor(PROCESSOR[name])[:, None, None] for name in ("image_mean", "image_std"))
    return hashlib.sha256(((pixels * std + mean) * 255).round().byte().numpy().tobytes()).hexdigest()


def run(original: types.ModuleType, model: str, files: dict[str, Path], folder: Path, tower: Path) -> dict[str, object]:
    """All prompts on each image at once, and one that is too long alone."""
    layout, digest = save_model(original, model, folder / model, tower)
    for part in ("model", "tokenizer"):
        original.CLIP_T5_MODELS[model][part]["path"] = str(folder / model)
    scorer = original.CLIPT5Model(model, device="cpu", cache_dir=str(folder / "cache"))
    scorer.model.float()
    prompts = list(vqascore_parts.PROMPTS)
    scores = {name: scorer.forward([str(file)] * len(prompts), prompts).tolist() for name, file in files.items()}
    questions = [
        original.format_question(original.default_question_template.format(prompt), "t5_chat")
        for prompt in (*prompts, vqascore_parts.TOO_LONG)
    ]
    tokens = [original.t5_tokenizer_image_token(question, scorer.tokenizer) for question in questions]
    images = {name: image_bytes(scorer, file) for name, file in files.items()}
    # Over so many keys what float32 rounds by depends on the processor.
    scorer.model.double()
    narrow = scorer.load_images
    scorer.load_images = lambda paths: narrow(paths).double()
    return {
        "scores": scores,
        "too_long": scorer.forward([str(files["wide"])], [vqascore_parts.TOO_LONG]).tolist(),
        "tokens": tokens[:-1],
        "too_long_tokens": len(tokens[-1]),
        "answer": original.t5_tokenizer_image_token("Yes", scorer.tokenizer),
        "layout": layout,
        "weights_sha256": digest,
        "images": images,
    }


def main() -> None:
    """Write vqascore.json beside this file."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # autocast of a GPU where there is none
    original = import_original()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_tower(folder / "tower")
        files = {}
        for image, array in vqascore_parts.images().items():
            files[image] = folder / f"{image}.png"
            Image.fromarray(array).save(files[image])
        parts = {model: run(original, model, files, folder, folder / "tower") for model in vqascore_parts.SEEDS}
    made_by = {
        "command": "tox run -e upstream-vqascore",
        "python": platform.python_version(),
        "packages": {package: version(package) for package in PACKAGES},
        "sha256": {
            file: hashlib.sha256((HERE / file).read_bytes()).hexdigest()
            for file in ("make_vqascore.py", "vqascore_parts.py", "seeded.py")
        },
    }
    lines = [
        f"{json.dumps(f'{part}/{key}')}: {json.dumps(value)}"
        for part, values in {"made_by": made_by, **parts}.items()
        for key, value in values.items()
    ]
    (HERE / "vqascore.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    for model, part in parts.items():
        print(model, {image: [round(score, 5) for score in scores] for image, scores in part["scores"].items()})


if __name__ == "__main__":
    main()

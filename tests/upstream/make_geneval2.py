"""Writes `geneval2.json`, with `tox run -e upstream-geneval2 -- FOLDER`: what GenEval 2's own functions make of seeded
images and of a small Qwen3-VL that seeds make.

FOLDER: a clone of github.com/facebookresearch/GenEval2 at a6e82d2. Its `evaluation.py` is run as published; where it
would load weights and a processor from the hub, it gets the small ones.
"""

import hashlib
import json
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import judge  # noqa: E402
import seeded  # noqa: E402

#: What Qwen3-VL's chat template makes of a user's messages and of the answer's beginning.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: Qwen3-VL's `preprocessor_config.json`.
IMAGES = {
    "size": {"shortest_edge": 65536, "longest_edge": 16777216}, "patch_size": 16, "temporal_patch_size": 2,
    "merge_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
}  # fmt: skip


def processor(folder: str) -> Any:
    """Qwen3-VL's, with our words, which are written into `folder`."""
    judge.tokenizer().save(f"{folder}/tokenizer.json")
    words = transformers.Qwen2TokenizerFast(tokenizer_file=f"{folder}/tokenizer.json")
    video = transformers.Qwen3VLVideoProcessor()
    images = transformers.Qwen2VLImageProcessorFast(**IMAGES)
    return transformers.Qwen3VLProcessor(images, words, video, chat_template=TEMPLATE)


def network() -> tuple[Any, dict[str, list[int]]]:
    """Seeded, and its tensors' shapes."""
    config = transformers.Qwen3VLConfig(**judge.config(judge.tokenizer()))
    made = transformers.Qwen3VLForConditionalGeneration(config).eval()
    layout = {name: list(tensor.shape) for name, tensor in made.state_dict().items()}
    made.load_state_dict({name: torch.from_numpy(array) for name, array in judge.weights(layout).items()})
    return made, layout


def original(file: Path, model: Any, folder: str) -> ModuleType:
    """The published module around the small network."""
    found = processor(folder)
    transformers.AutoProcessor.from_pretrained = lambda *_, **__: found
    transformers.Qwen3VLForConditionalGeneration.from_pretrained = lambda *_, **__: model
    module = ModuleType("evaluation")
    exec(compile(file.read_text(encoding="utf-8"), file, "exec"), module.__dict__)
    return module


def main(folder: Path) -> None:
    file = folder / "evaluation.py"
    model, layout = network()
    credits: dict[str, dict[str, list[float]]] = {}
    predicted: dict[str, dict[str, list[str]]] = {}
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        published = original(file, model, temporary)
        for name, array in seeded.pictures().items():
            path = f"{temporary}/{name}.png"
            Image.fromarray(array).save(path)
            credits[name] = {key: published.soft_tifa(atoms, path)[1] for key, atoms in judge.ATOMS.items()}
            asked = [[f"{question} Answer in one word." for question, _ in each] for each in judge.ATOMS.values()]
            predicted[name] = {
                key: [published.send_message_with_image(text, path)[0] for text in texts]
                for key, texts in zip(judge.ATOMS, asked, strict=True)
            }
    means = {
        name: {key: [sum(row) / len(row), float(published.gmean(row))] for key, row in rows.items()}
        for name, rows in credits.items()
    }
    packages = ("transformers", "torch", "torchvision", "tokenizers", "scipy", "pillow", "numpy")
    content = {
        "made_by": "tests/upstream/make_geneval2.py",
        "evaluation_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
        "layout": layout,
        "weights_sha256": seeded.sha256(judge.weights(layout)),
        "credits": credits,
        "predicted": predicted,
        "means": means,
    }
    (HERE / "geneval2.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

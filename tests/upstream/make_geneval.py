"""Writes `geneval.json`: what GenEval's own script and MMDetection make of seeded weights, images and objects.

`git clone https://github.com/djghosh13/geneval FOLDER`, at the commit that `geneval.json` names; then
`tox run -e upstream-geneval -- FOLDER`.

Both are used as published. Replaced are the sizes of the network, its weights, the CLIP (by a stand-in, in float32) and
mmcv's compiled functions, none of which a CPU needs: mmcv 1.7 without them runs attention in plain torch.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
import types
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from upstream import geneval_cases, seeded  # noqa: E402

PACKAGES = ("mmdet", "mmcv", "torch", "numpy", "opencv-python", "open_clip_torch", "clip-benchmark", "pillow")
EVERY = 13  # pixels, of which one of a mask's logits is kept
CONFIG = "mask2former/mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco.py"


class Missing(types.ModuleType):
    """In place of mmcv's compiled functions, which are looked up by name and never called."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


sys.modules["mmcv._ext"] = Missing("mmcv._ext")


def original(folder: Path) -> Any:
    """The script as a module; it wants a GPU when it is imported, and nothing of it afterwards."""
    spec = importlib.util.spec_from_file_location("evaluate_images", folder / "evaluation" / "evaluate_images.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    available, torch.cuda.is_available = torch.cuda.is_available, lambda: True
    try:
        spec.loader.exec_module(module)
    finally:
        torch.cuda.is_available = available
    module.DEVICE, module.args = "cpu", argparse.Namespace(options={})
    # What its last lines set where it is run as a program without options.
    for name, value in (("THRESHOLD", 0.3), ("COUNTING_THRESHOLD", 0.9), ("MAX_OBJECTS", 16), ("NMS_THRESHOLD", 1.0)):
        setattr(module, name, value)
    module.POSITION_THRESHOLD, module.object_detector = 0.1, None
    module.classnames = (folder / "evaluation" / "object_names.txt").read_text().splitlines()
    return module


# ---- the detector ----------------------------------------------------------------------------------------------------


def published() -> Any:
    """MMDetection's own config of GenEval's detector."""
    import mmcv
    import mmdet

    return mmcv.Config.fromfile(str(Path(mmdet.__file__).parent / ".mim" / "configs" / CONFIG))


def shrunk(config: Any) -> Any:
    """The same, narrow, and for smaller images."""
    width, features, inner = geneval_cases.WIDTH, geneval_cases.FEATURES, geneval_cases.INNER
    backbone, head = config.model.backbone, config.model.panoptic_head
    backbone.embed_dims, backbone.num_heads = width, list(geneval_cases.HEADS)
    head.in_channels = [width << stage for stage in range(4)]
    head.feat_channels = head.out_channels = features
    head.num_queries = geneval_cases.QUERIES
    head.positional_encoding.num_feats = head.pixel_decoder.positional_encoding.num_feats = features // 2
    pixels, queries = head.pixel_decoder.encoder.transformerlayers, head.transformer_decoder.transformerlayers
    for layer in (pixels, queries):
        layer.attn_cfgs.embed_dims = layer.ffn_cfgs.embed_dims = features
        layer.ffn_cfgs.feedforward_channels = inner
    queries.feedforward_channels = inner
    config.data.test.pipeline[1].img_scale = geneval_cases.EDGES
    return config


def detector(config: Any) -> Any:
    """Without the weights that it would start training from."""
    from mmdet.apis import init_detector

    config.model.backbone.init_cfg = None
    return init_detector(config, None, device="cpu")


def shapes(module: torch.nn.Module) -> dict[str, list[int]]:
    """Of all that a module would save."""
    return {name: list(tensor.shape) for name, tensor in module.state_dict().items()}


def run_detector(module: Any, folder: Path) -> dict[str, Any]:
    """Names and shapes, small and published; logits and objects on a few images; how images are resized."""
    import mmcv

    full, model = shapes(detector(published())), detector(shrunk(published()))
    small = shapes(model)
    assert list(small) == list(full)
    weights = geneval_cases.detector_weights(small)
    model.load_state_dict(weights, strict=False)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    head = model.panoptic_head
    head.register_forward_hook(lambda *call: seen.append((call[2][0][-1][0], call[2][1][-1][0])))
    images, resized = {}, {}
    for name, array in seeded.pictures().items():
        Image.fromarray(array).save(folder / f"{name}.png")
        read = mmcv.imread(str(folder / f"{name}.png"))
        scaled = mmcv.imrescale(read, (1333, 800))[..., ::-1]
        resized[name] = hashlib.sha256(np.ascontiguousarray(scaled).tobytes()).hexdigest()
        if name in geneval_cases.PICTURES:
            objects = found(module, model, str(folder / f"{name}.png"))
            classes, logits = seen.pop()
            few = rounded(logits[:, ::EVERY, ::EVERY])
            images[name] = {
                "classes": rounded(classes),
                "mask_size": list(logits.shape),
                "masks": few,
                "objects": objects,
            }
    head.forward = lambda features, metas: [each[None, None] for each in geneval_cases.logits(*features[0].shape[2:])]
    for name, image in images.items():
        image["discs"] = found(module, model, str(folder / f"{name}.png"))
    digest = seeded.sha256({name: tensor.numpy() for name, tensor in weights.items()})
    layout = {name: [small[name], full[name]] for name in full}
    return {"layout": layout, "weights_sha256": digest, "images": images, "resized_sha256": resized}


def found(module: Any, model: Any, path: str) -> list[list[float]]:
    """All objects in an image: class, box, confidence, and area of the mask in pixels."""
    boxes, masks = module.inference_detector(model, path)
    return [
        [label, *box.tolist(), int(mask.sum())]
        for label, (of_class, inside) in enumerate(zip(boxes, masks, strict=True))
        for box, mask in zip(of_class, inside, strict=True)
    ]


def rounded(values: torch.Tensor) -> Any:
    """To seven digits, which is what float32 has."""
    return json.loads(json.dumps(values.tolist()), parse_float=lambda text: float(f"{float(text):.7g}"))


# ---- rules and colours -----------------------------------------------------------------------------------------------


def run_rules(module: Any, rows: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Verdicts on random objects: a digest of all, and every five hundredth."""
    file = folder / "blank.png"
    Image.new("RGB", (geneval_cases.SIDE, geneval_cases.SIDE)).save(file)
    colours: dict[tuple[float, ...], str] = {}
    module.color_classification = lambda image, objects, name: [colours[tuple(box.tolist())] for box, _ in objects]
    lines = []
    for case in geneval_cases.cases(rows, module.classnames):
        boxes = [case.boxes.get(name, np.zeros((0, 5), np.float32)) for name in module.classnames]
        colours.clear()
        colours |= {
            tuple(box.tolist()): colour
            for name in case.boxes
            for box, colour in zip(case.boxes[name], case.colours[name], strict=True)
        }
        module.inference_detector = lambda model, path, boxes=boxes: (boxes, [[None] * len(each) for each in boxes])
        result = module.evaluate_image(str(file), rows[case.row])
        lines.append(geneval_cases.line(case, result["correct"], result["reason"]))
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return {
        "cases": len(lines),
        "sha256": digest,
        "right": sum(" 1 " in line for line in lines),
        "sample": lines[::500],
    }


def run_colours(module: Any, folder: Path) -> dict[str, Any]:
    """100 x cosines of objects and colours, by image and class."""
    import open_clip
    from torchvision.transforms import InterpolationMode

    module.clip_model, module.tokenizer = geneval_cases.Clip(), open_clip.get_tokenizer("ViT-L-14")
    module.transform = open_clip.image_transform(
        224, is_train=False, mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD
    )
    assert module.transform.transforms[0].interpolation == InterpolationMode.BICUBIC
    # On a CPU autocast would be to bfloat16.
    zsc, seen = module.zsc, []
    zsc.zero_shot_classifier = partial(zsc.zero_shot_classifier, amp=False)
    classify = zsc.run_classification

    def kept(*call: Any) -> Any:
        seen.append(classify(*call, amp=False))
        return seen[-1]

    zsc.run_classification = kept
    result = {}
    for name in geneval_cases.PICTURES:
        image = Image.open(folder / f"{name}.png")
        objects = geneval_cases.cut_outs(np.asarray(image.convert("RGB")))
        for kind in ("computer mouse", "apple"):
            colours = module.color_classification(image, objects, kind)
            result[f"{name}/{kind}"] = {"colours": colours, "cosines": rounded(seen.pop()[0])}
    return result


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    module = original(folder)
    file = folder / "prompts" / "evaluation_metadata.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        parts = {"detector": run_detector(module, Path(name)), "colours": run_colours(module, Path(name))}
        parts["rules"] = run_rules(module, rows, Path(name))
    commit = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    made_by = {
        "command": "tox run -e upstream-geneval -- FOLDER",
        "geneval": commit.stdout.strip(),
        "python": platform.python_version(),
        "packages": {package: version(package) for package in PACKAGES},
    }
    text = json.dumps({"made_by": made_by, **parts}, ensure_ascii=False)
    # A line for each of what would else be a line for each number.
    text = text.replace("}, ", "},\n").replace("]], ", "]],\n").replace('", "', '",\n"')
    (HERE / "geneval.json").write_text(text + "\n", encoding="utf-8")
    print(
        {
            name: (np.std(image["classes"]), np.std(image["masks"]))
            for name, image in parts["detector"]["images"].items()
        }
    )
    print({key: parts["rules"][key] for key in ("cases", "right")}, parts["rules"]["sample"][:5])


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())

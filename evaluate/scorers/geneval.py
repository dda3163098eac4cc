"""GenEval (Ghosh et al. 2023, arXiv:2310.11513): 1 where an image shows what its prompt asks for, 0 where it does not.

A detector finds objects, a CLIP names their colours, and rules compare them with what the prompt says: see
`_mask2former`, `_detector` and `_geneval`. The score of a run is the mean of the six tasks' means.

Detector: MMDetection's Mask2Former, a file of about 263 MiB that the hub does not have, fetched from its authors and
known by the digits of its hash in its name. Colours: OpenAI's CLIP ViT-L/14, `openai/clip-vit-large-patch14` on the
hub, files `config.json`, `model.safetensors`, `vocab.json` and `merges.txt`. On a GPU the original runs CLIP under fp16
autocast; here precision is `load`'s `dtype`, of both networks.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evaluate.images import as_bytes
from evaluate.preprocess import CLIP_224, AsTheyAre, Prepared
from evaluate.scorers import Assessment, Meta, Scorer, _geneval, _mask2former
from evaluate.scorers._clip import TransformersClip, clip_tokenizer, transformers_clip
from evaluate.scorers._detector import Detector
from evaluate.scorers.clipscore import OPENAI, OPENAI_REVISION
from evaluate.weights import Files
from prompts.io.errors import UserError

BACKGROUND = 0x99  # grey, around an object whose colour is asked for
TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")

VARIANTS = {"geneval": "GenEval: 1 or 0, the mean of six tasks' means; needs a suite that says what is to be seen"}
VERIFIED_BY = {"geneval": "geneval af4902f, mmdet 2.28.2"}


class Colours(nn.Module):
    """Names objects' colours, by the text among ten that the object is nearest to."""

    def __init__(self, clip: TransformersClip) -> None:
        super().__init__()
        self.clip = clip

    def directions(self, name: str) -> Tensor:
        """`[10, D]`, of unit length: the mean of what each colour's three texts about a `name` point to."""
        texts = [each.format(colour=colour, name=name) for colour in _geneval.COLOURS for each in TEMPLATES]
        features = F.normalize(self.clip.text(texts)["features"], dim=-1)
        return F.normalize(features.unflatten(0, (-1, len(TEMPLATES))).mean(1), dim=-1)

    def similarities(self, image: Tensor, objects: _geneval.Objects, name: str) -> Tensor:
        """Cosines `[N, 10]` of N objects of an image `[3, H, W]`, uint8, each cut out by its box before a grey."""
        crops = []
        for each in objects:
            left, top, right, bottom = each.box
            crops.append(image.where(each.mask, BACKGROUND)[:, top:bottom, left:right])
        directions = self.directions(name)
        return F.normalize(self.clip.embed(CLIP_224(crops).to(directions)), dim=-1) @ directions.T

    def forward(self, image: Tensor, objects: _geneval.Objects, name: str) -> list[str]:
        """The colour of each object."""
        return [_geneval.COLOURS[i] for i in self.similarities(image, objects, name).argmax(1).tolist()]


class GenEval(Scorer):
    """Detector, colours and rules."""

    differentiable = False
    needs = ("tag", "include")
    macro: ClassVar[Mapping[str, str]] = {"geneval": "tag"}

    def __init__(self, protocol: str, clip: TransformersClip, *, weights_sha256: str) -> None:
        super().__init__(protocol, AsTheyAre(), weights_sha256=weights_sha256)
        self.detector, self.colours = Detector(), Colours(clip)

    def check_meta(self, meta: Meta | None) -> None:
        """Raise UserError for what no image could show: a class or a colour that nothing is ever told to be."""
        super().check_meta(meta)
        for i, each in enumerate(meta or (), 1):
            if wrong := _geneval.unknown(each):
                raise UserError(f"{self.protocol}: prompt {i}: {wrong}; write it as the suite 'geneval' does")

    def assess(self, prepared: Prepared, prompts: Sequence[str], meta: Meta) -> Assessment:
        """1 or 0. `reason`: what is wrong; `boxes`: by class what was found, [left, top, right, bottom, confidence]."""
        details = [self._assess(image, each) for image, each in zip(prepared, meta, strict=True)]
        right = torch.tensor([float(not each["reason"]) for each in details])
        return Assessment({self.protocol: right}, details)

    @torch.no_grad()
    def _assess(self, image: Tensor, meta: Mapping[str, Any]) -> dict[str, Any]:
        image = as_bytes(image).to(next(self.parameters()).device)
        found = _geneval.by_class(self.detector(image, threshold=_geneval.threshold(meta)))
        wrong = _geneval.faults(found, meta, partial(self.colours, image))
        boxes = {name: [[*each.box, each.confidence] for each in objects] for name, objects in found.items()}
        return {"reason": "\n".join(wrong), "boxes": boxes}


def load(name: str, files: Files) -> Scorer:
    """`files.path`: a local copy of the detector's file, or a folder with it and with the CLIP's four."""
    path = files.path
    detector = files.download(_mask2former.URL, _mask2former.SHA256, what="GenEval's detector, 263 MiB", local=path)
    folder = path if path and Path(path).is_dir() else None
    config, clip, *words = (
        files.fetch(OPENAI, part, OPENAI_REVISION, local=folder)
        for part in ("config.json", "model.safetensors", "vocab.json", "merges.txt")
    )
    network, tokenizer = transformers_clip(config, clip, files), clip_tokenizer(*words)
    tower = TransformersClip(name, CLIP_224, network, tokenizer=tokenizer, scale=1.0, weights_sha256="")
    scorer = GenEval(name, tower, weights_sha256=files.sha256(detector, clip))
    files.fill(scorer.detector.network, _mask2former.rename(files.read(detector)), detector)
    return scorer

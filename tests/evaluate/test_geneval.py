"""GenEval against its own script and MMDetection 2.28, whose numbers `tests/upstream/make_geneval.py` wrote."""

import dataclasses
import hashlib
import json
import re
import tomllib
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import tiny_scorers
import torch
from compared import compares
from hub import Hub
from upstream import geneval_cases, seeded

from evaluate import scorers, weights
from evaluate.images import as_bytes
from evaluate.results.csv_io import read_csv
from evaluate.results.records import Records
from evaluate.results.summary import summarise
from evaluate.runs import run
from evaluate.runs.settings import Settings
from evaluate.scorers import _detector, _geneval, _mask2former, geneval
from evaluate.scorers._detector import Detection, Detector
from prompts import suites
from prompts.io.errors import UserError

EVERY = 13  # as in make_geneval.py
UPSTREAM = Path(seeded.__file__).parent
REFERENCE = json.loads((UPSTREAM / "geneval.json").read_text(encoding="utf-8"))
SMALL = {name: shape for name, (shape, _) in REFERENCE["detector"]["layout"].items()}
IMAGES = {
    name: torch.from_numpy(np.broadcast_to(np.atleast_3d(array), (*array.shape[:2], 3)).copy()).permute(2, 0, 1)
    for name, array in seeded.pictures().items()
}


@compares("geneval")
def test_the_reference_is_of_the_pinned_originals(name: str) -> None:
    made_by = REFERENCE["made_by"]
    groups = tomllib.loads((UPSTREAM.parents[1] / "pyproject.toml").read_text())["dependency-groups"]
    pins = dict(pin.split("==") for pin in groups["upstream-geneval"] if "==" in pin)
    pins["mmcv"] = re.findall(r"mmcv==(\S+)", (UPSTREAM.parents[1] / "tox.ini").read_text())[0]
    assert made_by["packages"] == {name: pins[name] for name in made_by["packages"]}
    claim = f"geneval {made_by['geneval'][:7]}, mmdet {made_by['packages']['mmdet']}"
    assert {name: claim} == geneval.VERIFIED_BY


# ---- the suite -------------------------------------------------------------------------------------------------------


def test_the_suite_is_the_authors_file() -> None:
    from prompts.suites import geneval as shipped

    assert weights.sha256(shipped.FILE) == "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"
    assert "MIT License\n\nCopyright (c) 2023 Dhruba Ghosh" in (shipped.FILE.parent / "LICENSE").read_text()
    suite = suites.load("geneval")
    assert (len(suite.prompts), suite.per_prompt, suite.metrics) == (553, 4, ("geneval",))
    tasks = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}
    assert Counter(prompt.group["tag"] for prompt in suite.prompts) == tasks
    assert [prompt.id for prompt in suite.prompts if "exclude" in prompt.meta] == [
        prompt.id for prompt in suite.prompts if prompt.meta["tag"] == "counting"
    ]
    assert suite.prompts[-1].meta["include"][1] == {"class": "baseball glove", "count": 1, "color": "yellow"}


def test_classes_are_the_authors() -> None:
    """`evaluation/object_names.txt`, by its hash."""
    text = "".join(f"{name}\n" for name in _geneval.CLASSES)
    digest = "608f6a0e5c8ca1c7a92b818430141fe268c85b7930b50f4160f1d65893b5bacd"
    assert hashlib.sha256(text.encode()).hexdigest() == digest
    named = {clause["class"] for prompt in suites.load("geneval").prompts for clause in prompt.meta["include"]}
    assert named <= set(_geneval.CLASSES)


# ---- rules -----------------------------------------------------------------------------------------------------------


def verdict(case: geneval_cases.Case, meta: dict[str, Any]) -> str:
    detections, colours = [], {}
    for name, boxes in case.boxes.items():
        for box, colour in zip(boxes, case.colours[name], strict=True):
            if box[4] > _geneval.threshold(meta):
                corners = tuple(int(edge) for edge in box[:4])
                detections.append(
                    Detection(_geneval.CLASSES.index(name), corners, float(box[4]), torch.empty(0))  # type: ignore[arg-type]
                )
                colours[tuple(box.tolist())] = colour
    wrong = _geneval.faults(
        _geneval.by_class(detections),
        meta,
        lambda objects, name: [colours[*map(float, each.box), each.confidence] for each in objects],
    )
    return geneval_cases.line(case, not wrong, "\n".join(wrong))


def test_verdicts_and_reasons_are_the_originals() -> None:
    """On all cases; every five hundredth is kept in full, to say where they part."""
    rows = [prompt.meta for prompt in suites.load("geneval").prompts]
    lines = [verdict(case, rows[case.row]) for case in geneval_cases.cases(rows, _geneval.CLASSES)]
    assert lines[::500] == REFERENCE["rules"]["sample"]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == REFERENCE["rules"]["sha256"]
    assert len(lines) == REFERENCE["rules"]["cases"] == 10_000
    assert 0.3 < REFERENCE["rules"]["right"] / 10_000 < 0.7
    said = "\n".join(lines)
    for part in ("<", "no target", "above and left of", "found  target", "white; and", "above target"):
        assert part in said, "every rule was broken by some"


# ---- the image -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_resized_to_the_bit_as_opencv_does(name: str) -> None:
    image = IMAGES[name]
    resized = _detector.bilinear(image, *_detector.resized(*image.shape[1:]))
    digest = hashlib.sha256(resized.permute(1, 2, 0).numpy().tobytes()).hexdigest()
    assert digest == REFERENCE["detector"]["resized_sha256"][name]


def test_sides_are_filled_up_with_grey() -> None:
    image = torch.full((3, 300, 437), 255, dtype=torch.uint8)
    pixels = _detector.prepare(image)
    assert _detector.resized(300, 437) == (800, 1165)
    assert pixels.shape == (3, 800, 1184)
    mean, std = (torch.tensor(each)[:, None, None] for each in (_detector.MEAN, _detector.STD))
    undone = (pixels * std + mean).round()
    assert (undone[:, :, :1165] == 255).all() and (undone[:, :, 1165:] == 128).all()


# ---- the detector ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Detector:
    """The network that the reference was made with, with its weights under their original names."""
    tiny_scorers.shrink_detector(monkeypatch)
    detector = Detector().eval().requires_grad_(False)
    weights.load_strict(detector.network, _mask2former.rename(geneval_cases.detector_weights(SMALL)), "the reference")
    return detector


def test_both_sides_had_the_same_weights() -> None:
    tensors = {name: tensor.numpy() for name, tensor in geneval_cases.detector_weights(SMALL).items()}
    assert seeded.sha256(tensors) == REFERENCE["detector"]["weights_sha256"]


def test_the_published_network_has_the_originals_tensors() -> None:
    """Under our names those of MMDetection's own, at full size, are exactly what our network holds."""
    with torch.device("meta"):
        theirs = {name: torch.empty(full) for name, (_, full) in REFERENCE["detector"]["layout"].items()}
        network = _mask2former.network()
        weights.match(network, _mask2former.rename(theirs), "MMDetection's")
    assert sum(tensor.numel() for tensor in network.state_dict().values()) == 68_739_547
    with pytest.raises(UserError, match="is missing"):
        weights.match(network, _mask2former.rename(dict(list(theirs.items())[1:])), "less")


@pytest.mark.parametrize("name", geneval_cases.PICTURES)
def test_logits_are_mmdetections(name: str, small: Detector) -> None:
    """Within 1e-5 of their range, on images whose sides are filled up and whose windows are."""
    theirs = REFERENCE["detector"]["images"][name]
    ours = small.network(pixel_values=_detector.prepare(IMAGES[name])[None])
    masks = ours.masks_queries_logits[0]
    assert list(masks.shape) == theirs["mask_size"]
    for found, wanted in (
        (ours.class_queries_logits[0], theirs["classes"]),
        (masks[:, ::EVERY, ::EVERY], theirs["masks"]),
    ):
        expected = torch.tensor(wanted)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.max() - expected.min()))


def compare(ours: list[Detection], theirs: list[list[float]]) -> None:
    """Class and box, confidence within 1e-5, and the mask's area but for a pixel in ten thousand."""
    theirs = sorted((row for row in theirs if row[5] > 0), key=lambda row: (row[0], -row[5]))
    ours = sorted(ours, key=lambda each: (each.label, -each.confidence))
    assert len(ours) == len(theirs) > 50
    for each, (label, *box, confidence, area) in zip(ours, theirs, strict=True):
        assert (each.label, *each.box) == (label, *box)
        assert each.confidence == pytest.approx(confidence, abs=1e-5)
        assert int(each.mask.sum()) == pytest.approx(area, abs=1e-4 * each.mask.numel())


@pytest.mark.parametrize("name", geneval_cases.PICTURES)
def test_objects_are_mmdetections(name: str, small: Detector) -> None:
    compare(small(IMAGES[name], threshold=0.0), REFERENCE["detector"]["images"][name]["objects"])


@pytest.mark.parametrize("name", geneval_cases.PICTURES)
def test_boxes_and_masks_are_mmdetections(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of discs here and there, some of them empty, with which random networks do not serve."""
    tiny_scorers.shrink_detector(monkeypatch)
    image, theirs = IMAGES[name], REFERENCE["detector"]["images"][name]["discs"]
    padded = _detector.prepare(image).shape[1:]
    sizes = {"padded": padded, "inner": _detector.resized(*image.shape[1:]), "outer": image.shape[1:]}
    logits = geneval_cases.logits(padded[0] // 4, padded[1] // 4)
    found = _detector.instances(*logits, **sizes, threshold=0.0)  # type: ignore[arg-type]
    compare(found, theirs)
    assert len({each.box for each in found}) > 15 and len(found) < len(theirs)
    certain = _detector.instances(*logits, **sizes, threshold=0.3)  # type: ignore[arg-type]
    assert [each[:3] for each in certain] == [each[:3] for each in found if each.confidence > 0.3]
    assert 5 < len(certain) < len(found)
    assert not _detector.instances(*logits, **sizes, threshold=1.0)  # type: ignore[arg-type]


# ---- colours ---------------------------------------------------------------------------------------------------------


class Tower:
    """The stand-in for a CLIP, as GenEval's own script was given it."""

    def __init__(self) -> None:
        self.clip = geneval_cases.Clip()

    def text(self, prompts: list[str]) -> dict[str, torch.Tensor]:
        return {"features": self.clip.encode_text(open_clip.get_tokenizer("ViT-L-14")(prompts))}

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.clip.encode_image(pixels)


@pytest.mark.parametrize("name", geneval_cases.PICTURES)
def test_colours_are_the_originals(name: str) -> None:
    """The texts, their mean, the cut-outs and their preparation: cosines within 1e-5 of [-1, 1]."""
    colours = geneval.Colours.__new__(geneval.Colours)
    torch.nn.Module.__init__(colours)
    colours.clip = Tower()  # type: ignore[assignment]
    objects = [
        Detection(0, tuple(map(int, box[:4])), 0.5, torch.from_numpy(mask))  # type: ignore[arg-type]
        for box, mask in geneval_cases.cut_outs(IMAGES[name].permute(1, 2, 0).numpy())
    ]
    for kind in ("computer mouse", "apple"):
        theirs = REFERENCE["colours"][f"{name}/{kind}"]
        ours = colours.similarities(IMAGES[name], objects, kind)
        torch.testing.assert_close(100 * ours, torch.tensor(theirs["cosines"]), rtol=0, atol=100 * 1e-5)
        assert colours(IMAGES[name], objects, kind) == theirs["colours"]


# ---- the scorer ------------------------------------------------------------------------------------------------------


@pytest.fixture
def scorer(real_scorers: Hub) -> geneval.GenEval:
    loaded = scorers.load("geneval")
    assert isinstance(loaded, geneval.GenEval)
    return loaded


def test_bytes_and_floats_are_the_same_image(scorer: geneval.GenEval) -> None:
    images, meta = list(IMAGES.values())[:3], [prompt.meta for prompt in suites.load("geneval").prompts[:3]]
    assert not scorer.differentiable
    assert as_bytes(torch.tensor([-0.1, 0.6 / 255, 1.4 / 255, 1.1])).tolist() == [0, 1, 1, 255]
    said = [scorer.assess(each, [""] * 3, meta) for each in (images, [image / 255 for image in images])]
    assert said[0].details == said[1].details
    assert torch.equal(said[0].columns["geneval"], said[1].columns["geneval"])


def test_an_image_is_judged_by_itself(scorer: geneval.GenEval) -> None:
    images = torch.stack([IMAGES["small"], IMAGES["small"].flip(2), 255 - IMAGES["small"]])
    meta = [prompt.meta for prompt in suites.load("geneval").prompts[:3]]
    together = scorer.assess(scorer.prepare(images), [""] * 3, meta).details
    alone = [
        scorer.assess(scorer.prepare([image]), [""], [each]).details for image, each in zip(images, meta, strict=True)
    ]
    assert together == [each[0] for each in alone if each]
    assert len({json.dumps(each) for each in together or ()}) == 3
    with pytest.raises(ValueError, match="one prompt per image"):
        scorer.score(images, [""], meta[:1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_precision_is_a_choice(scorer: geneval.GenEval, dtype: torch.dtype) -> None:
    """One dog is not of two colours; in float64 it is of the same as in float32."""
    meta = [{"tag": "colors", "include": [{"class": "dog", "count": 1, "color": each}]} for each in ("red", "blue")]
    exact, other = (scorer.to(each).assess([IMAGES["small"]] * 2, [""] * 2, meta) for each in (torch.float32, dtype))
    reasons = [[each["reason"] for each in said.details if each] for said in (exact, other) if said.details]
    assert any(re.match(r"expected (red|blue) dog>=1, found 0 \1; and 1 ", each) for each in reasons[0])
    assert len(reasons[1]) == 2 and all(each.startswith("expected") for each in reasons[1] if each)
    if dtype == torch.float64:
        assert reasons[0] == reasons[1]


def test_counting_wants_to_be_surer(scorer: geneval.GenEval, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(Detector, "forward", lambda self, image, *, threshold: asked.append(threshold) or [])
    meta = [{"tag": tag, "include": [{"class": "dog", "count": 1}]} for tag in ("counting", "colors")]
    said = scorer.assess([IMAGES["grey"]] * 2, ["", ""], meta)
    assert asked == [0.9, 0.3]
    assert said.columns["geneval"].tolist() == [0, 0]
    assert said.details == [{"reason": "expected dog>=1, found 0", "boxes": {}}] * 2


def test_what_is_to_be_seen_must_be_known(scorer: geneval.GenEval) -> None:
    with pytest.raises(UserError, match="geneval needs to know 'tag' of every prompt, which texts alone do not say"):
        scorer.score(IMAGES["grey"][None], ["a photo of a dog"])


@pytest.mark.parametrize(
    ("include", "said"),
    [
        ([{"class": "mouse", "count": 1}], "prompt 2: class 'mouse' is none of horse, computer mouse, "),
        ([{"class": "dog", "count": 1, "color": "gray"}], "prompt 2: color 'gray' is none of"),
        ([{"class": "dog"}], "prompt 2: include and exclude are lists of objects with class and count"),
        ("a dog", "prompt 2: include and exclude are lists"),
    ],
)
def test_what_no_image_could_show_is_refused_before_one_is_drawn(
    scorer: geneval.GenEval, include: Any, said: str
) -> None:
    right = {"tag": "single_object", "include": [{"class": "computer mouse", "count": 1}]}
    scorer.check_meta([right, right])
    with pytest.raises(UserError, match=said):
        scorer.check_meta([right, right | {"include": include}])


def test_every_prompt_of_the_suite_can_be_judged(scorer: geneval.GenEval) -> None:
    prompts = suites.load("geneval").prompts
    scorer.check_meta([prompt.meta for prompt in prompts])
    assert len(prompts) == 553


def test_the_detector_is_fetched_by_its_hash(
    real_scorers: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path))
    file = real_scorers.folder(*tiny_scorers.MMDETECTION) / tiny_scorers.DETECTOR_FILE
    first = scorers.load("geneval")
    assert weights.sha256(tmp_path / "weights" / file.name) == weights.sha256(file)
    again = scorers.load("geneval", weights=str(file))
    assert first.weights_sha256 == again.weights_sha256 and len(str(first.weights_sha256)) == 64
    monkeypatch.setattr(_mask2former, "SHA256", "0" * 8)
    with pytest.raises(
        UserError, match=r"another file.*local copy of mask2former_swin-s\S+ with --weights METRIC=PATH"
    ):
        scorers.load("geneval")
    with pytest.raises(UserError, match=r"none\.pth: no such file; give a local copy of mask2former_swin-s"):
        scorers.load("geneval", weights=str(tmp_path / "none.pth"))


def test_a_run_is_the_mean_of_the_tasks(real_scorers: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 images, of a random detector: verdicts, reasons, and the mean of the tasks, of which one has more prompts."""
    monkeypatch.setattr(_detector, "LONG", 160)
    monkeypatch.setattr(_detector, "SHORT", 96)
    whole = suites.load("geneval")
    tasks = [list(prompts) for _, prompts in groupby(whole.prompts, lambda prompt: prompt.group["tag"])]
    chosen = [prompt for i, prompts in enumerate(tasks) for prompt in prompts[: 6 if i == 0 else 2]]
    suite = dataclasses.replace(whole, prompts=tuple(chosen))
    settings = Settings(
        suite=suite,
        model="shapes/aligned",
        metrics=suite.metrics,
        seeds=tuple(range(suite.per_prompt)),
        output=tmp_path,
    )
    path = run.run(settings, show=False)
    assert path
    records = Records.load(path)
    assert len(records.frame) == 64 and records.missing is None
    rows = summarise(records, by="tag")
    means = {row.group: row.mean for row in rows if row.group}
    assert list(means) == ["color_attr", "colors", "counting", "position", "single_object", "two_object"]
    (row,) = read_csv(tmp_path / "geneval.csv")
    assert float(row["geneval"]) == rows[0].mean == pytest.approx(np.mean(list(means.values())))
    assert rows[0].mean != pytest.approx(records.scores("geneval").mean())
    details = [json.loads(each) for each in records.frame["details.geneval"]]
    assert [not each["reason"] for each in details] == list(records.scores("geneval") == 1)
    assert {"expected bench>=1, found 0", ""} <= {each["reason"] for each in details}
    left, top, right, bottom, confidence = next(boxes[0] for each in details for boxes in each["boxes"].values())
    assert 0 <= left < right <= 32 and 0 <= top < bottom <= 32 and 0.3 < confidence <= 1

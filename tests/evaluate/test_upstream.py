"""Our scorers against what they say they are verified by: the originals' own code, or published formulas written out.

`tests/upstream/make.py` made the numbers in `tests/upstream/reference.json`; it runs the originals
in an environment of their own.
"""

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from compared import compared, compares
from hub import Hub
from PIL import Image
from tiny_scorers import REFERENCE, tensors
from torchvision import transforms
from typer.testing import CliRunner
from upstream import seeded

from evaluate import cli, scorers, weights
from evaluate.images import read_image
from evaluate.scorers import aesthetic, clipscore, imagereward, pickscore
from prompts.shapes import render, sample_captions

UPSTREAM = Path(seeded.__file__).parent
PREFIXES = list(REFERENCE["made_by"]["pictures_sha256"])
#: By prefix, by scorer, by image: one number per prompt.
SCORES = {
    prefix: REFERENCE["hpsv2"]["scores"][prefix] | REFERENCE["imagereward"]["scores"][prefix] for prefix in PREFIXES
}
ORIGINALS = sorted({name for tables in SCORES.values() for name in tables})
#: Largest difference from the original, on its own scale. Over twelve prefixes it was 3.3e-7 and 1.05e-5. Both sides
#: round to float32, on the way in another order: from ours in float64, ImageReward's original was up to 9.5e-6 away,
#: and ours in float32 up to 1.3e-5.
WITHIN = {"hpsv2": 1e-6, "imagereward": 2e-5}
PROMPTS = seeded.prompts()


def part(name: str) -> str:
    """The original's name in REFERENCE."""
    return "hpsv2" if name.startswith("hpsv2") else "imagereward"


def write_images(folder: Path, prefix: str = "") -> dict[str, Path]:
    for name, array in seeded.pictures(prefix).items():
        Image.fromarray(array).save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in seeded.SIZES}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_images(tmp_path_factory.mktemp("images"))


def test_both_sides_saw_the_same(real_scorers: Hub) -> None:
    """The committed numbers were made by the committed files, from the very images and weights used here."""
    made_by = REFERENCE["made_by"]
    assert made_by["make_sha256"] == weights.sha256(UPSTREAM / "make.py")
    assert made_by["seeded_sha256"] == weights.sha256(UPSTREAM / "seeded.py")
    for prefix, digest in made_by["pictures_sha256"].items():
        assert seeded.sha256(seeded.pictures(prefix)) == digest
    for original in ("hpsv2", "imagereward"):
        for seed, digest in REFERENCE[original]["weights_sha256"].items():
            arrays = seeded.weights(seed, REFERENCE[original]["layout"])
            assert seeded.sha256(arrays) == digest


def test_pins_are_those_the_numbers_were_made_with() -> None:
    import tomllib

    groups = tomllib.loads((UPSTREAM.parents[1] / "pyproject.toml").read_text())["dependency-groups"]
    pins = dict(pin.split("==") for pin in groups["upstream"] if "==" in pin)
    packages = REFERENCE["made_by"]["packages"]
    assert {name: packages[name] for name in packages.keys() & pins.keys()} == {
        name: pins[name] for name in packages.keys() & pins.keys()
    }
    assert {"hpsv2", "image-reward", "torch", "torchvision", "transformers"} <= packages.keys() & pins.keys()


@pytest.mark.parametrize("prefix", PREFIXES)
@compares(*ORIGINALS)
def test_scores_are_the_originals(name: str, prefix: str, real_scorers: Hub, tmp_path: Path) -> None:
    """WITHIN the original's number, on its own scale, on every image and prompt; in batches, which it knows not."""
    seed, scale = prefix + name.partition("/")[0], 100 if part(name) == "hpsv2" else 1
    torch.save(tensors(seed, REFERENCE[part(name)]["layout"]), tmp_path / "weights.pt")
    scorer = scorers.load(name, weights=str(tmp_path / "weights.pt"))
    files = write_images(tmp_path, prefix)
    images = [read_image(path) for path in files.values()]
    for i, prompt in enumerate(seeded.prompts(prefix)):
        ours = scorer.score(images, [prompt] * len(images)) / scale
        theirs = torch.tensor([SCORES[prefix][name][image][i] for image in files]) / scale
        torch.testing.assert_close(ours, theirs, atol=WITHIN[part(name)], rtol=0)


def test_the_bound_holds_for_more_than_one_draw() -> None:
    """Of weights, images and prompts, none of which two prefixes share."""
    assert len(PREFIXES) >= 2
    for original in ("hpsv2", "imagereward"):
        digests = REFERENCE[original]["weights_sha256"].values()
        assert len(set(digests)) == len(digests)
    assert len(set(REFERENCE["made_by"]["pictures_sha256"].values())) == len(PREFIXES)
    assert not set(seeded.prompts(PREFIXES[0])) & set(seeded.prompts(PREFIXES[1])) - {""}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_originals_tell_protocols_and_prompts_apart(prefix: str) -> None:
    """What is compared above varies by far more than what is tolerated, so the comparison can fail."""
    tables = {name: np.array([*rows.values()]) for name, rows in SCORES[prefix].items()}
    for name, table in tables.items():
        scale = 100 if part(name) == "hpsv2" else 1
        assert table.std(0).min() > 5e-3 * scale, "images"
        assert table.std(1).min() > 5e-3 * scale, "prompts"
    for release in ("hpsv2.0", "hpsv2.1"):
        gap = dict(zip(seeded.SIZES, np.abs(tables[f"{release}/aa"] - tables[f"{release}/noaa"]).max(1), strict=True))
        assert gap.pop("square") == 0  # 224 x 224, not resized at all
        assert min(gap.values()) > 0.1


def test_tokens_are_the_originals(real_scorers: Hub) -> None:
    reward = scorers.load("imagereward")
    for prefix in PREFIXES:
        prompts = seeded.prompts(prefix)
        assert open_clip.tokenize(prompts).tolist() == REFERENCE["hpsv2"]["tokens"][prefix]
        assert reward.encode(prompts)["ids"].tolist() == REFERENCE["imagereward"]["tokens"][prefix]


def layout(module: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in module.state_dict().items()}


def test_hpsv2_at_full_size_has_the_originals_tensors() -> None:
    with torch.device("meta"):
        full = open_clip.CLIP(**open_clip.get_model_config("ViT-H-14"))
    assert seeded.census(layout(full)) == REFERENCE["hpsv2"]["published"]


def test_imagereward_at_full_size_has_the_originals_tensors() -> None:
    """Under our names the original's tensors, less those it does not use, are exactly what our network holds."""
    with torch.device("meta"):
        ours = imagereward.ImageReward("imagereward", None, weights_sha256="")
        theirs: dict[str, int] = {}
        for line, count in REFERENCE["imagereward"]["published"].items():
            name, shape = line.split(" ", 1)
            for renamed in imagereward.rename({name.replace("*", "0"): torch.empty(json.loads(shape))}):
                theirs |= dict.fromkeys(seeded.census({renamed: json.loads(shape)}), count)
    assert theirs == seeded.census(layout(ours))
    assert sum(tensor.numel() for tensor in ours.state_dict().values()) > 440_000_000


# Where no original package exists, the published formula, written out on the libraries its authors used.


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def compare(name: str, files: dict[str, Path], expected: Any, *, atol: float = 1e-5) -> None:
    """`expected(image, prompt)` against ours, on every image and prompt."""
    scorer = scorers.load(name)
    images = [read_image(path) for path in files.values()]
    for prompt in PROMPTS:
        ours = scorer.score(images, [prompt] * len(images))
        with torch.no_grad():
            theirs = torch.stack(
                [expected(Image.open(path).convert("RGB"), prompt).reshape(()) for path in files.values()]
            )
        assert theirs.std() > 100 * atol
        torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


def clip_parts(hub: Hub, weights_at: tuple[str, str], words_at: tuple[str, str]) -> tuple[Any, Any, Any]:
    """Model, tokenizer and image processor by transformers' own loading."""
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return (
        CLIPModel.from_pretrained(hub.folder(*weights_at)).eval(),
        CLIPTokenizer.from_pretrained(hub.folder(*words_at)),
        CLIPImageProcessorPil(),
    )


@compares("pickscore", "pickscore/scaled")
def test_pickscore_is_its_model_card(name: str, real_scorers: Hub, files: dict[str, Path]) -> None:
    """Kirstain et al. 2023, eq. 1, and the model card's code.

    Embeddings of unit length, their product, exp(logit_scale).
    """
    model, tokenizer, processor = clip_parts(
        real_scorers, (pickscore.REPOSITORY, pickscore.REVISION), (pickscore.WORDS, pickscore.WORDS_REVISION)
    )

    def formula(image: Image.Image, prompt: str) -> torch.Tensor:
        words = tokenizer(prompt, truncation=True, max_length=77, return_tensors="pt")
        pixels = processor(images=image, return_tensors="pt").pixel_values
        text, seen = model.get_text_features(**words).pooler_output, model.get_image_features(pixels).pooler_output
        scale = model.logit_scale.exp() if name == "pickscore/scaled" else 1.0
        return scale * (unit(text) @ unit(seen).T)

    compare(name, files, formula, atol=1e-5 if name == "pickscore" else 1e-3)


@compares("clipscore/vit-l-14-torchmetrics")
def test_clipscore_is_torchmetrics(name: str, real_scorers: Hub, files: dict[str, Path]) -> None:
    """torchmetrics.functional.multimodal.clip_score itself, given the same model."""
    from torchmetrics.functional.multimodal import clip_score

    where = (clipscore.OPENAI, clipscore.OPENAI_REVISION)
    model, tokenizer, processor = clip_parts(real_scorers, where, where)

    class Unwrapped:
        """transformers 5 returns objects where torchmetrics expects tensors; its words
        are cut here, not warned about.
        """

        config = model.config

        def to(self, device: Any) -> "Unwrapped":
            return self

        def get_image_features(self, pixels: torch.Tensor) -> torch.Tensor:
            return model.get_image_features(pixels).pooler_output

        def get_text_features(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return model.get_text_features(ids, mask).pooler_output

    def process(text: Any = None, images: Any = None, **options: Any) -> Any:
        if images is not None:
            return processor(images=[image.numpy() for image in images], return_tensors="pt")
        return tokenizer(text, truncation=True, max_length=77, **options)

    def formula(image: Image.Image, prompt: str) -> torch.Tensor:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        # The sign: torchmetrics takes the maximum with 0, of the mean over what it is given, here one.
        score: torch.Tensor = clip_score(pixels, prompt, model_name_or_path=lambda: (Unwrapped(), process))
        return score

    scorer = scorers.load(name)
    positive = 0
    for path in files.values():
        for prompt in PROMPTS:
            ours = scorer.score(read_image(path)[None], [prompt])[0].clamp_min(0)
            theirs = formula(Image.open(path).convert("RGB"), prompt)
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)
            positive += int(theirs > 1)
    assert positive >= 10


@compares("clipscore/vit-g-14-dmd2")
def test_clipscore_is_dmd2s(name: str, real_scorers: Hub, files: dict[str, Path]) -> None:
    """DMD2's steps: centre square, Lanczos 256, open_clip's own transform, the prefix put
    in among the tokens, the cosine.
    """
    path = real_scorers.folder(clipscore.LAION, clipscore.LAION_REVISION) / "open_clip_pytorch_model.bin"
    clip, _, transform = open_clip.create_model_and_transforms("ViT-g-14", pretrained=str(path))
    clip.eval()

    def formula(image: Image.Image, prompt: str) -> torch.Tensor:
        square = transforms.functional.center_crop(image, min(image.size)).resize((256, 256), Image.Resampling.LANCZOS)
        words = open_clip.tokenize([prompt])
        prefix = open_clip.tokenize(["A photo depicts "])[:, 1:4]
        joined = torch.cat([words[:, :1], prefix, words[:, 1:]], 1)[:, :77]
        joined[:, 76][joined[:, 76] > 0] = 49407
        return torch.cosine_similarity(clip.encode_image(transform(square)[None]), clip.encode_text(joined))

    compare(name, files, formula)


@compares("aesthetic/v2")
def test_aesthetic_is_its_authors_formula(name: str, real_scorers: Hub, files: dict[str, Path]) -> None:
    """improved-aesthetic-predictor: OpenAI's transform, image embedding over its L2
    norm in numpy, five linear layers.
    """
    where = (aesthetic.REPOSITORY, aesthetic.REVISION)
    model, _, _ = clip_parts(real_scorers, where, where)
    head = torch.load(real_scorers.folder(aesthetic.HEAD, aesthetic.HEAD_REVISION) / aesthetic.HEAD_FILE)
    transform = transforms.Compose(
        [
            transforms.Resize(224, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ]
    )

    def formula(image: Image.Image, prompt: str) -> torch.Tensor:
        embedding = model.get_image_features(transform(image)[None]).pooler_output.numpy()
        x = torch.from_numpy(embedding / np.linalg.norm(embedding, axis=-1, keepdims=True))
        for layer in (0, 2, 4, 6, 7):
            x = x @ head[f"layers.{layer}.weight"].T + head[f"layers.{layer}.bias"]
        return x

    compare(name, files, formula)


@compares("shapes/clip", "shapes/preference", "shapes/preference-weak")
def test_the_cosine_is_transformers_own(name: str, clip_folder: Path) -> None:
    scorer: Any = scorers.load(name, weights=str(clip_folder))
    captions = sample_captions(6, split="test", seed=0)
    images = torch.from_numpy(render(captions, seed=0))
    tokens = scorer.tokenizer(captions, padding="max_length", max_length=24, return_tensors="pt").input_ids
    with torch.no_grad():
        out = scorer.clip(input_ids=tokens, pixel_values=images * 2 - 1)
    expected = 100 * (out.image_embeds * out.text_embeds).sum(1)
    torch.testing.assert_close(scorer.score(images, captions), expected, atol=1e-4, rtol=1e-4)


@compares("shapes/oracle")
def test_the_oracle_says_what_the_renderer_drew(name: str) -> None:
    captions = sample_captions(6, split="test", seed=0)
    images = torch.from_numpy(render(captions, seed=0))
    assert scorers.load(name).score(images, captions).tolist() == [1] * 6
    assert scorers.load(name).score(images, captions[1:] + captions[:1]).tolist() == [0] * 6


@compares("shapes/facts", "shapes/rule")
def test_the_rule_is_what_the_renderer_drew_and_how_vividly(name: str) -> None:
    captions = sample_captions(6, split="test", seed=0)
    images = render(captions, seed=0)
    spread = images.max(1) - images.min(1)
    vivid = [each[each > 0.2].mean() if (each > 0.2).any() else 0 for each in spread]
    scorer = scorers.load(name)
    expected = torch.tensor([6 + (v / 2 if name == "shapes/rule" else 0) for v in vivid])
    torch.testing.assert_close(scorer.score(torch.from_numpy(images), captions), expected.float())
    assert (scorer.score(torch.from_numpy(images), captions[1:] + captions[:1]) < expected).all()


def test_seeded_weights_depend_on_the_name_alone() -> None:
    both = tensors("x", {"a.weight": (3, 2), "b.weight": (3, 2)})
    assert torch.equal(tensors("x", {"b.weight": (3, 2)})["b.weight"], both["b.weight"])
    assert not torch.equal(both["a.weight"], both["b.weight"])
    assert not torch.equal(tensors("y", {"a.weight": (3, 2)})["a.weight"], both["a.weight"])


def test_every_claim_is_compared() -> None:
    """A scorer says in its file what it was verified by; here it is compared with that,
    and a new one may say nothing.
    """
    claims, packages = scorers.verified(), REFERENCE["made_by"]["packages"]
    compares_these = {*ORIGINALS, *compared()}
    assert not claims.keys() - compares_these, "these say they are verified, and nothing here compares them"
    assert not compares_these - claims.keys(), "these are compared, and their files do not say so"
    for name in ORIGINALS:
        package = {"hpsv2": "hpsv2", "imagereward": "image-reward"}[part(name)]
        assert claims[name] == f"{package} {packages[package]}"


# A new scorer


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Adds the documents' example to the scorers, as `example` beside one that may be there,
    with lines of one's own behind it.
    """
    monkeypatch.setattr(scorers, "__path__", [*scorers.__path__, str(tmp_path)])
    page = (UPSTREAM.parents[1] / "docs" / "add-a-reward.md").read_text(encoding="utf-8")
    block = re.search(r"^```python evaluate/scorers/colourfulness\.py\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert block

    def write(lines: str) -> None:
        text = block[1].replace('"colourfulness": ', '"example": ')
        (tmp_path / "example.py").write_text(text + lines, encoding="utf-8")
        importlib.invalidate_caches()

    yield write
    del sys.modules["evaluate.scorers.example"], scorers.example  # type: ignore[attr-defined]


def listed(name: str) -> str:
    """What `evaluate metrics` says of a scorer."""
    shown = CliRunner().invoke(cli.app, ["metrics"], env={"COLUMNS": "300"})
    assert shown.exit_code == 0, shown.output
    (line,) = (line for line in shown.output.splitlines() if f" {name} " in line)
    return line


def test_a_new_scorer_that_claims_nothing_is_told_as_not_verified(add: Callable[[str], None]) -> None:
    add("")
    assert "example" in scorers.variants()
    assert "not verified" in listed("example")
    assert "hpsv2 1.2.0" in listed("hpsv2.1/aa")
    test_every_claim_is_compared()


def test_a_new_scorer_that_claims_what_nothing_compares_is_found_out(add: Callable[[str], None]) -> None:
    add('VERIFIED_BY = {"example": "formula"}\n')
    assert "formula" in listed("example")
    with pytest.raises(AssertionError, match="nothing here compares them"):
        test_every_claim_is_compared()

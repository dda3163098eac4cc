"""VQAScore, against t2v-metrics' own code on small networks of seeded weights; how it loads, what it refuses.

`tests/upstream/make_vqascore.py` made the numbers in `tests/upstream/vqascore.json`.
"""

import hashlib
import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compared import compares
from hub import Hub
from PIL import Image
from tiny_scorers import UPSTREAM, VQASCORE
from torch import nn
from upstream import seeded, vqascore_parts

from align.rewards.differentiable import Reward, Rewards
from evaluate import scorers, weights
from evaluate.preprocess import CLIP_MEAN, CLIP_STD
from evaluate.scorers import vqascore
from prompts.io.errors import UserError

NAMES = XL, XXL = ("vqascore/clip-flant5-xl", "vqascore/clip-flant5-xxl")
PROMPTS = list(vqascore_parts.PROMPTS)


def chw(array: np.ndarray) -> torch.Tensor:
    colours = array if array.ndim == 3 else np.repeat(array[:, :, None], 3, 2)
    return torch.from_numpy(colours).permute(2, 0, 1)


IMAGES = {name: chw(array) for name, array in vqascore_parts.images().items()}


def of(name: str, kind: str) -> Any:
    """What the original made: of a variant, one kind of thing."""
    return VQASCORE[f"{name.partition('/')[2]}/{kind}"]


# ---- the original ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_both_sides_saw_the_same(name: str) -> None:
    for file, digest in VQASCORE["made_by/sha256"].items():
        assert weights.sha256(UPSTREAM / file) == digest
    tensors = vqascore_parts.weights(name.partition("/")[2], of(name, "layout"))
    assert seeded.sha256({key: each.float().numpy() for key, each in tensors.items()}) == of(name, "weights_sha256")
    groups = tomllib.loads((UPSTREAM.parents[1] / "pyproject.toml").read_text())["dependency-groups"]
    pins = dict(pin.split("==") for pin in groups["upstream-vqascore"] if "==" in pin)
    packages = VQASCORE["made_by/packages"]
    assert pins.keys() & packages.keys() == {"torch", "transformers"}
    assert all(packages[package].partition("+")[0] == pins[package] for package in pins.keys() & packages.keys())
    assert scorers.verified()[name] == f"t2v-metrics {packages['t2v-metrics']}"


@compares("vqascore/clip-flant5-xl", "vqascore/clip-flant5-xxl")
def test_scores_are_the_originals(name: str, real_scorers: Hub) -> None:
    """Within 1e-5 of the range of its scores; prompts of all lengths together."""
    scorer: Any = scorers.load(name)
    theirs = torch.tensor(list(of(name, "scores").values()))
    ours = torch.stack([scorer.score([IMAGES[image]] * len(PROMPTS), PROMPTS) for image in of(name, "scores")])
    spread = (theirs.max() - theirs.min()).item()
    assert min(theirs.std(0).min(), theirs.std(1).min()) > 0.02 * spread, "both image and prompt matter"
    torch.testing.assert_close(ours, theirs, atol=1e-5 * spread, rtol=0)
    # Over 2,191 keys attention rounds by up to 6e-5 of a score in float32, as the kernel and the processor have it.
    cut = scorer.double().score([IMAGES["wide"]], [vqascore_parts.TOO_LONG])
    torch.testing.assert_close(cut, torch.tensor(of(name, "too_long")), atol=1e-5 * spread, rtol=0)


def test_tokens_are_the_originals(real_scorers: Hub) -> None:
    scorer: Any = scorers.load(XL)
    rows = [[id for id in row if id != vqascore.PAD] for row in scorer.encode(PROMPTS)["ids"].tolist()]
    assert [[*scorer.before, -200, *row] for row in rows] == of(XL, "tokens")
    assert scorer.answer == of(XL, "answer") == [vqascore_parts.PIECES.index("▁Yes"), 1]
    assert [row.count(1) for row in rows] == [1] * len(PROMPTS) and scorer.before[-1] == 1
    assert of(XL, "too_long_tokens") > vqascore.LENGTH
    (row,) = scorer.encode([vqascore_parts.TOO_LONG])["ids"]
    assert len(scorer.before) + 1 + len(row) == vqascore.LENGTH and vqascore.PAD not in row


@pytest.mark.parametrize("image", IMAGES)
def test_bytes_are_the_originals(image: str) -> None:
    """Squared with the mean colour, resized: before they are scaled, the very bytes."""
    (pixels,) = vqascore.PREPARE([IMAGES[image]])
    mean, std = (torch.tensor(each)[:, None, None] for each in (CLIP_MEAN, CLIP_STD))
    made = ((pixels * std + mean) * 255).round().byte().numpy()
    assert hashlib.sha256(made.tobytes()).hexdigest() == of(XL, "images")[image]


# ---- one's own promises ----------------------------------------------------------------------------------------------


def test_a_pair_scores_alike_alone_and_among_others(real_scorers: Hub) -> None:
    scorer = scorers.load(XL)
    images, prompts = list(IMAGES.values()), [*PROMPTS, "a cat", "the moon on snow"]
    together = scorer.score(images, prompts)
    alone = torch.cat([scorer.score([image], [prompt]) for image, prompt in zip(images, prompts, strict=True)])
    torch.testing.assert_close(together, alone, atol=1e-8, rtol=1e-5)


@pytest.mark.parametrize("size", [(40, 91), (91, 40), (50, 50)])
def test_the_frame_is_pillows_on_bytes_and_floats(size: tuple[int, int]) -> None:
    (step,) = vqascore.PREPARE.resize
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *size), dtype=np.uint8))
    edge = max(size)
    expected = Image.new("RGB", (edge, edge), tuple(int(255 * each) for each in CLIP_MEAN))
    expected.paste(Image.fromarray(image.permute(1, 2, 0).numpy()), ((edge - size[1]) // 2, (edge - size[0]) // 2))
    assert torch.equal(step.frame(image[None])[0], chw(np.array(expected)))
    torch.testing.assert_close(step.frame(image[None] / 255)[0], chw(np.array(expected)) / 255)


@pytest.mark.parametrize("name", ["wide", "tall"])
def test_the_gradient_reaches_every_pixel_of_a_framed_image(name: str, real_scorers: Hub) -> None:
    """In float64, along a random direction, against a central difference."""
    scorer = scorers.load(XL).double()
    image = (0.3 + 0.4 * IMAGES[name][None, :, ::4, ::4].double() / 255).requires_grad_()
    direction = torch.randn(image.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def exact(x: torch.Tensor) -> torch.Tensor:
        return scorer(scorer.prepare(x), scorer.text(PROMPTS[1:2])).sum().log()

    (gradient,) = torch.autograd.grad(exact(image), image)
    assert gradient.abs().sum(1).gt(0).all()
    step = 1e-6
    with torch.no_grad():
        difference = (exact(image + step * direction) - exact(image - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-6, atol=1e-9)


def test_it_is_a_reward(real_scorers: Hub) -> None:
    rewards = Rewards([Reward(scorer=XL, scale=3.0)], decoder=nn.Identity(), device="cpu")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    total, each = rewards.of(images, PROMPTS[:2])
    torch.testing.assert_close(total.detach(), 3 * each[XL])
    total.sum().backward()
    assert images.grad is not None and images.grad.flatten(1).norm(dim=1).gt(0).all()


def test_half_precision_takes_probabilities_in_float32(real_scorers: Hub) -> None:
    scorer = scorers.load(XL, dtype=torch.bfloat16)
    pixels, text = scorer.prepare([IMAGES["wide"]]), scorer.text(PROMPTS[:1])
    assert scorer(pixels.bfloat16(), text).dtype == torch.float32


# ---- loading ---------------------------------------------------------------------------------------------------------


def folder(hub: Hub, name: str, path: Path) -> Path:
    """A local copy of all that a variant reads."""
    model = name.partition("/")[2]
    shutil.copytree(hub.folder(*vqascore.REPOSITORIES[model]), path)
    shutil.copy(hub.folder(*vqascore.WORDS[model]) / "tokenizer.json", path)
    return path


def test_the_output_layer_is_not_the_table_of_embeddings(real_scorers: Hub) -> None:
    """transformers 5 would make it so, whatever the config says."""
    config = real_scorers.folder(*vqascore.REPOSITORIES["clip-flant5-xl"]) / "config.json"
    made = vqascore.make_language(config)
    assert made.lm_head.weight is not made.shared.weight and made.encoder.embed_tokens is made.shared
    language: Any = scorers.load(XL).language
    tensors = vqascore_parts.weights("clip-flant5-xl", of(XL, "layout"))
    assert torch.equal(language.lm_head.weight, tensors["lm_head.weight"].float())
    assert torch.equal(language.shared.weight, tensors["shared.weight"].float())
    assert language.encoder.embed_tokens is language.decoder.embed_tokens is language.shared
    assert not language.config.scale_decoder_outputs


@pytest.mark.parametrize("dropped", [[], ["embed_tokens.weight"], [*vqascore.SHARED, "embed_tokens.weight"]])
def test_names_of_the_shared_table_may_be_left_out(real_scorers: Hub, tmp_path: Path, dropped: list[str]) -> None:
    """As a file that says what is shared once would leave them out; position ids, as older ones have them, are none."""
    local = folder(real_scorers, XL, tmp_path / "xl")
    tensors = weights.read(local / "pytorch_model.bin")
    old = {"vision_tower.vision_tower.vision_model.embeddings.position_ids": torch.arange(145)[None]}
    torch.save({key: each for key, each in tensors.items() if key not in dropped} | old, local / "pytorch_model.bin")
    found, expected = (scorers.load(XL, weights=path).score([IMAGES["odd"]], ["a cat"]) for path in (str(local), None))
    assert torch.equal(found, expected)


def test_the_network_takes_no_memory_before_its_weights(real_scorers: Hub, tmp_path: Path) -> None:
    """Eleven billion numbers lie in memory once, as they were published."""
    files = weights.Files(str(folder(real_scorers, XXL, tmp_path / "xxl")))
    seen: list[bool] = []
    build = files.build

    def watched(make: Any) -> Any:
        made = build(make)
        seen.append(all(parameter.is_meta for parameter in made.parameters()))
        return made

    files.build = watched  # type: ignore[method-assign]
    scorer = vqascore.load(XXL, files)
    assert seen == [True]
    assert {parameter.dtype for parameter in scorer.parameters()} == {torch.bfloat16}
    assert not any(each.is_meta for each in (*scorer.parameters(), *scorer.buffers()))


def test_the_hash_is_of_all_files_of_weights(real_scorers: Hub, tmp_path: Path) -> None:
    whole = scorers.load(XXL).weights_sha256
    local = folder(real_scorers, XXL, tmp_path / "xxl")
    assert scorers.load(XXL, weights=str(local)).weights_sha256 == whole
    second = local / "pytorch_model-00002-of-00002.bin"
    tensors = weights.read(second)
    torch.save({key: each + 1 for key, each in tensors.items()}, second)
    assert scorers.load(XXL, weights=str(local)).weights_sha256 != whole


def test_a_missing_part_is_named(real_scorers: Hub, tmp_path: Path) -> None:
    local = folder(real_scorers, XXL, tmp_path / "xxl")
    (local / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(UserError, match=r"pytorch_model-00002-of-00002\.bin: no such file"):
        scorers.load(XXL, weights=str(local))


def test_a_part_with_a_key_too_few_is_refused(real_scorers: Hub, tmp_path: Path) -> None:
    local = folder(real_scorers, XXL, tmp_path / "xxl")
    second = local / "pytorch_model-00002-of-00002.bin"
    tensors = weights.read(second)
    torch.save({key: each for key, each in tensors.items() if "layers.1.mlp" not in key}, second)
    with pytest.raises(UserError, match=r"zhiqiulin/clip-flant5-xxl: key 'vision\.encoder\.layers\.1\..* is missing"):
        scorers.load(XXL, weights=str(local))


def test_a_repository_that_has_moved_is_refused(real_scorers: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vqascore.REPOSITORIES, "clip-flant5-xl", ("zhiqiulin/clip-flant5-xl", "0" * 40))
    with pytest.raises(UserError, match=r"zhiqiulin/clip-flant5-xl: config\.json cannot be fetched .*no revision 0000"):
        scorers.load(XL)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", '{"d_model": "wide"}'),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", ""),
        ("pytorch_model.bin.index.json", "{"),
        ("pytorch_model.bin.index.json", "[]"),
        ("pytorch_model.bin.index.json", '{"weight_map": ["a"]}'),
        ("pytorch_model.bin.index.json", json.dumps({"weight_map": {"shared.weight": "../tokenizer.json"}})),
    ],
)
def test_a_damaged_file_is_named(real_scorers: Hub, tmp_path: Path, file: str, content: str) -> None:
    local = folder(real_scorers, XXL, tmp_path / "xxl")
    (local / file).write_text(content)
    with pytest.raises(UserError, match=file) as caught:
        scorers.load(XXL, weights=str(local))
    assert "\n" not in str(caught.value) and str(caught.value).endswith("fetch it again")

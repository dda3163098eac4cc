"""Distribution metrics against their originals, features that are shared, and references that are files."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub import Hub
from PIL import Image
from torch import Tensor
from upstream import make_distribution as upstream

from evaluate import distribution
from evaluate.distribution import cmmd, diversity, fid, frechet, kid, prdc, reference, vendi
from evaluate.distribution.frechet import FrechetMetric, Moments
from evaluate.distribution.jackknife import MANY_GROUPS, group_of, jackknife
from evaluate.distribution.samples import Sample, SampleMetric, Statistic
from evaluate.features import Batch, Extractor, clip_336, dinov2, inception, lpips, shapes_clip, shared
from prompts.io.errors import UserError
from prompts.shapes import render, sample_captions

ORIGINAL = json.loads((Path(__file__).parents[1] / "upstream" / "distribution.json").read_text(encoding="utf-8"))


def samples(sizes: tuple[int, int], *, unit: bool = False) -> tuple[Sample, Sample]:
    """Features of both sides, in no group."""
    sides = [
        torch.from_numpy(upstream.make_features(side, n)).double()
        for side, n in zip(("generated", "real"), sizes, strict=True)
    ]
    sides = [torch.nn.functional.normalize(side, dim=1) if unit else side for side in sides]
    a, b = (Sample(side, torch.full((len(side),), -1)) for side in sides)
    return a, b


# ---- against the originals -------------------------------------------------------------------------------------------


def test_kid_is_torch_fidelitys_and_clean_fids() -> None:
    assert kid.kid(*samples(upstream.KID))(None) == pytest.approx(ORIGINAL["kid"]["torch-fidelity"], rel=1e-9)
    small = kid.kid(*samples(upstream.SMALL_KID))(None)
    assert small == pytest.approx(ORIGINAL["kid"]["clean-fid, 60 images"], rel=1e-9)


@pytest.mark.parametrize("k", [3, 5])
def test_neighbours_are_prdcs(k: int) -> None:
    sides = samples(upstream.PRDC)
    found = {name: statistic(*sides, k=k)(None) for name, (_, statistic, _, _) in prdc.STATISTICS.items()}
    assert found == pytest.approx(ORIGINAL["neighbours"]["prdc"][f"k = {k}"], rel=1e-12)
    if k == 3:  # and torch-fidelity's, whose means are of float32
        theirs = ORIGINAL["neighbours"]["torch-fidelity"]
        assert {name: found[name] for name in theirs} == pytest.approx(theirs, abs=1e-7)


@pytest.mark.parametrize("n", upstream.VENDI)
def test_the_vendi_score_is_the_packages(n: int) -> None:
    found = vendi.vendi(samples((n, 2))[0].features)
    assert found == pytest.approx(ORIGINAL["vendi"][f"{n} images"], rel=1e-9)
    assert vendi.vendi(torch.eye(4)) == pytest.approx(4), "wholly unlike"
    assert vendi.vendi(torch.ones(4, 3)) == pytest.approx(1), "all alike"


def test_cmmd_is_the_originals_arithmetic() -> None:
    assert cmmd.cmmd(*samples(upstream.CMMD, unit=True))(None) == pytest.approx(ORIGINAL["cmmd"], rel=1e-9)


def images() -> list[Tensor]:
    return [torch.from_numpy(image).permute(2, 0, 1) for image in upstream.make_images()]


def test_lpips_is_the_packages(published_features: Hub, tiny_networks: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diversity, "SIZE", 512)
    metric = distribution.load("diversity/lpips")
    prompts = ["a", "b", "a", "b"]
    metric.update(images(), prompts)
    expected = (ORIGINAL["lpips"]["0-2"] + ORIGINAL["lpips"]["1-3"]) / 2
    assert metric.compute().value == pytest.approx(expected, abs=1e-5)
    network, digest = lpips.load_network("cpu", None)
    assert digest == metric.weights_sha256
    three = network(diversity.at_512(images()[:3]).float() / 255).item()
    assert three == pytest.approx(np.mean([ORIGINAL["lpips"][pair] for pair in ("0-1", "0-2", "1-2")]), abs=1e-5)


def test_dinov2_is_facebookresearchs(tiny_networks: Hub) -> None:
    extractor = dinov2.extractor("cpu", None)
    expected = torch.tensor(ORIGINAL["dinov2"])
    torch.testing.assert_close(extractor(images()), expected, rtol=1e-5, atol=1e-5)
    assert extractor.width == expected.shape[1]
    floats = [image.float() / 255 for image in images()]
    torch.testing.assert_close(extractor(floats), expected, rtol=1e-5, atol=1e-5)


def test_positions_are_not_transformers_own(tiny_networks: Hub) -> None:
    """What makes the difference to the stock call, and how much."""
    table = torch.from_numpy(upstream.seeded("dinov2", upstream.shapes_of_dinov2())[dinov2.TABLE])
    found = dinov2.positions(table, 16)
    grid = table[:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    stock = torch.nn.functional.interpolate(grid, size=(16, 16), mode="bicubic").permute(0, 2, 3, 1).flatten(1, 2)
    assert found.shape == (1, 257, 32)
    assert torch.equal(found[:, 0], table[:, 0])
    assert (found[:, 1:] - stock).abs().max() > 0.01 * table.std()
    assert torch.equal(dinov2.positions(found, 16), found)


def test_weights_of_another_network_are_refused(tiny_networks: Hub, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = {key: torch.from_numpy(array) for key, array in upstream.seeded("x", upstream.shapes_of_dinov2()).items()}
    (tmp_path / "config.json").write_text(json.dumps(upstream.DINOV2))
    for tensors, said in (
        ({key: value for key, value in state.items() if key != "layernorm.bias"}, r"'layernorm\.bias' is missing"),
        (state | {"extra.weight": torch.zeros(2)}, r"'extra\.weight' is not known"),
        (state | {"layernorm.bias": torch.zeros(3)}, "these are the weights of another model"),
    ):
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=said):
            dinov2.extractor("cpu", str(tmp_path))


def test_clip_is_transformers_on_the_centred_square(tiny_networks: Hub) -> None:
    from transformers import CLIPConfig, CLIPModel

    extractor = clip_336.extractor("cpu", None)
    folder = tiny_networks.folder(clip_336.REPOSITORY, clip_336.REVISION)
    clip = CLIPModel(CLIPConfig(**upstream.CLIP_336)).eval()
    state = torch.load(folder / clip_336.FILES[1], weights_only=True)
    clip.load_state_dict({key: value for key, value in state.items() if not key.endswith("position_ids")})
    pixels = []
    for array in upstream.make_images():
        whole = Image.fromarray(array)
        edge = min(whole.size)
        left, top = ((side - edge) // 2 for side in whole.size)
        square = whole.crop((left, top, left + edge, top + edge)).resize((336, 336), Image.Resampling.BICUBIC)
        scaled = torch.from_numpy(np.array(square)).permute(2, 0, 1) / 255
        mean, std = torch.tensor([[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]])
        pixels.append((scaled - mean[:, None, None]) / std[:, None, None])
    with torch.no_grad():
        hidden = clip.vision_model(pixel_values=torch.stack(pixels)).pooler_output
        expected = torch.nn.functional.normalize(clip.visual_projection(hidden), dim=-1)
    torch.testing.assert_close(extractor(images()), expected, rtol=1e-5, atol=1e-6)


def test_every_claim_is_compared() -> None:
    """With formulas in test_sets.py, with clean-fid in test_fid.py, with the others on this page."""
    claims = distribution.verified()
    assert claims.keys() == distribution.variants().keys()
    made_by = json.loads((Path(__file__).parents[1] / "upstream" / "fid.json").read_text(encoding="utf-8"))["versions"]
    packages = {f"{name} {number}" for name, number in ORIGINAL["versions"].items()}
    packages |= {"formula", f"clean-fid {made_by['clean-fid']}"}
    assert set(claims.values()) <= packages
    assert {name for name, by in claims.items() if by == "formula"} == {
        "fd-shapes",
        "kid/shapes-clip",
        "diversity/shapes-clip",
        "diversity/inception",
    }
    assert {name for name in claims if claims[name].startswith("clean-fid")} == fid.PROTOCOLS.keys()


# ---- features are computed once --------------------------------------------------------------------------------------


def test_metrics_of_a_run_share_a_network_and_what_it_made(
    tiny_clip: None, tiny_networks: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("kid/shapes-clip", "precision/shapes-clip", "vendi/shapes-clip", "fd-shapes", "diversity/shapes-clip")
    metrics = [distribution.load(name) for name in names]
    assert len({metric.features for metric in metrics}) == 1  # type: ignore[attr-defined]
    extractor = shapes_clip.extractor("cpu", None)
    seen, compute = [], extractor._compute
    monkeypatch.setattr(extractor, "_compute", lambda images: seen.append(len(images)) or compute(images))
    captions = sample_captions(10, split="test", seed=0) * 2
    drawn = Batch(list(torch.from_numpy(render(captions, seed=0))))
    for metric in metrics:
        metric.update(drawn, captions)
    assert seen == [20]
    values = [metric.compute().value for metric in metrics]
    assert seen == [20, 8 * 20], "and the renders of the same captions once"
    alone = distribution.load("kid/shapes-clip")
    alone.update(list(drawn), captions)
    assert alone.compute().value == values[0]
    assert seen == [20, 8 * 20, 20]


def test_a_batch_whose_content_has_changed_is_no_batch_of_before() -> None:
    extractor = Extractor(lambda images: torch.stack([image.sum()[None] for image in images]), weights_sha256="")
    image = torch.zeros(1, 3, 2, 2)
    assert extractor(image).item() == 0
    assert extractor(image.add_(1)).item() == 12, "only what is a Batch is remembered"


def test_an_extractor_lives_while_somebody_holds_it() -> None:
    made = []

    @shared
    def load(device: Any, path: str | None) -> Extractor:
        made.append(path)
        return Extractor(lambda images: torch.zeros(len(images), 1), weights_sha256="")

    held = load("cpu", None)
    assert load("cpu", None) is held
    assert load("cpu", "other") is not held
    del held
    load("cpu", None)
    assert made == [None, "other", None]


def test_measuring_blocks_runs_a_network_once_for_each_image(
    tiny_networks: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evaluate.runs.blocks import cut_into_blocks
    from evaluate.runs.score import measure_blocks
    from prompts.suites import Prompt

    calls = []

    class Counting(torch.nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            calls.append(len(pixels))
            return torch.nn.functional.adaptive_avg_pool2d(pixels, 3).mean(1).flatten(1)

    class Kept:
        """In a store's place: images that seeds make."""

        def open(self, block: Any, image: Any) -> np.ndarray:
            return np.random.default_rng(image.seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)

    class One:
        file, error = "x", None

        def __init__(self, seed: int) -> None:
            self.seed, self.sha256 = seed, str(seed)

    monkeypatch.setattr(inception, "load_network", lambda *_: (Counting(), "0" * 64))
    names = ("vendi/inception", "vendi/inception/within-prompt", "diversity/inception")
    metrics = [distribution.load(name) for name in names]
    blocks = cut_into_blocks([Prompt(f"{i}", f"prompt {i}", {}) for i in range(6)], (0, 1), 5)
    stored = [(block, [One(10 * block.index + i) for i in range(len(block.rows))]) for block in blocks]
    measured = measure_blocks(metrics, stored, Kept(), show=False)  # type: ignore[arg-type]
    assert calls == [5, 5, 2]
    assert {name: each["n"] for name, each in measured.items()} == dict.fromkeys(names, 12)
    kept = json.loads(json.dumps(measured))["vendi/inception"]
    assert all(size == 2 and value > 0 for size, value in kept["left_out"].values()) or len(kept["left_out"]) < 6
    assert sum(size for size, _ in kept["left_out"].values()) == 12


# ---- intervals -------------------------------------------------------------------------------------------------------

STATISTICS: dict[str, Statistic] = {
    "kid": kid.kid,
    "cmmd": cmmd.cmmd,
    "frechet": frechet.frechet_statistic,
    "vendi": lambda images, _: vendi.vendi_statistic(images),
    **{name: partial(statistic, k=k) for name, (_, statistic, k, _) in prdc.STATISTICS.items()},
}


def test_kid_to_renders_of_the_same_captions_has_no_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of images and renders that are alike given a caption, which moves both."""
    monkeypatch.setattr(kid, "SUBSETS", 2)
    rng, captions = np.random.default_rng(0), torch.arange(40)
    values, naive = [], []
    for _ in range(40):
        means = rng.normal(size=(40, 4))
        a, b = (torch.from_numpy(np.repeat(means, n, 0) + 0.3 * rng.normal(size=(40 * n, 4))) for n in (2, 4))
        x, y = (
            Sample(each, torch.zeros(len(each)).long(), captions.repeat_interleave(n)) for each, n in ((a, 2), (b, 4))
        )
        values.append(kid.kid(x, y)(None))
        naive.append(kid.kid(x, replace(y, units=None), size=80)(None))
    assert abs(np.mean(values)) < 3 * np.std(values) / 40**0.5
    assert np.mean(naive) < -5 * np.std(naive) / 40**0.5


@pytest.mark.parametrize("both", [False, True], ids=["a reference that stays", "a reference of the same prompts"])
@pytest.mark.parametrize("name", STATISTICS)
def test_what_is_left_out_is_not_there(name: str, both: bool) -> None:
    """The value without a group is the value of the others."""
    a, b = samples((60, 60))
    groups = torch.arange(60) % 4
    units = torch.arange(60) % 20
    a = Sample(a.features[:60], groups, units)
    b = Sample(b.features, groups, units) if both else b
    value = STATISTICS[name](a, b)
    for group in range(4):
        rest = [side.at(side.without(group).nonzero().flatten()) for side in (a, b)]
        expected = STATISTICS[name](*rest)(None)
        # KID of unequal sides draws subsets.
        if name != "kid" or both:
            assert value(group) == pytest.approx(expected, rel=1e-9), group
        assert value(group) != pytest.approx(value(None), rel=1e-9) or name in ("recall", "coverage", "precision")


def test_two_runs_of_a_suite_have_the_same_groups() -> None:
    prompts = [f"prompt {i}" for i in range(40)] * 2
    estimates = []
    for side in ("generated", "real"):
        features = torch.from_numpy(upstream.make_features(side, 80))
        metric = SampleMetric("v", lambda x: x, vendi.vendi_statistic, weights_sha256="", groups=MANY_GROUPS)
        metric.update(features, prompts)
        estimates.append(metric.compute())
    a, b = estimates
    assert {name: n for name, (n, _) in a.left_out.items()} == {name: n for name, (n, _) in b.left_out.items()}
    assert all(name.endswith("/50") for name in a.left_out)
    group = group_of("prompt 3", MANY_GROUPS)
    kept = torch.tensor([group_of(prompt, MANY_GROUPS) != group for prompt in prompts])
    features = torch.from_numpy(upstream.make_features("real", 80))
    size, value = b.left_out[f"{group}/50"]
    assert size == int((~kept).sum())
    assert value == pytest.approx(vendi.vendi(features[kept]), rel=1e-12)


def test_diversity_leaves_groups_out_too() -> None:
    features = torch.from_numpy(upstream.make_features("real", 60))
    prompts = [f"prompt {i // 2}" for i in range(60)]
    metric = diversity.WithinPrompt("d", lambda x: x, diversity.mean_cosine_distance, weights_sha256="")
    metric.update(features, prompts)
    estimate = metric.compute()
    group = group_of("prompt 0", MANY_GROUPS)
    kept = [i for i, prompt in enumerate(prompts) if group_of(prompt, MANY_GROUPS) != group]
    rest = diversity.WithinPrompt("d", lambda x: x, diversity.mean_cosine_distance, weights_sha256="")
    rest.update(features[kept], [prompts[i] for i in kept])
    assert estimate.left_out[f"{group}/50"] == (60 - len(kept), pytest.approx(rest.compute().value, rel=1e-12))


def test_no_interval_where_what_is_left_has_no_value() -> None:
    estimate = jackknife({0: 3, 1: 4}, lambda left_out: math.nan if left_out == 1 else 2.0)
    assert estimate.value == 2
    assert math.isnan(estimate.low) and not estimate.left_out
    assert estimate.note == "no interval: too few prompts"


@pytest.mark.parametrize("name", ["kid", "cmmd", "vendi", "precision", "coverage"])
def test_the_interval_covers_as_often_as_it_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of images that come in pairs of one prompt."""
    monkeypatch.setattr(kid, "SUBSETS", 2)
    rng, n = np.random.default_rng(0), 120
    groups = 10 if name in prdc.STATISTICS else MANY_GROUPS
    fixed = Sample(torch.from_numpy(rng.normal(size=(150, 4)) + 1), torch.full((150,), -1))
    number = torch.tensor([group_of(f"prompt {i // 2}", groups) for i in range(n)])
    parts = {group: int((number == group).sum()) for group in number.unique().tolist()}
    estimates = []
    for _ in range(150):
        features = np.repeat(rng.normal(size=(n // 2, 4)), 2, 0) * 0.7 + rng.normal(size=(n, 4)) * 0.7 + 1.4
        statistic = STATISTICS[name](Sample(torch.from_numpy(features), number), fixed)
        estimates.append(jackknife(parts, statistic, groups=groups))
    expected = np.mean([estimate.value for estimate in estimates])
    covered = np.mean([estimate.low <= expected <= estimate.high for estimate in estimates])
    assert 0.88 <= covered <= 0.995


# ---- references that are files ---------------------------------------------------------------------------------------


@pytest.fixture
def real(tmp_path: Path, tiny_networks: Hub, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "real"
    folder.mkdir()
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (30, 40, 50, 3), dtype=np.uint8)):
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


def measure(name: str, source: Path) -> distribution.Estimate:
    metric = distribution.load(name, reference=str(source))
    drawn = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (24, 3, 32, 32), dtype=np.uint8))
    metric.update(drawn, [f"{i}" for i in range(24)])
    return metric.compute()


def write(folder: Path, *words: str) -> None:
    from typer.testing import CliRunner

    from evaluate.cli import app

    done = CliRunner().invoke(app, ["moments", str(folder), *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("name", ["fid/coco2014-30k", "fd-dinov2"])
def test_moments_stand_for_their_folder(name: str, real: Path, tmp_path: Path) -> None:
    file = tmp_path / "moments.safetensors"
    write(real, "--metric", name, "--output", str(file))
    once = file.read_bytes()
    write(real, "--metric", name, "--output", str(file))
    assert file.read_bytes() == once
    whole, read = measure(name, real), measure(name, file)
    assert read == whole
    assert len(whole.reference_sha256) == 64


def test_moments_of_moments_are_refused(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from evaluate.cli import app

    (tmp_path / "stats.npz").write_bytes(b"")
    with pytest.raises(UserError, match="give the one that the real images are in"):
        CliRunner().invoke(
            app, ["moments", str(tmp_path / "stats.npz"), "--metric", "fd-dinov2"], catch_exceptions=False
        )


def test_moments_are_written_where_one_is(real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(real, "--metric", "fid")
    assert (tmp_path / "real-fid-coco2014-30k.safetensors").is_file()


def test_moments_of_others_are_read_under_the_protocols_name(real: Path, tmp_path: Path) -> None:
    name, file = "fid/coco2014-30k", tmp_path / "coco.npz"
    loaded = distribution.load(name, reference=str(real))
    assert isinstance(loaded, FrechetMetric)
    moments = loaded.reference()
    np.savez(file, mu=moments.mean.numpy(), sigma=moments.covariance.numpy())
    whole, read = measure(name, real), measure(name, file)
    assert read.value == pytest.approx(whole.value, rel=1e-12)
    from evaluate import weights

    assert read.reference_sha256 == weights.sha256(file)


def test_moments_that_are_not_the_protocols_are_refused(real: Path, tmp_path: Path) -> None:
    file = tmp_path / "moments.safetensors"
    write(real, "--metric", "fid/coco2014-30k", "--output", str(file))
    with pytest.raises(UserError, match=r"its protocol is fid/coco2014-30k, and fid/coco-sdxl-10k is asked for"):
        distribution.load("fid/coco-sdxl-10k", reference=str(file))
    moments = Moments(5, torch.zeros(9).double(), torch.eye(9).double())
    reference.write_moments(file, moments, protocol="fid/coco2014-30k", weights_sha256="1" * 64)
    with pytest.raises(UserError, match=r"its weights_sha256 is 1+, and 0+ is asked for"):
        distribution.load("fid/coco2014-30k", reference=str(file))
    np.savez(tmp_path / "wide.npz", mu=np.zeros(4), sigma=np.eye(4))
    np.savez(tmp_path / "other.npz", mean=np.zeros(9))
    file.write_bytes(b"torn")
    for source, said in (
        ("wide.npz", r"shapes \(4,\) and \(4, 4\), and features of fid/coco2014-30k are 9 numbers"),
        ("other.npz", "no moments 'mu' and 'sigma' there"),
        ("moments.safetensors", "not a file of moments"),
        ("none.npz", "no such file of moments"),
    ):
        with pytest.raises(UserError, match=said):
            distribution.load("fid/coco2014-30k", reference=str(tmp_path / source))


def test_what_needs_every_image_takes_no_moments(real: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from evaluate.cli import app

    (tmp_path / "moments.npz").touch()
    with pytest.raises(UserError, match="compares with every image; give the folder of all 40,504 images"):
        distribution.load("kid/coco2014-30k", reference=str(tmp_path / "moments.npz"))
    for words, said in (
        (["--metric", "cmmd"], "compares with every image, not with moments"),
        (["--metric", "fid", "--output", "x.npz"], r"moments are written as \.safetensors"),
        (["--metric", "fd-shapes"], "compares with no images of yours"),
    ):
        with pytest.raises(UserError, match=said):
            CliRunner().invoke(app, ["moments", str(real), *words], catch_exceptions=False)


def test_a_reference_is_shared_by_the_metrics_on_it(real: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = reference.folder_features
    monkeypatch.setattr(reference, "folder_features", lambda *args: seen.append(1) or original(*args))
    names = [f"{kind}/coco2014-30k" for kind in ("fid", "kid", "precision", "recall", "density", "coverage")]
    metrics = [distribution.load(name, reference=str(real)) for name in names]
    drawn = Batch(list(torch.from_numpy(render(sample_captions(12, split="test", seed=0), seed=0))))
    for metric in metrics:
        metric.update(drawn, [f"{i}" for i in range(12)])
    estimates = [metric.compute() for metric in metrics]
    assert seen == [1]
    assert len({estimate.reference_sha256 for estimate in estimates}) == 1
    assert "subsets of 12 images where the protocol takes 1,000" in estimates[1].note
    assert "12 images where the protocol takes 30,000" in estimates[2].note

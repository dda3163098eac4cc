"""FID against clean-fid's own code: its images' way into the network, the network, and the distance."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub import Hub
from PIL import Image
from torch import Tensor
from upstream.make_fid import GENERATED, REAL, WAYS, StandIn, make_images, original, save

from evaluate import distribution, weights
from evaluate.distribution import fid
from evaluate.distribution.reference import folder_features, read_image, reference_files
from evaluate.features import Extractor, inception
from prompts.io.errors import UserError


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Generated and real images."""
    home = tmp_path_factory.mktemp("images")
    return save(make_images(**GENERATED), home / "generated"), save(make_images(**REAL), home / "real")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small seeded network in Inception's place, and a cache of our own."""
    monkeypatch.setattr(inception, "load_network", lambda *_: (StandIn(), "0" * 64))
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))


def measure(name: str, folders: tuple[Path, Path]) -> distribution.Estimate:
    generated, real = folders
    metric = distribution.load(name, reference=str(real))
    images = [read_image(path) for path in sorted(generated.iterdir())]
    for i in range(0, len(images), 10):
        metric.update(images[i : i + 10], [f"{j}" for j in range(i, len(images))][:10])
    return metric.compute()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "fid/coco2014-30k" else [pytest.mark.slow]) for name in fid.PROTOCOLS],
)
def test_the_distance_is_clean_fids(name: str, folders: tuple[Path, Path], stand_in: None) -> None:
    estimate = measure(name, folders)
    expected, features = original(*folders, WAYS[name])
    assert estimate.value == pytest.approx(expected, rel=1e-4)
    extractor = inception.extractor("cpu", None, fid.PROTOCOLS[name].prepare)
    ours = extractor([read_image(path) for path in sorted(folders[0].iterdir())])
    np.testing.assert_allclose(ours.numpy(), features, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", list(fid.PROTOCOLS))
def test_the_distance_is_what_clean_fid_gave_in_an_environment_of_its_own(
    name: str, folders: tuple[Path, Path], stand_in: None
) -> None:
    reference = json.loads((Path(__file__).parents[1] / "upstream" / "fid.json").read_text())
    assert (reference["generated"], reference["real"]) == (GENERATED, REAL)
    assert measure(name, folders).value == pytest.approx(reference["fid"][name], rel=1e-4)


@pytest.mark.slow
def test_the_protocols_differ(folders: tuple[Path, Path], stand_in: None) -> None:
    assert fid.PROTOCOLS.keys() == WAYS.keys()
    estimates = [measure(name, folders) for name in WAYS]
    for i, a in enumerate(estimates):
        for b in estimates[:i]:
            assert a.value != pytest.approx(b.value, rel=1e-3), "ten times what either may differ from the original"
    said = "24 images where the protocol takes 30,000; a reference of 32 images where the protocol's has 40,504"
    assert estimates[0].note == said


# The network


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """clean-fid's own definition of the network, with seeded weights in the place of those
    it would fetch, and their file.
    """
    from cleanfid import inception_pytorch

    generator, state = torch.Generator().manual_seed(0), {}

    def seeded(*_: object, **__: object) -> dict[str, Tensor]:
        blank = inception_pytorch._inception_v3(num_classes=1008, aux_logits=False).state_dict()
        for key, value in blank.items():
            draw = torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
            if key.endswith("conv.weight"):
                draw = draw * (2 / value[0].numel()) ** 0.5  # keeps activations of one size through the depth
            elif key.endswith("running_var"):
                draw = 1 + 0.2 * draw.abs()
            elif key.endswith("bn.weight"):
                draw = torch.ones_like(value)  # the published network has no scale
            elif value.is_floating_point():
                draw = 0.1 * draw
            state[key] = draw
        return state

    patch = pytest.MonkeyPatch()
    patch.setattr(inception_pytorch, "load_state_dict_from_url", seeded)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what it asks of torchvision
        network = inception_pytorch.InceptionV3(resize_input=False).eval()
    patch.undo()
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(state, path)
    return network, path


@pytest.mark.parametrize("given", [True, False])
def test_the_network_is_the_one_clean_fid_defines(
    given: bool, oracle: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, path = oracle
    monkeypatch.setattr(inception, "fetch", lambda: pytest.fail("fetched") if given else path)
    ours, digest = inception.load_network("cpu", str(path) if given else None)
    assert digest == weights.sha256(path)
    images = torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (2, 3, 299, 299)).astype(np.float32))
    with torch.no_grad():
        # Its last step scales [0, 1] to [-1, 1]; the way for images that are resized already is (x - 128) / 128.
        expected = theirs(images / 256)[0].flatten(1)
        found = ours(images)
    assert found.shape == (2, inception.WIDTH)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_weights_of_another_network_are_refused(oracle: tuple[Any, Path], tmp_path: Path) -> None:
    state = torch.load(oracle[1])
    with_extra = state | {"AuxLogits.fc.weight": torch.zeros(2)}
    without = {key: value for key, value in state.items() if key != "Conv2d_1a_3x3.bn.bias"}
    for tensors, said in (
        (with_extra, r"'AuxLogits\.fc\.weight' is not known"),
        (without, r"'Conv2d_1a_3x3\.bn\.bias' is missing"),
    ):
        torch.save(tensors, tmp_path / "other.pth")
        with pytest.raises(UserError, match=said):
            inception.load(tmp_path / "other.pth")
    # Torch files of old have no counts of training batches.
    torch.save({key: value for key, value in state.items() if "num_batches" not in key}, tmp_path / "old.pth")
    assert inception.load(tmp_path / "old.pth")


# The weights on the net


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A server with a file in the weights' place, whose hash is the one that is known."""
    from cleanfid import inception_pytorch

    hub = Hub()
    file = hub.folder("a/b", "main") / "inception.pth"
    file.write_bytes(b"weights")
    monkeypatch.setattr(inception_pytorch, "FID_WEIGHTS_URL", f"{hub.url}/a/b/resolve/main/{file.name}")
    monkeypatch.setattr(inception, "SHA256", weights.sha256(file))
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    return hub


def test_weights_are_fetched_once(net: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = inception.fetch()
    assert path == tmp_path / "cache" / "inception" / "inception.pth"
    assert path.read_bytes() == b"weights"
    assert "fetching Inception's weights" in capsys.readouterr().err
    assert len(net.requests) == 1
    assert inception.fetch() == path
    assert not capsys.readouterr().err
    assert len(net.requests) == 1
    path.write_bytes(b"weigh")  # damaged since
    assert inception.fetch().read_bytes() == b"weights"


@pytest.mark.parametrize("fault", ["another hash", "torn", "not there"])
def test_what_is_not_the_weights_is_not_kept(
    fault: str, net: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "another hash":
        monkeypatch.setattr(inception, "SHA256", "0" * 64)
    elif fault == "torn":
        net.broken = True
    else:
        (net.folder("a/b", "main") / "inception.pth").unlink()
    said = "HTTP Error 404" if fault == "not there" else "another file, or a part of it .invalid hash value"
    with pytest.raises(
        UserError, match=rf"{said}.*; run it again, or give a local copy of inception\.pth with --weights METRIC=PATH"
    ):
        inception.fetch()
    assert not list((tmp_path / "cache" / "inception").iterdir())


# The reference's cache


def features_in(folder: Path, home: Path, *, digest: str = "0", prepared: str = "square") -> tuple[Tensor, str, int]:
    """The reference's features, its hash, and how many images had to go through the network."""
    seen = 0

    def means(images: Any) -> Tensor:
        nonlocal seen
        seen += len(images)
        return torch.stack([image.float().mean((1, 2)) for image in images])

    extractor = Extractor(means, weights_sha256=digest, made_by={"crop": prepared})
    found, images = folder_features(reference_files(folder, "fid/x", "all of them"), extractor, home=home)
    return found, images, seen


def test_a_reference_is_measured_once_for_all_that_makes_it(tmp_path: Path) -> None:
    folder, home = save(make_images(4, seed=3, contrast=1.0), tmp_path / "real"), tmp_path / "cache"
    first, images, seen = features_in(folder, home)
    assert seen == len(first) == 4
    again, same, seen = features_in(folder, home)
    assert seen == 0
    assert torch.equal(again, first)
    assert same == images
    assert features_in(folder, home, digest="1")[2] == 4, "other weights"
    assert features_in(folder, home, prepared="patch")[2] == 4, "another preparation"
    (folder / "000.png").rename(folder / "zzz.png")
    renamed, same, seen = features_in(folder, home)
    assert seen == 0 and same == images and torch.equal(renamed, first), "names mean nothing"
    Image.new("RGB", (300, 300)).save(folder / "003.png")
    changed, other, seen = features_in(folder, home)
    assert seen == 4, "another image"
    assert other != images
    assert not torch.equal(changed, first)


def test_a_reference_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "real"
    with pytest.raises(UserError, match=r"real: 0 images there; fid/x compares with all of them"):
        features_in(folder, tmp_path)
    save(make_images(2, seed=3, contrast=1.0), folder)
    path = folder / "000.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"000\.png: not an image that can be read"):
        features_in(folder, tmp_path)

"""FID against clean-fid's own code: its pictures' way into the network, the network, and the distance."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from upstream.make_fid import GENERATED, REAL, SIZES, StandIn, make_pictures, original, save

from evaluate import sets, weights
from evaluate.sets import fid, inception
from evaluate.sets.frechet import Moments
from prompts.errors import UserError


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Generated and real pictures."""
    home = tmp_path_factory.mktemp("pictures")
    return save(make_pictures(**GENERATED), home / "generated"), save(make_pictures(**REAL), home / "real")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small seeded network in Inception's place, and a cache of our own."""
    monkeypatch.setattr(fid, "load_inception", lambda *_: (StandIn(), "0" * 64))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def measure(name: str, folders: tuple[Path, Path]) -> sets.Estimate:
    generated, real = folders
    metric = sets.load(name, reference=str(real))
    pictures = [fid.read_picture(path) for path in sorted(generated.iterdir())]
    for i in range(0, len(pictures), 10):
        metric.update(pictures[i : i + 10], [f"{j}" for j in range(i, len(pictures))][:10])
    return metric.compute()


@pytest.mark.parametrize("name", list(fid.PROTOCOLS))
def test_the_distance_is_clean_fids(name: str, folders: tuple[Path, Path], stand_in: None) -> None:
    estimate = measure(name, folders)
    expected, features = original(*folders, SIZES[name])
    assert estimate.value == pytest.approx(expected, rel=1e-4)
    ours = fid.features_of(StandIn(), SIZES[name], "cpu")([fid.read_picture(path) for path in sorted(folders[0].iterdir())])
    np.testing.assert_allclose(ours.numpy(), features, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", list(fid.PROTOCOLS))
def test_the_distance_is_what_clean_fid_gave_in_an_environment_of_its_own(
    name: str, folders: tuple[Path, Path], stand_in: None
) -> None:
    reference = json.loads((Path(__file__).parents[1] / "upstream" / "fid.json").read_text())
    assert (reference["generated"], reference["real"]) == (GENERATED, REAL)
    assert measure(name, folders).value == pytest.approx(reference["fid"][name], rel=1e-4)


def test_the_two_protocols_differ(folders: tuple[Path, Path], stand_in: None) -> None:
    assert {name: p.size for name, p in fid.PROTOCOLS.items()} == SIZES
    a, b = (measure(name, folders) for name in SIZES)
    assert a.value != pytest.approx(b.value, rel=1e-3), "ten times what either may differ from the original"
    assert a.note == "24 pictures where the protocol takes 30,000"


# The network

#: torchvision's names of the parts of a block, by kind, and the TorchScript's.
PARTS = {
    "A": {"branch1x1": "conv", "branch5x5_1": "tower.conv", "branch5x5_2": "tower.conv_1", "branch3x3dbl_1": "tower_1.conv",
          "branch3x3dbl_2": "tower_1.conv_1", "branch3x3dbl_3": "tower_1.conv_2", "branch_pool": "tower_2.conv"},
    "B": {"branch3x3": "conv", "branch3x3dbl_1": "tower.conv", "branch3x3dbl_2": "tower.conv_1", "branch3x3dbl_3": "tower.conv_2"},
    "C": {"branch1x1": "conv", "branch7x7_1": "tower.conv", "branch7x7_2": "tower.conv_1", "branch7x7_3": "tower.conv_2",
          "branch7x7dbl_1": "tower_1.conv", **{f"branch7x7dbl_{i + 1}": f"tower_1.conv_{i}" for i in range(1, 5)},
          "branch_pool": "tower_2.conv"},
    "D": {"branch3x3_1": "tower.conv", "branch3x3_2": "tower.conv_1", "branch7x7x3_1": "tower_1.conv",
          **{f"branch7x7x3_{i + 1}": f"tower_1.conv_{i}" for i in range(1, 4)}},
    "E": {"branch1x1": "conv", "branch3x3_1": "tower_conv", "branch3x3_2a": "tower_mixed_conv",
          "branch3x3_2b": "tower_mixed_conv_1", "branch3x3dbl_1": "tower_1_conv", "branch3x3dbl_2": "tower_1_conv_1",
          "branch3x3dbl_3a": "tower_1_mixed_conv", "branch3x3dbl_3b": "tower_1_mixed_conv_1", "branch_pool": "tower_2_conv"},
}  # fmt: skip
STEM = {"Conv2d_1a_3x3": "conv", "Conv2d_2a_3x3": "conv_1", "Conv2d_2b_3x3": "conv_2", "Conv2d_3b_1x1": "conv_3",
        "Conv2d_4a_3x3": "conv_4"}  # fmt: skip
BLOCKS = ["5b A", "5c A", "5d A", "6a B", "6b C", "6c C", "6d C", "6e C", "7a D", "7b E", "7c E"]
TENSORS = {"conv.weight": "weight", "bn.bias": "beta", "bn.running_mean": "mean", "bn.running_var": "var"}


def translated(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of torchvision's names in the TorchScript's."""
    names = dict(STEM)
    for i, block in enumerate(BLOCKS):
        number, kind = block.split()
        names |= {f"Mixed_{number}.{a}": f"mixed{f'_{i}' if i else ''}.{b}" for a, b in PARTS[kind].items()}
    return {f"{b}.{TENSORS[t]}": theirs[f"{a}.{t}"] for a, b in names.items() for t in TENSORS}


@pytest.fixture(scope="module")
def oracle() -> Any:
    """clean-fid's own definition of the network, with seeded weights in the place of those it would fetch."""
    from cleanfid import inception_pytorch

    generator = torch.Generator().manual_seed(0)

    def seeded(*_: object, **__: object) -> dict[str, Tensor]:
        blank = inception_pytorch._inception_v3(num_classes=1008, aux_logits=False).state_dict()
        state = {}
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
    weights_of: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    stem = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", None], ["Conv2d_3b_1x1", "Conv2d_4a_3x3", None]
    mixed = [f"Mixed_{block.split()[0]}" for block in BLOCKS]
    for block, members in enumerate([*stem, mixed[:8], [*mixed[8:], None]]):
        names |= {f"blocks.{block}.{i}.": f"{member}." for i, member in enumerate(members) if member}
    for key, value in network.state_dict().items():
        prefix = next(p for p in names if key.startswith(p))
        weights_of[names[prefix] + key.removeprefix(prefix)] = value
    return network, translated(weights_of)


def test_the_network_is_the_one_clean_fid_defines(oracle: Any) -> None:
    theirs, tensors = oracle
    ours = inception.Inception()
    weights.load_strict(ours, tensors, "the oracle")
    pictures = torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (2, 3, 299, 299)).astype(np.float32))
    with torch.no_grad():
        # Its last step scales [0, 1] to [-1, 1]; the TorchScript's way is (x - 128) / 128.
        expected = theirs(pictures / 256)[0].flatten(1)
        found = ours.eval()(pictures)
    assert found.shape == (2, inception.WIDTH)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class Wrapped(nn.Module):
    """As the published file is built: the network is `layers`, and there is a classifier after it."""

    def __init__(self, layers: nn.Module):
        super().__init__()
        self.layers, self.output = layers, nn.Linear(2048, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.layers(x))


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_a_torchscript_file_becomes_a_plain_one(tmp_path: Path, oracle: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from evaluate.cli import app

    network = inception.Inception()
    weights.load_strict(network, oracle[1], "the oracle")
    traced = torch.jit.trace(Wrapped(network).eval(), torch.zeros(1, 3, 299, 299))
    torch.jit.save(traced, tmp_path / "inception.pt")
    output = tmp_path / "inception.safetensors"
    done = CliRunner().invoke(app, ["inception", "--torchscript", str(tmp_path / "inception.pt"), "--output", str(output)])
    assert done.exit_code == 0, done.output
    assert weights.sha256(output) in done.output.replace("\n", "")
    loaded, digest = fid.load_inception("fid", "cpu", str(output))
    assert digest == weights.sha256(output)
    assert all(torch.equal(value, oracle[1][key]) for key, value in loaded.state_dict().items())
    (tmp_path / "bad.pt").write_bytes(b"not a file of weights")
    with pytest.raises(UserError, match="not a TorchScript file"):
        inception.convert(tmp_path / "bad.pt", output)
    save_file({key: value for key, value in oracle[1].items() if key != "conv.beta"}, output)
    with pytest.raises(UserError, match=r"'conv\.beta' is missing"):
        inception.load(output)


# The reference's cache


def moments(folder: Path, home: Path, *, digest: str = "0", name: str = "fid/coco2014-30k") -> tuple[Moments, int]:
    """The reference's moments, and how many pictures had to go through the network."""
    seen = 0

    def features(pictures: Any) -> Tensor:
        nonlocal seen
        seen += len(pictures)
        return torch.stack([picture.float().mean((1, 2)) for picture in pictures])

    return fid.reference_moments(folder, name, features, digest, home=home), seen


def test_a_reference_is_measured_once_for_all_that_makes_it(tmp_path: Path) -> None:
    folder, home = save(make_pictures(4, seed=3, contrast=1.0), tmp_path / "real"), tmp_path / "cache"
    first, seen = moments(folder, home)
    assert seen == 4
    again, seen = moments(folder, home)
    assert seen == 0
    assert again.n == first.n == 4
    assert torch.equal(again.mean, first.mean)
    assert torch.equal(again.scatter, first.scatter)
    assert moments(folder, home, digest="1")[1] == 4, "other weights"
    assert moments(folder, home, name="fid/coco-sdxl-10k")[1] == 4, "another protocol"
    Image.new("RGB", (300, 300)).save(folder / "003.png")
    changed, seen = moments(folder, home)
    assert seen == 4, "another picture"
    assert not torch.equal(changed.mean, first.mean)


def test_a_reference_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "real"
    with pytest.raises(UserError, match=r"real: 0 pictures there; fid/coco2014-30k compares with all 40,504"):
        moments(folder, tmp_path)
    save(make_pictures(2, seed=3, contrast=1.0), folder)
    path = folder / "000.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"000\.png: not a picture that can be read"):
        moments(folder, tmp_path)

"""Preparation of images, against Pillow and torchvision themselves."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional as TF
from upstream import seeded

from evaluate.preprocess import (
    CLIP_224,
    CLIP_MEAN,
    CLIP_STD,
    PROCESSOR_224,
    Preprocess,
    Resize,
    SmartResize,
    resampling_matrix,
)

ARRAYS = {
    name: array if array.ndim == 3 else np.repeat(array[:, :, None], 3, 2) for name, array in seeded.pictures().items()
}
NORMALISE = transforms.Normalize(CLIP_MEAN, CLIP_STD)


def chw(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(2, 0, 1)


@pytest.mark.parametrize("name", list(ARRAYS))
def test_bytes_take_the_path_of_torchvision(name: str) -> None:
    stock = transforms.Compose(
        [
            transforms.Resize(224, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            NORMALISE,
        ]
    )
    assert torch.equal(CLIP_224(chw(ARRAYS[name])[None])[0], stock(Image.fromarray(ARRAYS[name])))


@pytest.mark.parametrize("name", list(ARRAYS))
def test_bytes_take_the_path_of_transformers(name: str) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    stock = CLIPImageProcessorPil()(images=Image.fromarray(ARRAYS[name]), return_tensors="pt").pixel_values
    torch.testing.assert_close(PROCESSOR_224(chw(ARRAYS[name])[None]), stock, atol=1e-6, rtol=0)


def test_the_two_centres_differ_where_a_surplus_is_odd() -> None:
    image = torch.rand(1, 3, 224, 227)
    assert not torch.equal(CLIP_224(image), PROCESSOR_224(image))


@pytest.mark.parametrize("antialias", [True, False])
def test_the_longest_edge_on_tensors(antialias: bool) -> None:
    prepare = Preprocess(size=224, resize=(Resize(size=224, fit="longest"),), library="torch", antialias=antialias)
    image = chw(ARRAYS["odd"])
    height, width = round(301 * 224 / 437), 224
    resized = TF.resize(image.float() / 255, [height, width], transforms.InterpolationMode.BICUBIC, antialias=antialias)
    expected = NORMALISE(TF.pad(resized, [0, (224 - height) // 2, 0, 224 - height - (224 - height) // 2], fill=0))
    torch.testing.assert_close(prepare(image[None])[0], expected, atol=1e-6, rtol=0)


def test_a_square_is_cut_before_it_is_resized() -> None:
    prepare = Preprocess(size=64, resize=(Resize(size=64, fit="square", filter="lanczos"),))
    image = Image.fromarray(ARRAYS["wide"])
    expected = TF.center_crop(image, [480, 480]).resize((64, 64), Image.Resampling.LANCZOS)
    assert torch.equal(prepare(chw(ARRAYS["wide"])[None])[0], NORMALISE(TF.to_tensor(expected)))


@pytest.mark.parametrize("name", ["bicubic", "lanczos"])
@pytest.mark.parametrize("sizes", [(301, 224), (97, 224), (1024, 224), (224, 223)])
def test_matrices_are_pillows_filters(name: str, sizes: tuple[int, int]) -> None:
    """Against Pillow on 32-bit floats, which it does not round."""
    before, after = sizes
    signal = np.random.default_rng(0).random((1, before), dtype=np.float32)
    expected = np.asarray(Image.fromarray(signal, mode=None).resize((after, 1), Image.Resampling[name.upper()]))
    np.testing.assert_allclose(resampling_matrix(before, after, name).numpy() @ signal[0], expected[0], atol=2e-6)


@pytest.mark.parametrize("name", list(ARRAYS))
def test_floats_differ_from_bytes_by_roundings_alone(name: str) -> None:
    """Two passes, each rounded to 1/255: at most 1/2 at the end and 1/2 carried through the second pass's weights."""
    plain = dataclasses.replace(CLIP_224, mean=(0.0,) * 3, std=(1.0,) * 3)
    image = chw(ARRAYS[name])[None]
    gap = (plain(image) - plain(image.double() / 255)).abs()
    assert gap.max() < 1.3 / 255
    assert gap.mean() < 0.4 / 255


def test_floats_carry_a_gradient_through_every_stage() -> None:
    steps = (Resize(size=256, fit="square", filter="lanczos"), Resize(size=224, fit="shortest"))
    image = (
        (0.25 + 0.5 * torch.rand(1, 3, 40, 30, generator=torch.Generator().manual_seed(0))).double().requires_grad_()
    )
    prepare = Preprocess(size=224, resize=steps)
    weight = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((prepare(image) * weight).sum(), image)
    assert gradient[..., 5:35, :].ne(0).all()  # the square that is kept
    assert gradient[..., :5, :].eq(0).all()


SMART = SmartResize(factor=28, min_pixels=256 * 28 * 28, max_pixels=256 * 28 * 28)


@pytest.mark.parametrize("name", list(ARRAYS))
def test_proportions_are_kept_in_whole_patches(name: str) -> None:
    array = ARRAYS[name]
    (found,) = SMART([chw(array)])
    height, width = SMART.target(*array.shape[:2])
    resized = Image.fromarray(array).resize((width, height), Image.Resampling.BICUBIC)
    assert torch.equal(found, NORMALISE(TF.to_tensor(resized)))
    assert (height % 28, width % 28) == (0, 0) and abs(height / width / (array.shape[0] / array.shape[1]) - 1) < 0.15
    (floats,) = SMART([chw(array).double().div(255).requires_grad_()])
    assert floats.requires_grad and floats.dtype == torch.float64
    # Two roundings to 8 bits, whose second sees the first's.
    assert (floats - found).abs().max() < 1.5 / 255 / min(CLIP_STD)


def test_an_image_of_the_right_size_is_left_alone() -> None:
    image = torch.randint(0, 256, (3, 448, 448), dtype=torch.uint8)
    assert torch.equal(SMART(image[None])[0], NORMALISE(image / 255))


def test_what_is_no_image_for_patches_is_refused() -> None:
    for image in (torch.zeros(3, 40), torch.zeros(1, 40, 40), torch.zeros(3, 40, 40, dtype=torch.int32)):
        with pytest.raises(ValueError, match="images must be"):
            SMART([image])
    with pytest.raises(ValueError, match="200 times"):
        SMART([torch.zeros(3, 2, 401)])


def test_equal_preparations_are_one_key() -> None:
    assert len({CLIP_224, dataclasses.replace(CLIP_224), PROCESSOR_224}) == 2


def test_a_list_of_mixed_sizes() -> None:
    mixed = [chw(array) for array in ARRAYS.values()]
    out = CLIP_224(mixed)
    assert out.shape == (len(mixed), 3, 224, 224)
    assert torch.equal(out[1], CLIP_224(mixed[1][None])[0])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "uint8 in 0..255 or float"),
        (torch.zeros(3, 8, 8), r"\[B, 3, H, W\]"),
        (torch.zeros(1, 4, 8, 8), r"\[B, 3, H, W\]"),
        (torch.zeros(1, 3, 0, 8), r"\[B, 3, H, W\]"),
    ],
)
def test_what_is_no_image_is_refused(image: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CLIP_224(image)


@pytest.mark.parametrize("nothing", [[], torch.zeros(0, 3, 8, 8)])
def test_no_images_are_refused(nothing: list[torch.Tensor] | torch.Tensor) -> None:
    with pytest.raises(ValueError, match="give at least one"):
        CLIP_224(nothing)


def test_a_sliver_is_refused() -> None:
    prepare = Preprocess(size=224, resize=(Resize(size=224, fit="longest"),), library="torch")
    with pytest.raises(ValueError, match="crop it first"):
        prepare(torch.rand(1, 3, 1, 2000))

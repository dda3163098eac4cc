"""HPSv3 against the package's own class and preparation (`tests/upstream/make_hpsv3.py`), and what else it promises."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compared import compares
from hub import Hub
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_scorers import upstream, write_hpsv3
from upstream import make_hpsv3, seeded

from evaluate import layouts, scorers, weights
from evaluate.images import read_image
from evaluate.preprocess import SmartResize
from evaluate.scorers import hpsv3
from prompts.io.errors import UserError

UPSTREAM = Path(seeded.__file__).parent
REFERENCE = json.loads((UPSTREAM / "hpsv3.json").read_text(encoding="utf-8"))
#: Largest difference: 1e-5 of the range of the originals' scores. The original's own, of one image at a time from all
#: at once, was 2.1e-6.
WITHIN = 1e-5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_hpsv3(tmp_path, tmp_path)
    return tmp_path


def images(prefix: str = "") -> list[torch.Tensor]:
    """Of seven sizes, one grey, as they are read from files."""
    made = []
    for array in seeded.pictures(prefix).values():
        image = torch.from_numpy(array)
        made.append(image.permute(2, 0, 1) if image.ndim == 3 else image.expand(3, -1, -1))
    return made


def test_both_sides_saw_the_same(folder: Path) -> None:
    assert REFERENCE["make_sha256"] == weights.sha256(UPSTREAM / "make_hpsv3.py")
    for prefix, result in REFERENCE["prefixes"].items():
        assert seeded.sha256(make_hpsv3.weights(prefix, REFERENCE["layout"])) == result["weights_sha256"]
    said = hpsv3.INSTRUCTION.removeprefix("<|vision_end|>") + "{text_prompt}" + hpsv3.AFTER.partition("<|im_end|>")[0]
    assert hashlib.sha256(said.encode()).hexdigest() == REFERENCE["text_sha256"]


@pytest.mark.parametrize("prefix", seeded.PREFIXES)
@compares("hpsv3", "hpsv3/mrope")
def test_scores_are_the_originals(name: str, prefix: str, tmp_path: Path) -> None:
    write_hpsv3(tmp_path, tmp_path, prefix)
    scorer: Any = scorers.load(name, weights=str(tmp_path), dtype=torch.float32)
    prepared = scorer.prepare(images(prefix))
    table = torch.tensor(REFERENCE["prefixes"][prefix]["scores"][name])
    prompts = make_hpsv3.prompts(prefix)[:: 3 if name == "hpsv3/mrope" else 1]
    assert len(prompts) == len(table)
    with torch.no_grad():
        for prompt, theirs in zip(prompts, table, strict=True):
            found = scorer.assess(prepared, [prompt] * len(theirs), ())
            torch.testing.assert_close(found.columns[name], theirs[:, 0], atol=WITHIN, rtol=0)
            sigma = torch.tensor([each["sigma"] for each in found.details])
            torch.testing.assert_close(sigma, theirs[:, 1].exp(), atol=WITHIN, rtol=1e-5)


@pytest.mark.parametrize("prefix", seeded.PREFIXES)
def test_the_originals_tell_images_prompts_and_positions_apart(prefix: str) -> None:
    """By far more than what is tolerated, so the comparison can fail."""
    tables = {name: torch.tensor(rows)[..., 0] for name, rows in upstream("hpsv3", prefix)["scores"].items()}
    for table in tables.values():
        assert table.std(0).min() > 1000 * WITHIN and table.std(1).min() > 1000 * WITHIN
    assert (tables["hpsv3"][::3] - tables["hpsv3/mrope"]).abs().max() > 1000 * WITHIN


def test_tokens_and_grids_are_the_originals(folder: Path) -> None:
    scorer: Any = scorers.load("hpsv3", weights=str(folder), dtype=torch.float32)
    for prefix, result in REFERENCE["prefixes"].items():
        for image, grid, tokens in zip(images(prefix), result["grids"], result["tokens"], strict=True):
            height, width = hpsv3.PREPARE.target(*image.shape[1:])
            assert [1, height // 14, width // 14] == grid
            assert scorer.tokens(make_hpsv3.prompts(prefix)[-1], height * width // 28**2) == tokens


def test_sizes_are_those_of_transformers() -> None:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    rng = seeded.generator("sizes")
    for low, high in ((200704, 200704), (3136, 12845056), (100352, 401408)):
        prepare = SmartResize(factor=28, min_pixels=low, max_pixels=high)
        for height, width in rng.integers(28, 3000, (2000, 2)).tolist():
            assert prepare.target(height, width) == smart_resize(height, width, 28, low, high)
    with pytest.raises(ValueError, match="200 times"):
        hpsv3.PREPARE.target(10, 2001)


def test_patches_are_those_of_transformers() -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    array = seeded.pictures()["tall"]
    (image,) = hpsv3.PREPARE([torch.from_numpy(array).permute(2, 0, 1)])
    resized = Image.fromarray(array).resize((image.shape[2], image.shape[1]), Image.Resampling.BICUBIC)
    stock = Qwen2VLImageProcessorPil()(images=resized, return_tensors="pt")
    torch.testing.assert_close(hpsv3.patches(image), stock.pixel_values, atol=1e-6, rtol=0)


@pytest.mark.parametrize("grid", [(32, 32), (4, 90), (50, 20)])
def test_positions_are_those_of_transformers(folder: Path, grid: tuple[int, int]) -> None:
    scorer: Any = scorers.load("hpsv3/mrope", weights=str(folder), dtype=torch.float32)
    ids = torch.tensor([scorer.tokens("a cat", grid[0] * grid[1] // 4)])
    image = ids == scorer.tokenizer.token_to_id(hpsv3.IMAGE)
    stock, _ = scorer.model.get_rope_index(ids, image.int(), image_grid_thw=torch.tensor([[1, *grid]]))
    assert torch.equal(hpsv3.positions(ids.shape[1], int(image[0].int().argmax()), grid), stock[:, 0])


@pytest.mark.parametrize("name", ["hpsv3", "hpsv3/mrope"])
def test_neither_padding_nor_company_changes_a_score(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hpsv3, "CPU_BATCH", 8)
    scorer = scorers.load(name, weights=str(folder), dtype=torch.float32)
    eight, prompts = images()[:4] * 2, ["a cat", "", "a very long prompt that goes on, " * 12, "{} 猫", *"abcd"]
    alone = torch.cat([scorer.score([image], [prompt]) for image, prompt in zip(eight, prompts, strict=True)])
    torch.testing.assert_close(scorer.score(eight, prompts), alone, atol=WITHIN, rtol=0)


def rotate(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Rotary positions of patches."""
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    halves = [torch.cat((-x.chunk(2, -1)[1], x.chunk(2, -1)[0]), -1) for x in (q, k)]
    return tuple(x * cos + half * sin for x, half in zip((q, k), halves, strict=True))


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' functions that compute in float32 whatever comes in compute in what comes in."""
    from transformers.models.qwen2_vl import modeling_qwen2_vl

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(x, x.shape[-1:], self.weight, self.variance_epsilon)

    monkeypatch.setattr(modeling_qwen2_vl, "apply_rotary_pos_emb_vision", rotate)
    monkeypatch.setattr(modeling_qwen2_vl.Qwen2VLRMSNorm, "forward", forward)


@pytest.mark.parametrize("name", ["hpsv3", "hpsv3/mrope"])
def test_the_gradient_is_that_of_the_score(name: str, folder: Path, real_scorers: Hub, float64: None) -> None:
    """In float64, along a random direction, against a central difference; images of two sizes."""
    scorer: Any = scorers.load(name, weights=str(folder)).double()
    generator = torch.Generator().manual_seed(0)
    # Away from 0 and 1, where the resampling clamps and the derivative is one-sided.
    sizes = ((90, 64), (50, 120))
    some = [0.3 + 0.4 * torch.rand(3, *size, generator=generator, dtype=torch.float64) for size in sizes]
    directions = [torch.randn(image.shape, generator=generator, dtype=torch.float64) for image in some]

    def score(step: float) -> torch.Tensor:
        moved = [image + step * direction for image, direction in zip(some, directions, strict=True)]
        return scorer.rate(scorer.prepare(moved), ["a red cat", "{}"])[:, 0].sum()

    for image in some:
        image.requires_grad_()
    gradients = torch.autograd.grad(score(0.0), some)
    along = sum((gradient * direction).sum() for gradient, direction in zip(gradients, directions, strict=True))
    with torch.no_grad():
        difference = (score(1e-5) - score(-1e-5)) / 2e-5
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    torch.testing.assert_close(along, difference, rtol=1e-5, atol=1e-8)


def test_at_full_size_it_has_the_originals_tensors() -> None:
    """Under our names the original's, less the logits over words, and with a word more than the tokenizer had."""
    with layouts.first(), torch.device("meta"):
        ours: Any = scorers.load("hpsv3", device="meta", random_weights=True)
    theirs: dict[str, int] = {}
    for line, count in REFERENCE["published"].items():
        name, shape = line.split(" ", 1)
        for renamed in hpsv3.rename({name.replace("*", "0"): torch.empty(json.loads(shape), device="meta")}):
            sizes = [151658, 3584] if "embed_tokens" in renamed else json.loads(shape)
            theirs |= dict.fromkeys(seeded.census({renamed: sizes}), count)
    assert theirs == seeded.census({name: list(tensor.shape) for name, tensor in ours.state_dict().items()})
    # What the published model.safetensors.index.json counts of Qwen2-VL-7B-Instruct, in bfloat16; its words and ours.
    head = sum(parameter.numel() for parameter in ours.head.parameters())
    assert sum(p.numel() for p in ours.parameters()) == 16_582_751_232 // 2 - (2 * 152064 - 151658) * 3584 + head
    assert ours.tokenizer.token_to_id(hpsv3.REWARD) == 151657


def test_what_was_published_in_bfloat16_stays_so_and_the_head_is_float32(folder: Path) -> None:
    tensors = load_file(folder / hpsv3.FILE)
    save_file({key: t if "rm_head" in key else t.bfloat16() for key, t in tensors.items()}, folder / hpsv3.FILE)
    scorer: Any = hpsv3.load("hpsv3", weights.Files(str(folder)))
    assert {p.dtype for p in scorer.model.parameters()} == {torch.bfloat16}
    assert not any(tensor.is_meta for tensor in [*scorer.parameters(), *scorer.buffers()])
    half: Any = scorers.load("hpsv3", weights=str(folder), dtype=torch.bfloat16)
    assert {p.dtype for p in half.head.parameters()} == {torch.float32}
    assert torch.equal(half.head[0].weight, tensors["rm_head.0.weight"])
    assert {p.dtype for p in half.double().head.parameters()} == {torch.float64}


def test_a_prompt_that_holds_the_networks_own_tokens_is_refused(folder: Path) -> None:
    scorer = scorers.load("hpsv3", weights=str(folder), dtype=torch.float32)
    for token in (hpsv3.REWARD, hpsv3.IMAGE):
        with pytest.raises(UserError, match="means something else") as caught:
            scorer.score([images()[0]], [f"a {token} cat"])
        assert token in str(caught.value)


def test_other_files_are_refused(folder: Path) -> None:
    tensors = load_file(folder / hpsv3.FILE)
    save_file({key: tensor for key, tensor in tensors.items() if key != "rm_head.5.bias"}, folder / hpsv3.FILE)
    with pytest.raises(UserError, match=r"'head\.5\.bias' is missing"):
        scorers.load("hpsv3", weights=str(folder), dtype=torch.float32)
    (folder / "config.json").write_text('{"model_type": "qwen2_vl", "vision_config": 1}')
    with pytest.raises(UserError, match=r"config\.json: not the config of a Qwen2-VL"):
        scorers.load("hpsv3", weights=str(folder), dtype=torch.float32)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer"):
        scorers.load("hpsv3", weights=str(folder), dtype=torch.float32)


def test_images_are_read_as_files_have_them(tmp_path: Path) -> None:
    """What `images` stands for above."""
    for array, image in zip(seeded.pictures().values(), images(), strict=True):
        Image.fromarray(array).save(tmp_path / "image.png")
        assert torch.equal(read_image(tmp_path / "image.png"), image)

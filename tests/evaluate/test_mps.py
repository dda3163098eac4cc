"""MPS against its authors' own code (`tests/upstream/make_mps.py`), and what else it promises."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compared import compares
from hub import Hub
from PIL import Image
from safetensors.torch import save_file
from tiny_scorers import torched, upstream
from torch import nn
from upstream import make_mps, seeded

from evaluate import layouts, scorers, weights
from evaluate.images import read_image
from evaluate.scorers import mps
from prompts.io.errors import UserError

UPSTREAM = Path(seeded.__file__).parent
REFERENCE = json.loads((UPSTREAM / "mps.json").read_text(encoding="utf-8"))
VARIANTS = ["mps", "mps/forward"]
#: Largest difference: 1e-5 of the range of the originals' scores, which is over 20.
WITHIN = 2e-4


@pytest.fixture(autouse=True)
def _small(real_scorers: Hub) -> None:
    """Few layers, as the hub's."""


def write(folder: Path, prefix: str = "", name: str = "mps.{}") -> dict[str, torch.Tensor]:
    """The originals' files. name: how the file names tensors."""
    vocabulary, pairs = make_mps.words()
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{pair}\n" for pair in pairs), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(make_mps.config()), encoding="utf-8")
    made = torched(make_mps.weights(prefix, upstream("mps", prefix)["layout"]))
    made = {name.format(key): tensor for key, tensor in made.items()}
    save_file(made, folder / mps.FILE)
    return made


def test_both_sides_saw_the_same() -> None:
    assert REFERENCE["make_sha256"] == weights.sha256(UPSTREAM / "make_mps.py")
    assert make_mps.CONDITION == mps.CONDITION
    for prefix, result in REFERENCE["prefixes"].items():
        assert seeded.sha256(make_mps.weights(prefix, result["layout"])) == result["weights_sha256"]
    assert {f"Kwai-Kolors/MPS {REFERENCE['commit'][:7]}"} == set(mps.VERIFIED_BY.values())


@pytest.mark.parametrize("prefix", seeded.PREFIXES)
@compares("mps", "mps/forward")
def test_scores_are_the_originals(name: str, prefix: str, tmp_path: Path) -> None:
    write(tmp_path, prefix)
    scorer: Any = scorers.load(name, weights=str(tmp_path))
    result, prompts = REFERENCE["prefixes"][prefix], seeded.prompts(prefix)
    assert scorer.encode(prompts)["ids"].tolist() == result["tokens"]
    images = []
    for image, array in seeded.pictures(prefix).items():
        Image.fromarray(array).save(tmp_path / f"{image}.png")
        images.append(read_image(tmp_path / f"{image}.png"))
    theirs = torch.tensor([*result["scores"][name].values()])
    # All prompts at once, which the original would not do.
    pairs = [(image, prompt) for image in images for prompt in prompts]
    ours = scorer.score([image for image, _ in pairs], [prompt for _, prompt in pairs])
    torch.testing.assert_close(ours.reshape(theirs.shape), theirs, atol=WITHIN, rtol=0)


@pytest.mark.parametrize("prefix", seeded.PREFIXES)
def test_the_originals_tell_images_prompts_and_thresholds_apart(prefix: str) -> None:
    tables = {name: torch.tensor([*rows.values()]) for name, rows in upstream("mps", prefix)["scores"].items()}
    for table in tables.values():
        assert table.std(0).min() > 1000 * WITHIN and table.std(1).min() > 1000 * WITHIN
        assert table.max() - table.min() > WITHIN / 1e-5
    assert (tables["mps"] - tables["mps/forward"]).abs().max() > 1000 * WITHIN


def test_a_prompt_is_masked_by_itself(tmp_path: Path) -> None:
    """Where it is by the largest of the batch, its company changes what is seen of it."""
    write(tmp_path)
    scorer: Any = scorers.load("mps", weights=str(tmp_path))
    words = torch.tensor([[[1.0], [0.2]], [[10.0], [4.0]]])
    assert scorer.mask(words, torch.tensor([[0.5], [1.0]])).tolist() == [[True, False], [True, True]]
    forward: Any = scorers.load("mps/forward", weights=str(tmp_path))
    assert forward.mask(words, torch.tensor([[0.5], [1.0]])).all()


@pytest.mark.parametrize("name", ["mps.{}", "{}"])
def test_either_way_of_naming_tensors_is_read(name: str, tmp_path: Path) -> None:
    made = write(tmp_path, name=name)
    extra = {name.format("model.text_model.embeddings.position_ids"): torch.arange(77)[None]}
    extra |= {name.format(f"cross_model.layers.0.{i}.fn.norm.bias"): torch.zeros(make_mps.WIDTH) for i in (0, 1)}
    extra[name.format("cross_model.layers.0.1.fn.rotary_emb.inv_freq")] = torch.ones(4)
    save_file(made | extra, tmp_path / mps.FILE)
    assert scorers.load("mps", weights=str(tmp_path)).protocol == "mps"
    del made[name.format("cross_model.layers.1.1.fn.attn_out.weight")]
    save_file(made, tmp_path / mps.FILE)
    with pytest.raises(UserError, match=r"'cross\.1\.1\.attn_out\.weight' is missing"):
        scorers.load("mps", weights=str(tmp_path))


def test_a_pickle_of_the_whole_module_is_refused(tmp_path: Path) -> None:
    """Which is what the authors publish."""
    write(tmp_path)
    torch.save(nn.Linear(1, 1), tmp_path / "MPS_overall_checkpoint.pth")
    with pytest.raises(UserError, match="convert it to safetensors"):
        scorers.load("mps", weights=str(tmp_path / "MPS_overall_checkpoint.pth"))


def test_at_full_size_it_has_the_originals_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CLIP's, as many as published, and those of four layers behind it, under the authors' names."""
    for name, value in (("LAYERS", 4), ("HEADS", 16), ("HEAD_WIDTH", 64)):
        monkeypatch.setattr(mps, name, value)
    with layouts.first(), torch.device("meta"):
        ours: Any = scorers.load("mps", device="meta", random_weights=True)
    assert sum(parameter.numel() for parameter in ours.clip.parameters()) == 986_109_441
    shapes = {name: list(tensor.shape) for name, tensor in ours.cross.state_dict().items()}
    layer = {
        "0.norm.weight": [1024], "0.to_q.weight": [1024, 1024], "0.to_kv.weight": [128, 1024],
        "0.to_out.weight": [1024, 1024], "0.ff.0.weight": [8192, 1024], "0.ff.2.weight": [1024, 4096],
        "1.norm.weight": [1024], "1.fused_attn_ff_proj.weight": [9344, 1024], "1.attn_out.weight": [1024, 1024],
        "1.ff_out.1.weight": [1024, 4096],
    }  # fmt: skip
    assert shapes == {f"{i}.{name}": shape for i in range(4) for name, shape in layer.items()}

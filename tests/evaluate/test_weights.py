"""Weights are untrusted: plain tensors, matched key by key, or one sentence that says what is wrong."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from evaluate import keyed, pipelines, weights
from prompts.io.errors import UserError


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this must never run",)


def test_plain_files_are_read(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3.0), "b": torch.eye(2)}
    save_file(tensors, tmp_path / "w.safetensors")
    torch.save({"state_dict": tensors}, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        read = weights.read(tmp_path / name)
        assert all(torch.equal(read[key], tensors[key]) for key in tensors)


def test_a_pickle_of_code_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": Evil()}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"w\.pt: a pickle that holds more than plain tensors"):
        weights.read(tmp_path / "w.pt")
    assert "never" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_a_truncated_file_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    tensors = {"a": torch.randn(1000)}
    save_file(tensors, path) if name.endswith("s") else torch.save(tensors, path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match="truncated"):
        weights.read(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such weights file"):
        weights.read(tmp_path / "none.pt")


def test_what_holds_no_tensors_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "w.pt")
    with pytest.raises(UserError, match="not a mapping of names to tensors"):
        weights.read(tmp_path / "w.pt")


def test_keys_and_shapes_must_match() -> None:
    module = nn.Linear(2, 3)
    good = dict(module.state_dict())
    weights.load_strict(module, good, "w")
    for bad, message in (
        ({"weight": good["weight"]}, "'bias' is missing"),
        (good | {"scale": torch.ones(1)}, "'scale' is not known"),
        (good | {"bias": torch.ones(4)}, "'bias' has shape"),
    ):
        with pytest.raises(UserError, match=message):
            weights.load_strict(module, bad, "w")


def damage(folder: Path, tiny: Path, component: str) -> Path:
    import shutil

    shutil.copytree(tiny, folder)
    return next((folder / component).glob("*.safetensors"))


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_a_pipeline_with_a_key_too_few_is_refused(tmp_path: Path, tiny: Path, component: str) -> None:
    path = damage(tmp_path / "m", tiny, component)
    tensors = weights.read(path)
    dropped = next(key for key in tensors if key.endswith("bias"))
    save_file({key: value for key, value in tensors.items() if key != dropped}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=component):
        pipelines.load(str(tmp_path / "m"))


def test_a_truncated_pipeline_is_refused(tmp_path: Path, tiny: Path) -> None:
    path = damage(tmp_path / "m", tiny, "unet")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="truncated"):
        pipelines.load(str(tmp_path / "m"))


def test_a_bare_network_over_a_pipeline(tmp_path: Path, tiny: Path) -> None:
    whole = pipelines.load(str(tiny))
    folder = tmp_path / "bare"
    unet = whole.unet
    with torch.no_grad():
        unet.conv_out.bias += 1
    unet.save_pretrained(folder / "unet")
    (folder / "recipe.yaml").write_text(
        f"pipeline: {tiny}\nunet: unet\nsteps: 1\ntimesteps: [625]\nguidance_scale: 1.0\n"
    )
    loaded, recipe = pipelines.load(str(folder)), pipelines.read_recipe(str(folder))
    assert torch.equal(loaded.unet.conv_out.bias, unet.conv_out.bias)
    assert recipe.call() == {"timesteps": [625], "guidance_scale": 1.0}
    (folder / "unet" / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        pipelines.load(str(folder))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: -1", "steps"),
        ("speed: 3", "speed"),
        ("steps: [", "not valid YAML"),
        ("{steps: 4, sigmas: [1.0, 0.5]}", r"yaml: steps 4 contradicts sigmas, of which there are 2; leave steps out$"),
    ],
)
def test_a_bad_recipe_names_the_field(tmp_path: Path, tiny: Path, text: str, message: str) -> None:
    damage(tmp_path / "m", tiny, "unet")
    (tmp_path / "m" / "recipe.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        pipelines.read_recipe(str(tmp_path / "m"))


def test_noise_depends_on_seed_and_key_alone() -> None:
    a = keyed.noise((4, 8, 8), seed=1, key="prompt 7")
    torch.rand(100)
    assert torch.equal(a, keyed.noise((4, 8, 8), seed=1, key="prompt 7"))
    assert not torch.equal(a, keyed.noise((4, 8, 8), seed=2, key="prompt 7"))
    assert not torch.equal(a, keyed.noise((4, 8, 8), seed=1, key="prompt 8"))

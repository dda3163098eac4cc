"""What a network starts from, and what happens to files that do not match it."""

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
from hub import Hub
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import save_file
from torch import Tensor, nn

from align.networks.initial import load_into
from align.networks.lora import LoraConfig as Adapters
from align.networks.roles import Roles
from evaluate.families import UNET_LAYERS
from evaluate.pipelines import lora as loras
from evaluate.pipelines.address import hub_id
from prompts.io.errors import UserError


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a run has."""
    return tiny_families.pipeline("sdxl", tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def unets(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, nn.Module]:
    """Two of one architecture: the pipeline's, and what a run shall start from."""
    return pipeline.unet, tiny_families.pipeline("sdxl", tmp_path_factory.mktemp("other"), seed=1).unet


def same(a: nn.Module, b: nn.Module, *, tolerance: float = 0.0) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all((mine[key] - theirs[key]).abs().max() <= tolerance for key in mine)


def publish(hub: Hub, repository: str, revision: str = "main") -> Path:
    return hub.folder(f"tests-of-start/{repository}", revision)


def test_names() -> None:
    assert hub_id("tianweiy/DMD2/dmd2_sdxl_1step_unet_fp16.bin@be22") == (
        "tianweiy/DMD2",
        "dmd2_sdxl_1step_unet_fp16.bin",
        "be22",
    )
    assert hub_id("a/b/c/d.safetensors") == ("a/b", "c/d.safetensors", "main")
    assert hub_id("mhdang/dpo-sdxl-text2image-v1") == ("mhdang/dpo-sdxl-text2image-v1", None, "main")
    for path in ("runs/pixart-di/checkpoint", "/a/b.bin", "./a/b", "~/a/b.bin", "a"):
        assert hub_id(path) is None


def write(module: Any, place: str, folder: Path, hub: Hub) -> str:
    """The module's weights where `place` says, and what a user calls it there."""
    half = {key: value.half() for key, value in module.state_dict().items()}
    if place == "folder":
        module.save_pretrained(folder / "own")
        return str(folder / "own")
    if place == "subfolder":
        module.save_pretrained(folder / "pipeline" / "unet", max_shard_size="40KB")
        assert len(list((folder / "pipeline" / "unet").glob("*.safetensors"))) > 1
        return str(folder / "pipeline")
    if place == "file":
        torch.save(half, folder / "bare.bin")
        return str(folder / "bare.bin")
    if place == "hub":
        module.save_pretrained(publish(hub, "pipeline", "v1") / "unet")
        return "tests-of-start/pipeline@v1"
    if place == "hub root":
        module.save_pretrained(publish(hub, "root"))
        return "tests-of-start/root"
    torch.save(half, publish(hub, "files", "f" * 40) / "one_step_fp16.bin")
    return f"tests-of-start/files/one_step_fp16.bin@{'f' * 40}"


@pytest.mark.parametrize("place", ["folder", "subfolder", "file", "hub", "hub root", "hub file"])
def test_weights_come_from_anywhere(
    pipeline: Any, unets: tuple[Any, Any], tmp_path: Path, published: Hub, place: str
) -> None:
    network = copy.deepcopy(unets[0])
    load_into(pipeline, "unet", network, write(unets[1], place, tmp_path, published))
    assert same(network, unets[1], tolerance=1e-3 if "file" in place else 0.0)
    assert not same(network, unets[0], tolerance=1e-2)


def lora(module: nn.Module, form: str) -> tuple[dict[str, Tensor], nn.Module]:
    """A random LoRA of some layers as `form` writes it, and the module that peft makes with it."""
    torch.manual_seed(5)
    adapted = copy.deepcopy(module)
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["to_q", "conv1", "proj_in"], init_lora_weights=False)
    inject_adapter_in_model(config, adapted)
    state = {key: value.clone() for key, value in get_peft_model_state_dict(adapted).items()}
    if form == "kohya":
        names = {key: key.rpartition(".lora_")[0] for key in state}
        parts = {"A": "down", "B": "up"}
        written = {
            f"lora_unet_{name.replace('.', '_')}.lora_{parts[key[-8]]}.weight": state[key]
            for key, name in names.items()
        }
        written |= {f"lora_unet_{name.replace('.', '_')}.alpha": torch.tensor(6.0) for name in names.values()}
        return written, adapted
    # Without an alpha the product counts once.
    doubled = {key: 2 * value if ".lora_B." in key else value for key, value in state.items()}
    if form == "diffusers":
        old = {".lora_A.": ".lora.down.", ".lora_B.": ".lora.up."}
        return {f"unet.{key}".replace(key[-14:-6], old[key[-14:-6]]): value for key, value in doubled.items()}, adapted
    return {f"unet.{key}": value for key, value in doubled.items()}, adapted


@pytest.mark.parametrize("form", ["peft", "diffusers", "kohya"])
def test_a_lora_is_added_to_the_weights(pipeline: Any, unets: tuple[Any, Any], tmp_path: Path, form: str) -> None:
    tensors, adapted = lora(unets[0], form)
    save_file(tensors, tmp_path / "pytorch_lora_weights.safetensors")
    x, t, text = torch.randn(2, 4, 8, 8), torch.tensor([3, 500]), torch.randn(2, 5, 32)
    given = {
        "encoder_hidden_states": text,
        "added_cond_kwargs": {"text_embeds": torch.randn(2, 12), "time_ids": torch.ones(2, 6)},
    }
    for source in (tmp_path, tmp_path / "pytorch_lora_weights.safetensors"):
        network = copy.deepcopy(unets[0])
        load_into(pipeline, "unet", network, str(source))
        with torch.no_grad():
            mine, theirs, before = (module(x, t, **given).sample for module in (network, adapted, unets[0]))
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
        assert (mine - before).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("family", "spelling"),
    [
        *((family, spelling) for family in ("sd15", "sdxl", "pixart") for spelling in ("diffusers", "before", "peft")),
        ("sd15", "kohya"),
        ("sdxl", "kohya"),
        ("sdxl", "peft's adapter"),
        ("qwenimage", "lightning"),
    ],
)
def test_a_lora_of_every_layer_is_its_products(tmp_path: Path, family: str, spelling: str) -> None:
    """`alpha / rank * up @ down` (Hu et al. 2021, section 4.1) for every layer that a spelling has a name for."""
    pipeline = tiny_families.pipeline(family, tmp_path)
    name = "transformer" if family in ("pixart", "qwenimage") else "unet"
    network = getattr(pipeline, name)
    half = spelling in ("kohya", "lightning")  # an alpha of 1 over a rank of 2
    stem, (down, up) = {
        "diffusers": (f"{name}.{{}}", ("lora_A", "lora_B")),
        "before": (f"{name}.{{}}", ("lora.down", "lora.up")),
        "peft": ("base_model.model.{}", ("lora_A", "lora_B")),
        "peft's adapter": ("base_model.model.{}", ("lora_A.default", "lora_B.default")),
        "kohya": ("lora_unet_{}", ("lora_down", "lora_up")),
        "lightning": ("{}", ("lora_down", "lora_up")),
    }[spelling]
    tensors, expected = {}, {}
    torch.manual_seed(7)
    for key, layer in network.named_modules():
        # kohya's scripts train what is in blocks.
        if not isinstance(layer, nn.Linear | nn.Conv2d) or (half and "block" not in key):
            continue
        a = torch.randn(2, *layer.weight.shape[1:])
        b = torch.randn(len(layer.weight), 2, *[1] * (layer.weight.dim() - 2))
        stemmed = stem.format(key.replace(".", "_") if spelling == "kohya" else key)
        tensors |= {f"{stemmed}.{down}.weight": a, f"{stemmed}.{up}.weight": b}
        if half:
            tensors[f"{stemmed}.alpha"] = torch.tensor(1.0)
        product = (b.flatten(1) @ a.flatten(1)).reshape(layer.weight.shape) * (0.5 if half else 1.0)
        expected[f"{key}.weight"] = layer.weight + product
    before = copy.deepcopy(network)
    loras.add(pipeline, name, tensors, "a.safetensors", network=(added := copy.deepcopy(network)))
    assert type(added) is type(network) and same(network, before)
    state = added.state_dict()
    assert len(expected) > 20 and state.keys() == before.state_dict().keys()
    for key, value in before.state_dict().items():
        torch.testing.assert_close(state[key], expected.get(key, value), rtol=1e-5, atol=1e-5)
    loras.add(pipeline, name, tensors, "a.safetensors")
    assert same(network, added)


def test_a_lora_of_sdxl_under_the_names_of_its_first_code(pipeline: Any) -> None:
    """Which numbers all levels' blocks in one row, as kohya's scripts write SDXL's."""
    network = pipeline.unet
    places = {  # of one block a level, the second of which attends
        "down_blocks.0.resnets.0.conv1": "input_blocks_1_0_in_layers_2",
        "down_blocks.1.attentions.0.proj_in": "input_blocks_3_1_proj_in",
        "mid_block.attentions.0.proj_out": "middle_block_1_proj_out",
        "up_blocks.0.resnets.0.conv_shortcut": "output_blocks_0_0_skip_connection",
    }
    layers = {key: network.get_submodule(key) for key in places}
    tensors = {}
    for key, place in places.items():
        shape = layers[key].weight.shape
        tensors |= {
            f"lora_unet_{place}.lora_down.weight": torch.randn(2, *shape[1:]),
            f"lora_unet_{place}.lora_up.weight": torch.randn(shape[0], 2, *[1] * (len(shape) - 2)),
        }
    added = copy.deepcopy(network)
    loras.add(pipeline, "unet", tensors, "a.safetensors", network=added)
    changed = {key for key, value in added.state_dict().items() if not value.equal(network.state_dict()[key])}
    assert changed == {f"{key}.weight" for key in places}


def test_keys_that_do_not_match_are_errors(pipeline: Any, unets: tuple[Any, Any], tmp_path: Path) -> None:
    network, whole = copy.deepcopy(unets[0]), dict(unets[1].state_dict())
    first = sorted(whole)[0]
    wrong = {
        "is missing": {key: value for key, value in whole.items() if key != first},
        "is not known": whole | {"surplus.weight": torch.zeros(1)},
        "has shape": whole | {first: torch.zeros(1, 2, 3)},
    }
    for message, tensors in wrong.items():
        torch.save(tensors, tmp_path / "wrong.bin")
        with pytest.raises(UserError, match=message):
            load_into(pipeline, "unet", network, str(tmp_path / "wrong.bin"))
    assert same(network, unets[0])


def test_a_lora_that_does_not_fit_is_an_error_and_changes_nothing(pipeline: Any, unets: tuple[Any, Any]) -> None:
    network = copy.deepcopy(unets[0])
    good, _ = lora(unets[0], "peft")
    some = next(key for key in good if "to_q" in key and "lora_A" in key)
    n = len(good)
    text = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_{}.weight"
    wrong = {
        f"{n} of {n + 2} matrices find a place": [
            good | {text.format("A"): torch.zeros(3, 16), text.format("B"): torch.zeros(16, 3)}
        ],
        f"{n} of {n + 1} matrices find a place": [
            good | {"unet.nowhere.lora_A.weight": torch.zeros(3, 16)},
            good | {"unet.down_blocks.0.resnets.0.conv1.dora_scale": torch.zeros(8)},
        ],
        f"{n} of {n - 1} matrices": [{key: value for key, value in good.items() if key != some}],
        "does not fit UNet2DConditionModel": [
            good | {some: torch.zeros(3, 99)},
            good | {text.format("A"): torch.zeros(3, 16)},
        ],
    }
    texts = copy.deepcopy(pipeline.text_encoder)
    for message, broken in wrong.items():
        for tensors in broken:
            with pytest.raises(UserError, match=message):
                loras.add(pipeline, "unet", tensors, "a.safetensors", network=network)
            assert not hasattr(network, "peft_config") or not network.peft_config
    assert same(pipeline.text_encoder, texts)
    assert same(network, unets[0])


def test_sources_that_are_not_there(pipeline: Any, unets: tuple[Any, Any], tmp_path: Path, published: Hub) -> None:
    (publish(published, "empty") / "README.md").write_text("nothing")
    for source, message in {
        "tests-of-start/nothing": "cannot be fetched",
        "tests-of-start/empty": "holds neither a unet nor pytorch_lora_weights.safetensors",
        "tests-of-start/empty/unet.bin": "unet.bin cannot be fetched",
        "runs/earlier/checkpoint": "no such folder",
        str(tmp_path / "absent.bin"): "no such folder",
        str(tmp_path): "holds neither",
    }.items():
        with pytest.raises(UserError, match=message):
            load_into(pipeline, "unet", unets[0], source)


def test_frozen_weights_are_stored_as_autocast_computes(unets: tuple[Any, Any]) -> None:
    """Half the memory for the same bits."""
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 500])
    given = {
        "encoder_hidden_states": torch.randn(2, 5, 32),
        "added_cond_kwargs": {"text_embeds": torch.randn(2, 12), "time_ids": torch.ones(2, 6)},
    }
    networks = copy.deepcopy(unets)
    with torch.no_grad():
        for parameter in networks[1].parameters():
            parameter += 0.1 * torch.randn_like(parameter)  # fresh norms are ones and zeros, which any dtype holds
    outputs = []
    for dtype in (torch.float32, torch.bfloat16):
        roles = Roles(*copy.deepcopy(networks), same=False, lora=None, checkpointing=False, frozen=dtype)
        assert {p.dtype for p in roles.student.parameters()} == {torch.float32}
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            outputs.append(roles.reference(x, t, **given).sample)
    assert roles.reference.get_parameter("conv_in.weight").dtype == torch.bfloat16
    assert outputs[0].equal(outputs[1])


@pytest.mark.parametrize("same", [True, False])
def test_adapters_are_trained_in_float32_over_a_half_precision_base(unets: tuple[Any, Any], same: bool) -> None:
    """In bfloat16 an optimiser's step of 1e-5 would be rounded away."""
    roles = Roles(
        *copy.deepcopy(unets),
        same=same,
        lora=Adapters(rank=2, alpha=2.0, target_modules=UNET_LAYERS),
        checkpointing=False,
        frozen=torch.bfloat16,
    )
    for role in (roles.student, roles.assistant):
        assert role.base.get_parameter("conv_in.weight").dtype == torch.bfloat16  # type: ignore[union-attr]
        for name, parameter in roles.trainable(role).items():
            before = parameter.detach().clone().fill_(0.02)
            with torch.no_grad():
                parameter.copy_(before + 1e-5)
            assert not parameter.equal(before), name

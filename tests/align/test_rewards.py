"""Rewards through the autoencoder."""

from pathlib import Path

import pytest
import torch

from align.rewards import differentiable as rewards_module
from align.rewards.decoder import Decoder
from align.rewards.differentiable import Reward, Rewards
from evaluate import families, pipelines
from evaluate.families import Family
from prompts.io.errors import UserError

PROMPTS = ["a small red circle on a white background", "two blue squares on a grey background"]


@pytest.fixture
def x0() -> torch.Tensor:
    return torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()


def test_decoding_is_what_stock_diffusers_does(tiny: Path, x0: torch.Tensor) -> None:
    pipeline = pipelines.load(str(tiny))
    with torch.no_grad():
        stock = pipeline.vae.decode(x0 / pipeline.vae.config.scaling_factor)[0]
        expected = pipeline.image_processor.postprocess(stock, output_type="pt")
    torch.testing.assert_close(Decoder(pipeline.vae)(x0), expected)


def test_latents_with_a_mean_and_a_spread_are_decoded_as_stock_diffusers_does(tiny: Path, x0: torch.Tensor) -> None:
    vae = pipelines.load(str(tiny)).vae
    mean, spread = [0.1, -0.2, 0.3, 0.4], [1.1, 0.9, 1.3, 0.7]
    vae.register_to_config(latents_mean=mean, latents_std=spread)
    per_channel = (torch.tensor(values).view(1, 4, 1, 1) for values in (mean, spread))
    shift, scale = per_channel
    with torch.no_grad():
        expected = vae.decode(x0 * scale / vae.config.scaling_factor + shift)[0]
        torch.testing.assert_close(Family().decode(vae, x0), expected)


@pytest.mark.parametrize("tiny_vae", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_reaches_the_latents_and_nothing_else(
    tiny: Path, tmp_path: Path, tiny_clip: None, x0: torch.Tensor, tiny_vae: bool, checkpointing: bool
) -> None:
    from diffusers import AutoencoderTiny

    path = None
    if tiny_vae:
        blocks = {
            "encoder_block_out_channels": (8, 8),
            "decoder_block_out_channels": (8, 8),
            "num_encoder_blocks": (1, 1),
            "num_decoder_blocks": (1, 1),
        }
        AutoencoderTiny(**blocks).save_pretrained(tmp_path / "tiny")
        path = str(tmp_path / "tiny")
    vae = pipelines.load(str(tiny)).vae
    rewards = Rewards(
        [Reward(scorer="shapes/clip", scale=2.0)], Decoder(vae, tiny=path, checkpointing=checkpointing), device="cpu"
    )
    total, each = rewards(x0, PROMPTS)
    torch.testing.assert_close(total.detach(), 2 * each["shapes/clip"])
    total.mean().backward()
    assert x0.grad is not None
    assert x0.grad.flatten(1).norm(dim=1).gt(0).all()
    assert all(
        p.grad is None for p in [*rewards.decoder.vae.parameters(), *rewards.scorers["shapes/clip"].parameters()]
    )


def test_several_rewards_are_summed_with_their_scales(
    tiny: Path, clip_folder: Path, tiny_clip: None, x0: torch.Tensor
) -> None:
    given = [
        Reward(scorer="shapes/clip", scale=2.0),
        Reward(scorer="shapes/preference", scale=-0.5, weights=str(clip_folder)),
    ]
    total, each = Rewards(given, Decoder(pipelines.load(str(tiny)).vae), device="cpu")(x0, PROMPTS)
    torch.testing.assert_close(total.detach(), 2.0 * each["shapes/clip"] - 0.5 * each["shapes/preference"])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_is_the_same_taken_for_a_few_latents_at_a_time(
    tiny: Path, tiny_clip: None, monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    monkeypatch.setattr(rewards_module, "AT_A_TIME", 2)
    x0 = torch.randn(5, 4, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    prompts = [f"{number} red circles" for number in range(5)]
    decoder = Decoder(pipelines.load(str(tiny), dtype=torch.float64).vae, checkpointing=checkpointing)
    rewards = Rewards([Reward(scorer="shapes/clip", scale=2.0)], decoder, device="cpu", dtype=torch.float64)
    whole = rewards(x0, prompts)
    sizes: list[int] = []
    rewards.scorers["shapes/clip"].register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    parts = rewards.some_at_a_time(x0, prompts)
    assert sizes == ([1] * 5 if checkpointing else [2, 2, 1])
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)
    (expected,), (found,) = (torch.autograd.grad((weights * each[0]).sum(), x0) for each in (whole, parts))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(parts[0].float(), whole[0].float())
    torch.testing.assert_close(parts[1], whole[1])
    assert expected.flatten(1).norm(dim=1).gt(0).all()


def test_of_one_latent_the_decoder_keeps_what_lies_between_its_blocks(tiny: Path, x0: torch.Tensor) -> None:
    kept, gradients = [], []
    for checkpointing in (False, True):
        sizes: dict[int, int] = {}

        def keep(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        decoder = Decoder(pipelines.load(str(tiny)).vae, checkpointing=checkpointing)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            images = decoder(x0[:1])
            kept.append(sum(sizes.values()))  # before the gradient, which makes the blocks' own again
        gradients += torch.autograd.grad(images.square().sum(), x0)
    torch.testing.assert_close(*gradients)
    assert gradients[0].norm() > 0
    assert kept[1] < kept[0] / 2


def test_a_scorer_without_a_gradient_is_no_reward(tiny: Path) -> None:
    with pytest.raises(UserError, match="passes no gradient"):
        Rewards([Reward(scorer="shapes/oracle", scale=1.0)], Decoder(pipelines.load(str(tiny)).vae), device="cpu")


def test_a_missing_tiny_autoencoder_is_named(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="reward_vae"):
        Decoder(pipelines.load(str(tiny)).vae, tiny=str(tmp_path))


def test_a_tiny_autoencoder_of_other_latents_is_refused(tiny: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny

    blocks = {"encoder_block_out_channels": (8,), "decoder_block_out_channels": (8,)}
    blocks |= {"num_encoder_blocks": (1,), "num_decoder_blocks": (1,)}
    AutoencoderTiny(**blocks, latent_channels=16).save_pretrained(tmp_path / "tiny")
    vae, path = pipelines.load(str(tiny)).vae, str(tmp_path / "tiny")
    with pytest.raises(UserError, match="latents of 16 channels, and these have 4; madebyollin/taesd has as many"):
        Decoder(vae, family=families.load("sd15"), tiny=path)
    with pytest.raises(UserError, match="no tiny autoencoder has latents as"):
        Decoder(vae, family=families.load("qwenimage"), tiny=path)

"""Published models that have a recipe, small and random, on the loopback hub: those over a pipeline of `PIPELINES`.

Under the real ids, revisions and file names, with the key names that the real files have.
"""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hub import Hub
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from evaluate import pipelines
from evaluate.pipelines import address
from evaluate.pipelines.recipe import Weights

#: Images are this size: 8 x 8 latents.
SIDE = 64
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


# ---- parts -----------------------------------------------------------------------------------------------------------


def clip_tokenizer() -> Any:
    from align.world.pretrain import make_tokenizer

    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 77
    return tokenizer


def clip_text(*, projected: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = clip_tokenizer()
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = CLIPTextConfig(vocab_size=len(tokenizer), **ends, **SMALL, projection_dim=16, max_position_embeddings=77)
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def t5_tokenizer(folder: Path, *, fast: bool) -> Any:
    """With `spiece.model`, as the real ones; fast: with `tokenizer.json` too."""
    import sentencepiece
    from transformers import T5Tokenizer

    from prompts.shapes import sample_captions

    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sample_captions(200, split="train", seed=0)),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "model_max_length": 512}')
    tokenizer = T5Tokenizer.from_pretrained(folder)
    if fast:
        tokenizer.save_pretrained(folder)
    return tokenizer


def t5_text() -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=256,
        d_model=32,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    return T5EncoderModel(config).eval()


def vae(channels: int = 4, **options: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[8] * 4,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=512,
        **options,
    ).eval()


def unet(**options: Any) -> Any:
    from diffusers import UNet2DConditionModel

    given = {"sample_size": 64, "cross_attention_dim": 16} | options
    return UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=[8, 16],
        layers_per_block=1,
        attention_head_dim=2,
        norm_num_groups=4,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        **given,
    ).eval()


def sdxl_unet() -> Any:
    # 16 of the pooled text, and 6 sizes and places of 8.
    return unet(
        sample_size=128,
        cross_attention_dim=32,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )


# ---- pipelines -------------------------------------------------------------------------------------------------------


def sd(_: Path, **scheduler: Any) -> Any:
    from diffusers import EulerDiscreteScheduler, PNDMScheduler, StableDiffusionPipeline

    pndm = {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1}
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        unet=unet(),
        scheduler=EulerDiscreteScheduler(**SD_BETAS, **scheduler) if scheduler else PNDMScheduler(**SD_BETAS, **pndm),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(_: Path) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    return StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13025),
        text_encoder=clip_text(),
        text_encoder_2=clip_text(projected=True),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=sdxl_unet(),
        scheduler=EulerDiscreteScheduler(**SD_BETAS, steps_offset=1, timestep_spacing="leading"),
    )


def pixart(folder: Path) -> Any:
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

    return PixArtAlphaPipeline(
        tokenizer=t5_tokenizer(folder / "tokenizer", fast=False),
        text_encoder=t5_text(),
        vae=vae(),
        transformer=PixArtTransformer2DModel(
            sample_size=64,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            in_channels=4,
            out_channels=8,
            cross_attention_dim=16,
            caption_channels=32,
        ).eval(),
        scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    )


def sd3(folder: Path) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=128,
            in_channels=16,
            out_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=32,
            pos_embed_max_size=64,
            qk_norm="rms_norm",
        ).eval(),
        vae=vae(16, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609, scaling_factor=1.5305),
        text_encoder=clip_text(projected=True),
        text_encoder_2=clip_text(projected=True),
        text_encoder_3=t5_text(),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        tokenizer_3=t5_tokenizer(folder / "tokenizer_3", fast=True),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def flux(folder: Path, *, guidance: bool = True) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    return FluxPipeline(
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            guidance_embeds=guidance,
            axes_dims_rope=(4, 4, 8),
        ).eval(),
        vae=vae(16, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1159, scaling_factor=0.3611),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_text(),
        tokenizer_2=t5_tokenizer(folder / "tokenizer_2", fast=True),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )


def schnell(folder: Path) -> Any:
    return flux(folder, guidance=False)


def turbo(folder: Path) -> Any:
    return sd(folder, timestep_spacing="trailing")


#: What is published under an id, and in which variants.
PIPELINES: dict[str, tuple[Callable[[Path], Any], tuple[str | None, ...]]] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": (sd, (None, "fp16")),
    "stabilityai/sd-turbo": (turbo, (None, "fp16")),
    "Lykon/dreamshaper-7": (sd, (None, "fp16")),
    "stabilityai/stable-diffusion-xl-base-1.0": (sdxl, (None, "fp16")),
    "stabilityai/sdxl-turbo": (sdxl, (None, "fp16")),
    "XDG-XHS/distar_long_1step": (sdxl, ("fp16",)),
    "PixArt-alpha/PixArt-XL-2-512x512": (pixart, (None,)),
    "stabilityai/stable-diffusion-3.5-large": (sd3, (None,)),
    "stabilityai/stable-diffusion-3.5-large-turbo": (sd3, (None,)),
    "stabilityai/stable-diffusion-3.5-medium": (sd3, (None,)),
    "black-forest-labs/FLUX.1-dev": (flux, (None,)),
    "black-forest-labs/FLUX.1-schnell": (schnell, (None,)),
}


# ---- files as they are published -------------------------------------------------------------------------------------


def publish(hub: Hub) -> None:
    """Put the pipelines on the hub, and every file that a recipe over one of them names."""
    recipes = [recipe for recipe in map(pipelines.read_recipe, address.names()) if recipe.pipeline in PIPELINES]
    for seed, (repo, (make, variants)) in enumerate(PIPELINES.items()):
        revision = next(recipe.revision for recipe in recipes if recipe.pipeline == repo)
        folder = hub.folder(repo, revision or "main")
        torch.manual_seed(seed)
        pipeline = make(folder)
        for variant in variants:
            with torch.no_grad():  # of other numbers, so that a mistaken variant is seen
                network = getattr(pipeline, "unet" if hasattr(pipeline, "unet") else "transformer")
                next(network.parameters()).mul_(1.25)
            pipeline.save_pretrained(folder, variant=variant)
        _age(folder)
    for seed, recipe in enumerate(recipes, start=100):
        for kind, source in (("unet", recipe.unet), ("delta", recipe.delta), ("lora", recipe.lora)):
            if isinstance(source, Weights) and source.repo:
                torch.manual_seed(seed)
                network = unet() if PIPELINES[str(recipe.pipeline)][0] is sd else sdxl_unet()
                file = hub.folder(source.repo, source.revision or "main") / source.file
                file.parent.mkdir(parents=True, exist_ok=True)
                save(lora(network, peft="Hyper" in file.name) if kind == "lora" else network.state_dict(), file)


def save(tensors: dict[str, Tensor], file: Path) -> None:
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    torch.save(tensors, file) if file.suffix in (".bin", ".pt") else save_file(tensors, file)


def lora(network: nn.Module, *, peft: bool) -> dict[str, Tensor]:
    """Products of rank 2 for attentions, linear layers and convolutions, under the names
    of kohya's trainer or of peft.
    """
    tensors: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        wanted = ".attentions." in name or name.endswith(("conv1", "time_emb_proj"))
        if wanted and isinstance(module, nn.Linear | nn.Conv2d):
            down = torch.randn(2, *module.weight.shape[1:]) * 0.1
            up = torch.randn(len(module.weight), 2, *[1] * (module.weight.dim() - 2)) * 0.1
            if peft:
                tensors |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
            else:
                key = "lora_unet_" + name.replace(".", "_")
                tensors |= {
                    f"{key}.lora_down.weight": down,
                    f"{key}.lora_up.weight": up,
                    f"{key}.alpha": torch.tensor(1.0),
                }
    return tensors


#: The attention of an autoencoder, as diffusers called its parts before 2023.
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def _age(folder: Path) -> None:
    """Give files the layout of the time they were published in."""
    for name in ("text_encoder", "text_encoder_2"):
        config = folder / name / "config.json"
        if config.is_file() and json.loads(config.read_text())["architectures"] == ["CLIPTextModel"]:
            for path in (folder / name).glob("*.safetensors"):
                tensors = {
                    f"text_model.{key.removeprefix('text_model.')}": value for key, value in load_file(path).items()
                }
                tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
                save_file(tensors, path, metadata={"format": "pt"})
    for tokenizer in folder.glob("tokenizer*"):
        made = tokenizer / "tokenizer.json"
        if made.is_file() and not (tokenizer / "spiece.model").is_file():
            content = json.loads(made.read_text(encoding="utf-8"))["model"]
            (tokenizer / "vocab.json").write_text(json.dumps(content["vocab"]), encoding="utf-8")
            pairs = "".join(f"{' '.join(pair)}\n" for pair in content["merges"])
            (tokenizer / "merges.txt").write_text(f"#version: 0.2\n{pairs}", encoding="utf-8")
            made.unlink()
        elif made.is_file() and "PixArt" in str(folder):
            made.unlink()
    index = json.loads((folder / "model_index.json").read_text())
    for name in ("tokenizer_2", "tokenizer_3"):
        if index.get(name) == ["transformers", "T5Tokenizer"]:
            index[name] = ["transformers", "T5TokenizerFast"]
    if "v1-5" in str(folder):
        for path in (folder / "vae").glob("*.safetensors"):
            tensors = load_file(path)
            for new, old in OLD.items():
                tensors = {
                    key.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): value for key, value in tensors.items()
                }
            save_file(tensors, path, metadata={"format": "pt"})
        index |= {
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
            "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
            "requires_safety_checker": True,
        }
        (folder / "safety_checker").mkdir()
        (folder / "safety_checker" / "model.safetensors").write_text("never fetched")
    (folder / "model_index.json").write_text(json.dumps(index))


def copy(hub: Hub, repo: str, to: Path) -> Path:
    """A published pipeline as a local folder."""
    (revision,) = (hub.root / repo).iterdir()
    return Path(shutil.copytree(revision, to))

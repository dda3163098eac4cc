"""A tiny random pipeline of every family, in the layout of the published ones, and where the
papers' presets look for them.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from hub import Hub

from align.config.train import TRAIN
from align.presets.load import presets
from evaluate import families
from evaluate.pipelines.address import hub_id

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
UNET = {
    "sample_size": 8, "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip


def vae(scaling_factor: float | None = None, blocks: int = 4, *, kind: Any = None, **options: Any) -> Any:
    """With four blocks latents are an eighth of the image along each side, as all of the published ones have it. kind:
    in place of AutoencoderKL. scaling_factor: of those that have one.
    """
    from diffusers import AutoencoderKL

    scale = {} if scaling_factor is None else {"scaling_factor": scaling_factor}
    return (kind or AutoencoderKL)(
        down_block_types=["DownEncoderBlock2D"] * blocks,
        up_block_types=["UpDecoderBlock2D"] * blocks,
        block_out_channels=[4] * blocks,
        norm_num_groups=2,
        sample_size=64,
        mid_block_add_attention=False,
        **{"latent_channels": 4} | scale | options,
    ).eval()


def t5(tokenizer: Any, **options: Any) -> Any:
    """The text encoder of PixArt-alpha, Stable Diffusion 3 and FLUX.1."""
    from transformers import T5Config, T5EncoderModel

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2} | options
    return T5EncoderModel(T5Config(vocab_size=len(tokenizer), feed_forward_proj="gated-gelu", **sizes)).eval()


def clip_text(kind: str, **options: Any) -> Any:
    """A text encoder of transformers by its class's name."""
    import transformers

    from align.world.pretrain import make_tokenizer

    tokenizer = make_tokenizer()
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), max_position_embeddings=77, pad_token_id=1, **ends, **SMALL, **options
    )
    return getattr(transformers, kind)(config).eval()


def clip_tokenizer(folder: Path, pad_token: str) -> Any:
    """Written as the published ones are, `vocab.json` and `merges.txt`, and read back."""
    from transformers import CLIPTokenizer

    from align.world.pretrain import make_tokenizer

    content = json.loads(make_tokenizer().backend_tokenizer.to_str())["model"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(content["vocab"]), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{' '.join(pair)}\n" for pair in content["merges"]))
    options = {"model_max_length": 77, "pad_token": pad_token, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    return CLIPTokenizer.from_pretrained(folder)


def t5_tokenizer(folder: Path) -> Any:
    """Written as the published one is, `spiece.model` and no `tokenizer.json`, and read back."""
    from sentencepiece import sentencepiece_model_pb2
    from transformers import T5Tokenizer

    model = sentencepiece_model_pb2.ModelProto()
    pieces = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2), ("▁", -2.0, 1)]
    for piece, score, kind in pieces + [(letter, -3.0, 1) for letter in "abcdefghijklmnopqrstuvwxyz0123456789,.!"]:
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.model_type, model.trainer_spec.unk_id = 1, 2
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(model.SerializeToString())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": 512, "tokenizer_class": "T5Tokenizer"})
    )
    return T5Tokenizer.from_pretrained(folder)


#: In the published ones' form: turns of a conversation, and an empty thought where none is to be had.
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def qwen_tokenizer(folder: Path, *more: str) -> Any:
    """Written as the published ones are, `vocab.json`, `merges.txt` and a chat template, and read back; letter by
    letter. more: special tokens.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    letters = sorted(ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *more]
    added = {str(len(letters) + i): {"content": token, "special": True} for i, token in enumerate(special)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n")
    options = {"model_max_length": 1024, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    content = options | {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added, "chat_template": CHAT}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    return Qwen2Tokenizer.from_pretrained(folder)


def qwen(kind: str, tokenizer: Any, layers: int) -> Any:
    """A text encoder of Qwen3's by its class's name, of weights so large that prompts differ."""
    import transformers

    sizes = SMALL | {"num_hidden_layers": layers, "num_key_value_heads": 1, "head_dim": 8}
    config = transformers.Qwen3Config(vocab_size=len(tokenizer), initializer_range=0.3, **sizes)
    return getattr(transformers, kind)(config).eval()


def mistral(folder: Path) -> tuple[Any, Any]:
    """FLUX.2 dev's text encoder, which sees images too, and the processor of both."""
    import transformers

    tokenizer = qwen_tokenizer(folder, "[IMG]", "[IMG_BREAK]", "[IMG_END]")
    chat = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{% for part in message.content %}{{ part.text }}{% endfor %}<|im_end|>\n{% endfor %}"
    )
    images = transformers.PixtralImageProcessor(patch_size=8)
    processor = transformers.PixtralProcessor(images, tokenizer, patch_size=8, chat_template=chat)
    small = SMALL | {"head_dim": 8}
    config = transformers.Mistral3Config(
        text_config=small | {
            "model_type": "mistral", "vocab_size": len(tokenizer), "num_hidden_layers": 31, "num_key_value_heads": 1,
            "initializer_range": 0.3,
        },
        vision_config=small | {"model_type": "pixtral", "image_size": 32, "patch_size": 8},
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
    )  # fmt: skip
    return transformers.Mistral3ForConditionalGeneration(config).eval(), processor


def gemma_tokenizer(folder: Path) -> Any:
    """A token for each letter, written as the published one is, `tokenizer.json`, and read back."""
    from tokenizers.processors import TemplateProcessing
    from transformers import GemmaTokenizer

    letters = "▁\nabcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789,.!'-:>"
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *letters]
    made = GemmaTokenizer(vocab={token: i for i, token in enumerate(tokens)})
    made.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    made.save_pretrained(folder)
    return GemmaTokenizer.from_pretrained(folder)


def sd15(folder: Path) -> Any:
    from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    return StableDiffusionPipeline(
        vae=vae(0.18215),
        text_encoder=clip_text("CLIPTextModel"),
        tokenizer=clip_tokenizer(folder, "<|endoftext|>"),
        unet=UNet2DConditionModel(**UNET, cross_attention_dim=16, attention_head_dim=2).eval(),
        scheduler=PNDMScheduler(**SD, skip_prk_steps=True, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(folder: Path, blocks: int = 4) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        **UNET,
        cross_attention_dim=32,
        attention_head_dim=[2, 4],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 12,
    )
    return StableDiffusionXLPipeline(
        vae=vae(0.13025, blocks),
        unet=unet.eval(),
        scheduler=EulerDiscreteScheduler(**SD, timestep_spacing="leading"),
        text_encoder=clip_text("CLIPTextModel"),
        tokenizer=clip_tokenizer(folder / "1", "<|endoftext|>"),
        text_encoder_2=clip_text("CLIPTextModelWithProjection", projection_dim=12),
        tokenizer_2=clip_tokenizer(folder / "2", "!"),
        force_zeros_for_empty_prompt=True,
    )


def pixart(folder: Path, sample_size: int = 8, blocks: int = 4) -> Any:
    """sample_size 128 is the network for 1024 x 1024, which is told the image's size."""
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

    tokenizer = t5_tokenizer(folder)
    width = 12  # of the text, and of attention: one third of it for each of the three embeddings of time and size
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=width,
        num_layers=2,
        cross_attention_dim=2 * width,
        caption_channels=16,
        sample_size=sample_size,
        in_channels=4,
        out_channels=8,
        attention_bias=True,
    )
    return PixArtAlphaPipeline(
        tokenizer=tokenizer,
        text_encoder=t5(tokenizer),
        vae=vae(0.18215, blocks),
        transformer=transformer.eval(),
        scheduler=DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear"),
    )


def sd3(folder: Path) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    tokenizer = t5_tokenizer(folder / "3")
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=24,
        pos_embed_max_size=12,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(1.5305, shift_factor=0.0609),
        text_encoder=clip_text("CLIPTextModelWithProjection", projection_dim=12),
        tokenizer=clip_tokenizer(folder / "1", "<|endoftext|>"),
        text_encoder_2=clip_text("CLIPTextModelWithProjection", projection_dim=12),
        tokenizer_2=clip_tokenizer(folder / "2", "!"),
        text_encoder_3=t5(tokenizer, d_model=32, d_kv=16),
        tokenizer_3=tokenizer,
    )


def flux(folder: Path, *, guidance_embeds: bool = True) -> Any:
    """FLUX.1-dev; schnell is told no guidance."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    tokenizer = t5_tokenizer(folder / "2")
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )
    dynamic = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    made = FluxPipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(**dynamic, base_image_seq_len=256, max_image_seq_len=4096),
        vae=vae(0.3611, shift_factor=0.1159),
        text_encoder=clip_text("CLIPTextModel"),
        tokenizer=clip_tokenizer(folder / "1", "<|endoftext|>"),
        text_encoder_2=t5(tokenizer),
        tokenizer_2=tokenizer,
    )
    made.default_sample_size = 8
    return made


def flux2(folder: Path, *, dev: bool = False) -> Any:
    """FLUX.2 klein, of whose text encoder layers 9, 18 and 27 are read; or dev, which is told a guidance scale."""
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Pipeline,
        Flux2Transformer2DModel,
    )

    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=dev,
    )
    autoencoder = vae(kind=AutoencoderKLFlux2)
    autoencoder.bn.running_mean.normal_(0, 0.3)
    autoencoder.bn.running_var.uniform_(0.5, 2.0)
    parts = {
        "transformer": transformer.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        "vae": autoencoder,
    }
    if dev:
        text_encoder, tokenizer = mistral(folder)
        return Flux2Pipeline(**parts, text_encoder=text_encoder, tokenizer=tokenizer)
    tokenizer = qwen_tokenizer(folder)
    return Flux2KleinPipeline(**parts, text_encoder=qwen("Qwen3ForCausalLM", tokenizer, 28), tokenizer=tokenizer)


def zimage(folder: Path) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

    tokenizer = qwen_tokenizer(folder)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[576, 16, 16],
    )
    for padding in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(padding)
    return ZImagePipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=qwen("Qwen3Model", tokenizer, 3),
        tokenizer=tokenizer,
    )


def qwen_vl(tokenizer: Any) -> Any:
    """The text encoder of Qwen-Image, which is never shown an image."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = SMALL | ends | {"vocab_size": len(tokenizer), "num_key_value_heads": 1, "rope_parameters": rope}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 16}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def qwenimage(folder: Path) -> Any:
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )

    tokenizer = qwen_tokenizer(folder)
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    dynamic = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "shift_terminal": 0.02}
    made = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**dynamic, base_image_seq_len=256, max_image_seq_len=8192),
        vae=AutoencoderKLQwenImage(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[-0.8, 0.1, 1.6, -0.4],
            latents_std=[2.8, 1.5, 3.3, 1.1],
        ).eval(),
        text_encoder=qwen_vl(tokenizer),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
    )
    made.default_sample_size = 8
    return made


def gemma(tokenizer: Any) -> Any:
    """The text encoder of SANA."""
    from transformers import Gemma2Config, Gemma2Model

    sizes = SMALL | {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 64}
    return Gemma2Model(Gemma2Config(vocab_size=len(tokenizer), **sizes)).eval()


def sana(folder: Path, *, timestep_scale: float = 1.0) -> Any:
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

    tokenizer, blocks = gemma_tokenizer(folder), (4,) * 6
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=2,
        timestep_scale=timestep_scale,
    )
    each = {"layers_per_block": (1,) * 6, "qkv_multiscales": ((),) * 6, "block_out_channels": blocks}
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=gemma(tokenizer),
        vae=AutoencoderDC(
            latent_channels=4,
            scaling_factor=0.41407,
            **{f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in each.items()},
        ).eval(),
        transformer=transformer.eval(),
        scheduler=DPMSolverMultistepScheduler(
            beta_start=1e-4,
            beta_end=0.02,
            beta_schedule="linear",
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=3.0,
        ),
    )


def sana_sprint(folder: Path) -> Any:
    from diffusers import SanaSprintPipeline, SanaTransformer2DModel, SCMScheduler

    base = sana(folder)
    config = {key: value for key, value in base.transformer.config.items() if not key.startswith("_")}
    distilled = SanaTransformer2DModel(**config | {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"})
    return SanaSprintPipeline(
        tokenizer=base.tokenizer,
        text_encoder=base.text_encoder,
        vae=base.vae,
        transformer=distilled.eval(),
        scheduler=SCMScheduler(),
    )


#: Stock diffusers cleans prompts and picks the nearest size it knows where it is not told otherwise.
OPTIONS = {"pixart": {"clean_caption": False, "use_resolution_binning": False}}
FAMILIES = {"sd15": sd15, "sdxl": sdxl, "pixart": pixart}
#: Those of flow matching.
FLOWS = {"sd3": sd3, "flux": flux, "flux2": flux2, "zimage": zimage, "qwenimage": qwenimage, "sana": sana}


def pipeline(family: str, folder: Path, *, seed: int = 0, **options: Any) -> Any:
    """A stock pipeline; its tokenizers are written to `folder` and read from there."""
    torch.manual_seed(seed)
    made = (FAMILIES | FLOWS | {"sana_sprint": sana_sprint})[family](folder, **options)
    made.set_progress_bar_config(disable=True)
    return made


def save(made: Any, folder: Path) -> Path:
    """The folder of a pipeline as it is published."""
    made.save_pretrained(folder)
    if type(made).__name__ == "PixArtAlphaPipeline":  # older than the class that now loads its network
        for file in (folder / "model_index.json", folder / "transformer" / "config.json"):
            file.write_text(file.read_text().replace("PixArtTransformer2DModel", "Transformer2DModel"))
    for tokenizer in folder.glob("tokenizer*"):
        (tokenizer / "tokenizer.json").unlink()
        source = Path(getattr(made, tokenizer.name).name_or_path)
        for file in source.iterdir():
            (tokenizer / file.name).write_bytes(file.read_bytes())
    return folder


def publish(hub: Hub, folder: Path) -> None:
    """Put every model that a paper's preset loads on the hub, at the revision it pins,
    and nothing else under its id.
    """
    from diffusers import AutoencoderTiny
    from safetensors.torch import save_file

    contents = [content for content in presets(TRAIN).values() if content.get("family")]
    sources: dict[str, tuple[str, str]] = {}
    for content in contents:
        whole = content.get("pipeline", content["reference"])
        for role, source in (
            ("network", content["reference"]),
            ("student", content.get("initial")),
            ("pipeline", whole),
        ):
            if source:
                sources[source] = (content["family"], role)
    places = {source: hub_id(source) for source in sources}
    for repository in {where.repository for where in places.values() if where}:
        shutil.rmtree(hub.root / repository, ignore_errors=True)
    for seed, (source, (family, role)) in enumerate(sorted(sources.items())):
        where = places[source]
        if where is None:  # a folder of the user's own
            continue
        target = hub.folder(where.repository, where.revision)
        made = pipeline(family, folder / str(seed), seed=seed)
        network = getattr(made, families.load(family).network)
        if role == "pipeline" or (role == "student" and not where.file):
            save(made, target)
            if family == "zimage" and role == "student":  # in shards, as it is published
                shutil.rmtree(target / "transformer")
                network.save_pretrained(target / "transformer", max_shard_size="20KB")
        elif where.file:
            tensors = {key: value.half().contiguous() for key, value in network.state_dict().items()}
            written = save_file if where.file.endswith(".safetensors") else torch.save
            written(tensors, target / where.file)
        else:
            network.save_pretrained(target / families.load(family).network)
    for source in {content.get("reward_vae") for content in contents} - {None}:
        blocks = {f"{part}_block_out_channels": (4,) * 4 for part in ("encoder", "decoder")}
        counts = {f"num_{part}_blocks": (1,) * 4 for part in ("encoder", "decoder")}
        where = hub_id(source)
        AutoencoderTiny(**blocks, **counts).save_pretrained(hub.folder(where.repository, where.revision))

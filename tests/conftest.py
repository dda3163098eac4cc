"""What tests share: a hub on loopback, tiny random scorers on it, and a tiny random pipeline in the layout of the real ones."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hub import Hub

# The hub client reads its settings once, when it is imported: before that, no test has any hub but this one.
assert "huggingface_hub" not in sys.modules
HUB = Hub()
CACHE = tempfile.TemporaryDirectory()
os.environ |= {
    "HF_ENDPOINT": HUB.url,
    "HF_HOME": CACHE.name,
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_XET": "1",
}

import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def published() -> Hub:
    """The loopback hub with the files of every real scorer, small."""
    import tiny_scorers

    tiny_scorers.publish(HUB)
    return HUB


@pytest.fixture
def real_scorers(published: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The scorers other than those of `shapes` load small random weights from the loopback hub."""
    import tiny_scorers

    tiny_scorers.shrink(monkeypatch, published)
    return published


def tiny_components(seed: int, *, prediction: str = "v_prediction") -> dict[str, Any]:
    """A StableDiffusionPipeline's parts, of a few thousand random parameters."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from align.pretrain import make_tokenizer

    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 24,
    }
    return {
        "vae": AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, block_out_channels=[8, 8],
            latent_channels=4, norm_num_groups=4, sample_size=32, mid_block_add_attention=False, scaling_factor=0.5,
        ),
        "text_encoder": CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), **ends, **text)).eval(),
        "tokenizer": tokenizer,
        "unet": UNet2DConditionModel(
            sample_size=16, in_channels=4, out_channels=4, block_out_channels=[8, 16], layers_per_block=1, attention_head_dim=2,
            down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
            norm_num_groups=4, cross_attention_dim=16,
        ).eval(),
        "scheduler": EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction, timestep_spacing="trailing",
            steps_offset=1,
        ),
        "safety_checker": None,
        "feature_extractor": None,
    }  # fmt: skip


def save_tiny(folder: Path, seed: int = 0, **options: Any) -> Path:
    from diffusers import StableDiffusionPipeline

    StableDiffusionPipeline(**tiny_components(seed, **options), requires_safety_checker=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random pipeline."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


#: A run of a few steps on a tiny pipeline; tests lay their changes over it.
SMALL_RUN: dict[str, Any] = {
    "stage": "train", "method": "di", "prompts": "shapes:train", "steps": 4, "batch_size": 8,
    "sigmas": {"name": "lognormal", "parameters": {"mean": 0.0, "std": 1.2}},
    "divergence": {"weight": "inverse_norm"},
    "student": {"learning_rate": 1e-3}, "assistant": {"learning_rate": 1e-3, "warmup": 1}, "ema": 0.5,
    "held_out": {"scorers": {"shapes/oracle": 0.5}, "prompts": "shapes:test", "pictures": 4, "every": 5, "guard": "off"},
    "save_every": 100, "sample_every": 100,
}  # fmt: skip


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPModel

    from align.pretrain import make_tokenizer

    torch.manual_seed(7)
    tokenizer = make_tokenizer()
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), **ends, **small, "max_position_embeddings": 24}
    clip = CLIPModel(CLIPConfig(projection_dim=8, text_config=text, vision_config={**small, "image_size": 32, "patch_size": 8}))
    folder = tmp_path_factory.mktemp("scorers") / "shapes" / "clip"
    clip.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_clip(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`shapes/clip` is a random network of a few parameters."""
    from evaluate import embedded

    monkeypatch.setattr(embedded, "HERE", clip_folder.parents[1])


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Any:
    """accelerate keeps its precision for the life of a process; tests want their own."""
    yield
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state()
    PartialState._reset_state()

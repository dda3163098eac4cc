"""Stage 1 of the papers' workflow on the embedded world: autoencoder, reference diffusion model, and a small CLIP.

Data is rendered, not stored: what a step sees is a function of (seed, step), so resuming
needs no position in a data set.
"""

import json
import random
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from align.data.batches import seeded
from align.objectives.denoising import assistant_loss
from align.objectives.weightings import WEIGHTS
from align.options import Config
from align.training import checkpoints as state
from align.training.ema import EMA
from align.training.interrupt import stop_on_signal
from align.training.log import trim_log
from align.world.config import ClipConfig, Fit, TeacherConfig, VaeConfig
from evaluate.console import ProgressLog, console
from evaluate.diffusion import NOISE_LEVELS, Schedule, denoise
from evaluate.pipelines import quiet
from prompts.io.errors import UserError
from prompts.io.files import replace_folder
from prompts.shapes import captions, render, sample_captions
from prompts.shapes.grammar import FAMILIES, MIX, edited

LAYOUT = 8  # places a side
BatchLoss = Callable[[nn.Module, int], Tensor]


def fit(
    title: str, model: nn.Module, batch_loss: BatchLoss, config: Fit, output: Path, *, resume: bool
) -> nn.Module | None:
    """Minimise `batch_loss(model, step)` and return the averaged model, or None if a signal stopped it before the end.

    State goes to `output/state`, figures to `output/log.jsonl`.
    """
    average = EMA(dict(model.named_parameters()), config.ema)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
    )
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / (config.warmup + 1), total_iters=config.warmup)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, config.steps - config.warmup))
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, decay], [config.warmup])
    parts: dict[str, Any] = {"model": model, "average": average, "optimizer": optimizer, "schedule": schedule}

    start = 0
    if resume and (newest := state.load_newest(output / "state")):
        start, saved = newest
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        state.set_rng_state(saved["rng"])
    trim_log(output / "log.jsonl", start)

    def save(step: int) -> None:
        state.save(
            output / "state",
            step,
            {name: part.state_dict() for name, part in parts.items()} | {"rng": state.rng_state()},
            keep=1,
        )

    with stop_on_signal() as stop, ProgressLog(title, config.steps, start=start, log=output / "log.jsonl") as progress:
        for step in range(start, config.steps):
            loss = batch_loss(model, step)
            if not torch.isfinite(loss):
                raise UserError(
                    f"the loss of {title} is {loss.item()} at step {step}; start again with a lower fit.learning_rate,"
                    " in another folder"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            schedule.step()
            average.update()
            progress(step + 1, loss=loss.item())
            if stop or (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                save(step + 1)
            if stop:
                console.print(f"stopped after step {step + 1}; continue with --resume")
                return None
    average.swap()
    return model.eval()


def _batch(n: int, *key: int, mix: Mapping[str, float] = MIX, near: float = 0.0) -> tuple[Tensor, list[str]]:
    """Fresh training captions and their images `[n, 3, 32, 32]` in [0, 1].

    near: share of captions that are others, edited.
    """
    seed = seeded(*key)
    drawn, rng = sample_captions(n, split="train", seed=seed, mix=mix), random.Random(f"near/{seed}")
    for i in range(round(near * n)):
        drawn[-1 - i] = edited(drawn[i], rng)
    return torch.from_numpy(render(drawn, seed=seed)), drawn


def save_half(module: Any, folder: Path) -> None:
    """Write a diffusers or transformers model as fp16 safetensors, in place of what is there.

    The module ends up in fp16.
    """
    quiet()
    draft = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    for part in getattr(module, "components", {"": module}).values():
        if isinstance(part, nn.Module):
            part.half()
    module.save_pretrained(draft)
    replace_folder(draft, folder)


def train_vae(config: VaeConfig, output: Path, *, resume: bool) -> bool:
    """An AutoencoderKL whose latents have mean 0 and variance 1 in every channel, so that its scaling factor is 1."""
    from diffusers import AutoencoderKL

    torch.manual_seed(config.seed)
    vae = AutoencoderKL(**config.architecture, scaling_factor=1.0)

    def loss(model: Any, step: int) -> Tensor:
        x = _batch(config.fit.batch_size, config.seed, step)[0] * 2 - 1
        posterior = model.encode(x).latent_dist
        error = model.decode(posterior.sample()).sample - x
        return error.square().mean() + 0.2 * error.abs().mean() + config.kl * posterior.kl().mean() / x[0].numel()

    trained = fit("shapes-vae", vae, loss, config.fit, output, resume=resume)
    if trained is None:
        return False
    _standardise(trained, _batch(1000, config.seed, config.fit.steps)[0] * 2 - 1)
    save_half(trained, output / "checkpoint")
    return True


@torch.no_grad()
def _standardise(vae: Any, images: Tensor) -> None:
    """Fold the latents' mean and scale into the 1 x 1 convolutions around them; decoded images stay the same."""
    latents = vae.encode(images).latent_dist.mean
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    n = len(mean)
    inner, outer = vae.quant_conv, vae.post_quant_conv
    outer.bias += (outer.weight[:, :, 0, 0] * mean).sum(1)
    outer.weight *= std[None, :, None, None]
    inner.bias[:n] = (inner.bias[:n] - mean) / std
    inner.weight[:n] /= std[:, None, None, None]
    inner.bias[n:] -= 2 * std.log()  # the other half is the logarithm of the variance


def make_tokenizer() -> Any:
    """A CLIPTokenizer in which every word of the grammar is one token and any other text is still spelled out."""
    from transformers import CLIPTokenizer

    words, merges = _vocabulary()
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[*merges], model_max_length=24)


@cache
def _vocabulary() -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Tokens in their order, and the pairs that are merged in theirs, learned from the grammar's captions."""
    from tokenizers import pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    special = ["<|startoftext|>", "<|endoftext|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = CLIPTokenizer().backend_tokenizer
    learner.train_from_iterator(
        (caption for family in FAMILIES for caption in captions("train", family)),
        trainers.BpeTrainer(vocab_size=4096, end_of_word_suffix="</w>", special_tokens=special, show_progress=False),
    )
    merges = tuple(tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"])
    words = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in merges), *special]
    return tuple(dict.fromkeys(words)), merges


def _ends(tokenizer: Any) -> dict[str, int]:
    """What a text model's config is told of a tokenizer's special tokens."""
    return {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def tokenize(tokenizer: Any, texts: list[str]) -> Tensor:
    """Token ids `[B, model_max_length]`, padded and cut."""
    ids: Tensor = tokenizer(
        texts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
    return ids


class Layout(nn.Module):
    """Tokens `[B, L, D]` to the mean of the latents `[B, C, S, S]` they describe: denoising
    at infinite noise, in one layer.

    A denoiser finds which shape a relation puts where only once its text encoder tells "left of" from "right of", and
    the encoder has no reason to until the denoiser listens. This breaks the tie, and is thrown away after training.
    """

    def __init__(self, width: int, channels: int, size: int):
        super().__init__()
        self.size = size
        self.places = nn.Parameter(torch.randn(size * size, width))
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.out = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, channels)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """The predicted mean."""
        places = self.places.expand(len(tokens), -1, -1)
        seen = self.out(places + self.attention(places, tokens, tokens, need_weights=False)[0])
        return seen.mT.unflatten(2, (self.size, self.size))


@torch.no_grad()
def _rendered(config: TeacherConfig, vae: Any) -> tuple[Tensor, list[str]]:
    """The latents of all images that the teacher is trained on, and their captions."""
    chunk, latents, prompts = 500, [], []
    with ProgressLog("rendering", config.images) as progress:
        for first in range(0, config.images, chunk):
            images, texts = _batch(min(chunk, config.images - first), config.seed, 1, first, mix=config.mix)
            latents.append(vae.encode(images * 2 - 1).latent_dist.mean)
            prompts += texts
            progress(len(prompts))
    return torch.cat(latents), prompts


def _read_vae(folder: str) -> Any:
    """The autoencoder of a finished stage, frozen."""
    from diffusers import AutoencoderKL

    if not (Path(folder) / "config.json").is_file():
        raise UserError(
            f"vae = {folder}: no autoencoder there; run 'align pretrain shapes-vae --output"
            f" {Path(folder).parent}' first"
        )
    return AutoencoderKL.from_pretrained(folder).float().requires_grad_(False)


def train_teacher(config: TeacherConfig, output: Path, *, resume: bool) -> bool:
    """Text encoder and UNet by denoising score matching (DI++ eq. C.2 and C.7), saved as a StableDiffusionPipeline."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    vae = _read_vae(config.vae)
    torch.manual_seed(config.seed)
    tokenizer = make_tokenizer()
    text_encoder = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), **_ends(tokenizer), **config.text_encoder))
    unet = UNet2DConditionModel(cross_attention_dim=config.text_encoder["hidden_size"], **config.unet)
    model = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    if config.layout:
        model["layout"] = Layout(config.text_encoder["hidden_size"], config.unet["in_channels"], LAYOUT)
    scheduler = EulerDiscreteScheduler(**config.scheduler)
    schedule = Schedule.from_scheduler(scheduler)
    draw_sigma = NOISE_LEVELS[config.noise_levels.name](schedule, **config.noise_levels.parameters)

    data, prompts = _rendered(config, vae)
    tokens, null = tokenize(tokenizer, prompts), tokenize(tokenizer, [""])

    def layout(model: Any, text: Tensor, x0: Tensor) -> Tensor:
        return nn.functional.mse_loss(model["layout"](text), nn.functional.adaptive_avg_pool2d(x0, LAYOUT))

    def loss(model: Any, step: int) -> Tensor:
        rng = torch.Generator().manual_seed(seeded(config.seed, 2, step))
        if step < config.layout_steps:  # cheap steps: a batch four times as large
            pick = torch.randint(len(data), (4 * config.fit.batch_size,), generator=rng)
            return layout(model, model["text_encoder"](tokens[pick]).last_hidden_state, data[pick])
        pick = torch.randint(len(data), (config.fit.batch_size,), generator=rng)
        x0 = data[pick]
        dropped = torch.rand(len(x0), 1, generator=rng) < config.drop_prompt
        text = model["text_encoder"](torch.where(dropped, null, tokens[pick])).last_hidden_state
        sigma = draw_sigma(len(x0), rng).float()
        noise = torch.randn(x0.shape, generator=rng)

        def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
            def network(y: Tensor, t: Tensor) -> Tensor:
                return model["unet"](y, t, encoder_hidden_states=text).sample

            return denoise(network, x, sigma, schedule=schedule)

        score = assistant_loss(x0, noise, sigma, assistant=denoiser, weight=WEIGHTS["edm"]).mean() / x0[0].numel()
        return score + config.layout * layout(model, text, x0) if config.layout else score

    trained: Any = fit("shapes-teacher", model, loss, config.fit, output, resume=resume)
    if trained is None:
        return False
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=trained["text_encoder"],
        tokenizer=tokenizer,
        unet=trained["unet"],
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    save_half(pipeline, output / "checkpoint")
    return True


def train_clip(config: ClipConfig, output: Path, *, resume: bool) -> bool:
    """A small CLIP by the symmetric contrastive loss; captions equal to one another in a batch count as one."""
    from transformers import CLIPConfig, CLIPModel

    tokenizer = make_tokenizer()
    torch.manual_seed(config.seed)
    architecture = dict(config.architecture)
    architecture["text_config"] = {"vocab_size": len(tokenizer), **_ends(tokenizer), **architecture["text_config"]}
    clip = CLIPModel(CLIPConfig(**architecture))

    def loss(model: nn.Module, step: int) -> Tensor:
        images, texts = _batch(config.fit.batch_size, config.seed, 3, step, near=config.edited)
        out = model(input_ids=tokenize(tokenizer, texts), pixel_values=images * 2 - 1)
        same = torch.tensor([[a == b for b in texts] for a in texts], dtype=torch.float32)
        target = same / same.sum(1, keepdim=True)
        cross_entropy = nn.functional.cross_entropy
        return (cross_entropy(out.logits_per_image, target) + cross_entropy(out.logits_per_text, target)) / 2

    trained = fit("shapes-clip", clip, loss, config.fit, output, resume=resume)
    if trained is None:
        return False
    save_half(trained, output / "checkpoint")
    tokenizer.save_pretrained(output / "checkpoint")
    return True


TRAINERS: dict[str, Callable[..., bool]] = {"vae": train_vae, "teacher": train_teacher, "clip": train_clip}


def run(config: Config, output: Path, *, resume: bool) -> bool:
    """Carry out one stage: `output/checkpoint` holds its result. Returns whether it ran to its end."""
    return TRAINERS[config.stage](config, output, resume=resume)  # type: ignore[attr-defined]

"""Text-to-image models as diffusers pipelines plus a recipe: how to load one, and how to draw from it.

A model is a name of an embedded one (`shapes/base`), a folder, a hub id, or a recipe: a YAML file, or the name of one of those in
`evaluate/models`. A folder may hold a `recipe.yaml`:

    pipeline: ../teacher        a folder or hub id with everything that is not in this folder; without it, this folder
    unet: unet                  a subfolder whose network replaces the pipeline's
    steps: 1
    timesteps: [625]            in place of the scheduler's own
    guidance_scale: 1.0         1 is no guidance
"""

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from torch import Tensor

from evaluate import embedded, weights
from prompts.errors import UserError

MODELS = Path(__file__).parent / "models"


class Recipe(BaseModel):
    """How pictures are drawn from a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pipeline: str | None = None
    unet: str | None = None
    steps: PositiveInt = 50
    timesteps: tuple[int, ...] | None = None
    guidance_scale: float = Field(7.5, ge=0)

    def call(self) -> dict[str, Any]:
        """Arguments for the pipeline's call."""
        steps = {"timesteps": list(self.timesteps)} if self.timesteps else {"num_inference_steps": self.steps}
        return steps | {"guidance_scale": self.guidance_scale}


def quiet() -> None:
    """Keep diffusers and transformers from drawing progress bars of their own, and from advice to developers."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()


def locate(model: str) -> Path | None:
    """The folder or the recipe file a model's name or path stands for; None for what only the hub can know."""
    named = MODELS / f"{model}.yaml"
    for path in (Path(model), embedded.folder(model), named):
        if path.is_dir() or (path.is_file() and path.suffix in (".yaml", ".yml")):
            return path
    if model.count("/") > 1 or model.startswith((".", "/", "~")):
        raise UserError(f"{model}: no such folder; check the path, or name one of {', '.join(embedded.names())}")
    return None


def recipe(model: str) -> Recipe:
    """The model's recipe, or the defaults where it has none."""
    path = locate(model)
    path = path / "recipe.yaml" if path and path.is_dir() else path
    if path is None or not path.is_file():
        return Recipe()
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError, UnicodeDecodeError) as error:
        detail = error.errors()[0] if isinstance(error, ValidationError) else None
        field = f"{'.'.join(map(str, detail['loc']))}: {detail['msg'].lower()}" if detail else "not valid YAML"
        raise UserError(f"{path}: {field}; mend it") from None


def load(model: str, *, dtype: torch.dtype = torch.float32) -> Any:
    """The model as a diffusers pipeline, every weight matched by name. Raises UserError with the remedy."""
    from diffusers import DiffusionPipeline

    quiet()
    folder, how = locate(model), recipe(model)
    if folder and folder.is_file():
        if how.pipeline is None:
            raise UserError(f"{folder}: no field 'pipeline'; name the folder or the hub id that it is a recipe for")
        folder = folder.parent
    if folder and how.pipeline:
        pipeline = load(_beside(folder, how.pipeline), dtype=dtype)
    else:
        pipeline = _load_whole(DiffusionPipeline, model, folder or _snapshot(model), dtype)
    if folder and how.unet:
        _replace_unet(pipeline, folder / how.unet, dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _beside(folder: Path, pipeline: str) -> str:
    """A recipe's `pipeline`: a folder next to the recipe, or else a name as any other."""
    return str(folder / pipeline) if (folder / pipeline).is_dir() else pipeline


def digest(model: str) -> str:
    """Hash of everything that is loaded for a model: the names and the bytes of its files, and of the pipeline it leans on."""
    path, how = locate(model), recipe(model)
    if path is None:
        return _digest_folder(_snapshot(model))
    folder = path.parent if path.is_file() else path
    parts = [_digest_folder(folder)] if path.is_dir() else [_digest_folder(folder / how.unet)] if how.unet else []
    parts += [digest(_beside(folder, how.pipeline))] if how.pipeline else []
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _digest_folder(folder: Path) -> str:
    files = sorted(
        p for p in folder.rglob("*") if p.is_file() and p.suffix in (".json", ".safetensors", ".txt", ".model", ".bin")
    )
    lines = [f"{path.relative_to(folder).as_posix()} {weights.sha256(path)}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _snapshot(model: str) -> Path:
    """The local copy of what diffusers loads for a hub id, with `@REVISION` where one is pinned."""
    from diffusers import DiffusionPipeline

    quiet()
    try:
        repository, _, revision = model.partition("@")
        return Path(DiffusionPipeline.download(repository, revision=revision or None, use_safetensors=True))
    except (OSError, ValueError) as error:
        raise UserError(f"{model}: cannot be fetched ({str(error).splitlines()[0]}); check its name and the network") from None


def _load_whole(cls: Any, model: str, folder: Path, dtype: torch.dtype) -> Any:
    check_parts(folder)
    parts = [part for part in sorted(folder.iterdir()) if any(part.glob("*.safetensors"))]
    for part in parts:
        weights.check_folder(part)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about safety checkers and the like; what matters is checked below
            pipeline = cls.from_pretrained(folder, torch_dtype=dtype, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{model}: cannot be loaded ({str(error).splitlines()[0]}); check its name, or fetch it again"
        ) from None
    for part in parts:
        weights.check_folder(part, getattr(pipeline, part.name))
    return pipeline


def check_parts(folder: Path) -> None:
    """Raise UserError where a part that `model_index.json` names is not there: an absent tokenizer would be loaded as an empty one."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(f"{folder}: no model_index.json there; give a folder that a diffusers pipeline was saved to")
    try:
        parts = {
            name: entry for name, entry in json.loads(index.read_text(encoding="utf-8")).items() if isinstance(entry, list)
        }
    except ValueError as error:
        raise UserError(f"{index}: not JSON ({error}); fetch it again") from None
    for name, (library, _) in parts.items():
        if library is not None and not (folder / name).is_dir():
            raise UserError(f"{folder / name}: no such folder, though {index.name} names it; fetch it again")


def _replace_unet(pipeline: Any, folder: Path, dtype: torch.dtype) -> None:
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"{config}: no such file; recipe.yaml's field 'unet' must name a folder with a diffusers UNet")
    weights.check_folder(folder)
    unet = type(pipeline.unet).from_config(type(pipeline.unet).load_config(folder))
    tensors = {key: value for path in sorted(folder.glob("*.safetensors")) for key, value in weights.read(path).items()}
    weights.load_strict(unet, tensors, folder)
    pipeline.register_modules(unet=unet.to(dtype).eval())


def noise(shape: Sequence[int], *, seed: int, key: str) -> Tensor:
    """Standard normal noise that depends on (seed, key) alone, drawn on the CPU in float32."""
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randn(*shape, generator=generator)


@torch.no_grad()
def draw(
    pipeline: Any,
    how: Recipe,
    prompts: Sequence[str],
    *,
    seed: int | Sequence[int],
    keys: Sequence[str] | None = None,
    **overrides: Any,
) -> Tensor:
    """Pictures `[B, 3, H, W]`, float32 in [0, 1], one per prompt, on the pipeline's device.

    Noise is drawn from a seed, one for all or one each, and a key, by default the prompt.
    """
    size = pipeline.unet.config.sample_size
    shape = (pipeline.unet.config.in_channels, size, size)
    seeds = [seed] * len(prompts) if isinstance(seed, int) else seed
    latents = torch.stack([noise(shape, seed=s, key=key) for s, key in zip(seeds, keys or prompts, strict=True)])
    result = pipeline(
        list(prompts), latents=latents.to(pipeline.device, pipeline.unet.dtype), output_type="pt", **(how.call() | overrides)
    )
    images: Tensor = result.images.float()
    return images

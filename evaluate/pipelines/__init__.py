"""Text-to-image models as diffusers pipelines plus a recipe: how to load one, and how to draw from it.

A model is a name of an embedded one (`shapes/base`), a folder, a hub id (`OWNER/NAME`, or `OWNER/NAME@REVISION`), or a
recipe: a YAML file, or the name of one of those in `evaluate/models`. A folder may hold a `recipe.yaml`:

    pipeline: ../teacher      a folder, hub id or recipe with everything that is not here; without it, this folder
    revision: 462165984030d8  of that hub id; without it, its newest
    variant: fp16             which of its weights; without it, those without a suffix
    unet: unet                a subfolder with a network in place of the pipeline's,
    unet: {repo: tianweiy/DMD2, revision: 19179ac8ee16, file: dmd2_sdxl_1step_unet_fp16.bin}  or a bare file of weights
    delta: {file: delta.pt}   a file of weights to be added to the network's; without `repo` it lies beside the recipe
    lora: {repo: ..., file: ...}                    a LoRA
    scheduler: {name: LCMScheduler, options: {}}    in place of the pipeline's; options over those of the pipeline's
    steps: 1
    timesteps: [625]          in place of the scheduler's own
    sigmas: [1.0, 0.5]        the same for a flow, whose time is 1 where there is noise alone
    guidance_scale: 1.0       as the pipeline counts: 1 is no guidance, for Z-Image 0
    width: 1024               pixels; without it and `height`, the network's own size
    arguments: {eta: 0.3}     further arguments of the pipeline's call
    sampler: {name: best_of, n: 4, scorer: pickscore}   how images are drawn; without it, by the pipeline's call
    dtype: fp16               what it was published to run in, on a GPU
    about: {title: ...}       what it is, for people
    reported_only: ...        why there are no weights to load
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from torch import Tensor

from evaluate import embedded, layouts
from evaluate.pipelines import overlays
from evaluate.pipelines.overlays import Overlay
from prompts.io import hub
from prompts.io.errors import UserError
from prompts.io.yaml import read_model

MODELS = Path(__file__).parents[1] / "models"
#: From 0 to 1: how like a shipped model's name another must be to be taken for a slip of it, and
#: a name that could be a hub id.
ALIKE, HUB_ALIKE = 0.6, 0.85


class _Fields(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class About(_Fields):
    """What people want to know. rows: the papers' tables it is in. parameters: of its network, as they count them."""

    title: str
    rows: tuple[str, ...] = ()
    parameters: PositiveInt | None = None
    licence: str | None = None
    gated: bool = False
    note: str | None = None


class Weights(_Fields):
    """A file of weights: of a hub repository, or without `repo` beside the recipe."""

    repo: str | None = None
    revision: str | None = None
    file: str


class Scheduler(_Fields):
    """A scheduler's class, of diffusers or of `evaluate.pipelines.schedulers`, and options
    over those of the pipeline's own.
    """

    name: str
    options: dict[str, Any] = {}


class Recipe(_Fields):
    """How a model is put together, and how images are drawn from it."""

    about: About | None = None
    reported_only: str | None = None
    pipeline: str | None = None
    revision: str | None = None
    variant: str | None = None
    unet: str | Weights | None = None
    delta: Weights | None = None
    lora: Weights | None = None
    scheduler: Scheduler | None = None
    steps: PositiveInt = 50
    timesteps: tuple[int, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    guidance_scale: float = Field(7.5, ge=0)
    width: int | None = Field(None, ge=8, multiple_of=8)
    height: int | None = Field(None, ge=8, multiple_of=8)
    dtype: Literal["fp32", "fp16", "bf16"] | None = None
    arguments: dict[str, Any] | None = None
    sampler: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        for name in ("timesteps", "sigmas"):
            values = getattr(self, name)
            if values and "steps" in self.model_fields_set and len(values) != self.steps:
                raise ValueError(
                    f"steps {self.steps} contradicts {name}, of which there are {len(values)}; leave steps out"
                )
        return self

    def call(self) -> dict[str, Any]:
        """Arguments for the pipeline's call."""
        steps: dict[str, Any] = {"num_inference_steps": self.steps}
        if self.timesteps:
            steps = {"timesteps": list(self.timesteps)}
        elif self.sigmas:
            steps["sigmas"] = list(self.sigmas)
        size = {name: value for name, value in (("height", self.height), ("width", self.width)) if value is not None}
        return steps | {"guidance_scale": self.guidance_scale} | size | (self.arguments or {})

    def record(self) -> dict[str, Any]:
        """All that an image depends on, for records."""
        return self.model_dump(mode="json", exclude_none=True, exclude={"about", "dtype"})


def quiet() -> None:
    """Keep diffusers and transformers from drawing progress bars of their own, and from advice to developers."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()


# ---- recipes ---------------------------------------------------------------------------------------------------------


def names() -> list[str]:
    """The recipes that ship with the package."""
    return sorted(path.stem for path in MODELS.glob("*.yaml"))


def locate(model: str) -> Path | None:
    """The folder or the recipe file a model's name or path stands for; None for what only the hub can know.

    Raises UserError for what can be neither, and for a slip of a shipped model's name.
    """
    named = MODELS / f"{model}.yaml"
    for path in (Path(model), embedded.folder(model), named):
        if path.is_dir() or (path.is_file() and path.suffix in (".yaml", ".yml")):
            return path
    could_be_hub = model.count("/") == 1 and not model.startswith((".", "/", "~"))
    if close := _meant(model, HUB_ALIKE if could_be_hub else ALIKE):
        raise UserError(f"{model}: no such folder or recipe; did you mean {close!r}? 'evaluate models' lists them")
    if not could_be_hub:
        raise UserError(
            f"{model}: no such folder or recipe; check the path, or name a model that 'evaluate models' lists"
        )
    return None


def _meant(model: str, cutoff: float) -> str | None:
    """The shipped model whose name this is a slip of.

    What begins as an embedded model's name does is always taken for one.
    """
    name, inside = model.partition("@")[0], embedded.models()
    if name.partition("/")[0] in {known.partition("/")[0] for known in inside}:
        return get_close_matches(name, inside, 1, 0)[0]
    return next(iter(get_close_matches(name, [*inside, *names()], 1, cutoff)), None)


def read_recipe(model: str) -> Recipe:
    """The model's recipe, or the defaults where it has none."""
    path = locate(model)
    if path is None:
        # What others publish has no recipe of ours, and a hub that is out of reach takes its time to say so.
        return Recipe() if model.partition("@")[0] in layouts.known() else _published(model)
    path = path / "recipe.yaml" if path.is_dir() else path
    return read_model(path, Recipe) if path.is_file() else Recipe()


@lru_cache
def _published(model: str) -> Recipe:
    """The recipe.yaml that a pipeline on the hub may have beside it, as `align export --push-to-hub` puts it there."""
    repo, _, revision = model.partition("@")
    path = hub.find(repo, "recipe.yaml", revision or "main")
    recipe = Recipe() if path is None else read_model(path, Recipe)
    if recipe.pipeline or recipe.unet or recipe.delta or recipe.lora:
        raise UserError(
            f"{model}: holds only part of a model, and a recipe for the rest; "
            f"'hf download {repo} --local-dir DIR', and give that folder"
        )
    return recipe


def runnable(model: str) -> Recipe:
    """The model's recipe; a UserError where there are no weights to load."""
    recipe = read_recipe(model)
    if recipe.reported_only:
        raise UserError(
            f"{model}: reported only: {recipe.reported_only}; name a model that 'evaluate models' calls runnable"
        )
    return recipe


def unsaid(model: str) -> str:
    """What to say of a model that is drawn as no recipe says; '' where one does."""
    recipe, repo = read_recipe(model), model.partition("@")[0]
    if recipe.model_fields_set:
        return ""
    said = f"{model} has no recipe: {recipe.steps} steps, guidance {recipe.guidance_scale:g}, fp32 unless you say else"
    shipped = {name: read_recipe(name) for name in names()}
    whole = [n for n, r in shipped.items() if r.pipeline == repo and not (r.unet or r.delta or r.lora)]
    return said + (f"; {' and '.join(whole)} draw it as published" if whole else "")


def describe(recipe: Recipe) -> tuple[str, ...]:
    """What it is, steps, guidance, size, parameters, and licence. '-' where nobody has said."""
    fields, about = recipe.model_fields_set, recipe.about
    size = f"{recipe.width} x {recipe.height}" if recipe.width and recipe.height else "-"
    if about is None:  # an embedded model
        about = About(title="a model of the world shapes", licence="Apache-2.0")
    return (
        about.title,
        str(recipe.steps) if "steps" in fields else "-",
        f"{recipe.guidance_scale:g}" if "guidance_scale" in fields else "-",
        size,
        f"{about.parameters / 1e9:.2g} B" if about.parameters else "-",
        f"{about.licence or '-'}{', gated' if about.gated else ''}",
    )


# ---- loading ---------------------------------------------------------------------------------------------------------


def load(
    model: str,
    *,
    dtype: torch.dtype = torch.float32,
    dtypes: Mapping[str, torch.dtype] | None = None,
    without: str = "",
) -> Any:
    """The model as a diffusers pipeline, every weight matched by name. Raises UserError with the remedy.

    dtypes: of parts, by name, that have another one than `dtype`. without: a part that is not wanted, and left out
    where nothing lies over it.
    """
    quiet()
    whole, *over = _overlays(model)
    pipeline = overlays.load_pipeline(whole, dtype, dtypes, without="" if over else without)
    for overlay in over:
        overlays.OVERLAYS[overlay.kind](pipeline, overlay)
    set_scheduler(pipeline, model)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def digest(model: str) -> str:
    """Hash of everything that is loaded for a model: the names and the bytes of its files,
    and of the pipeline it leans on.
    """
    quiet()
    below = ""
    for overlay in _overlays(model):
        below = hashlib.sha256((overlay.digest() + below).encode()).hexdigest()
    return below


def _overlays(model: str, revision: str | None = None, variant: str | None = None) -> list[Overlay]:
    """What a model is made of, the whole pipeline first, all of it fetched."""
    path = locate(model)
    if path is None:
        repo, _, pinned = model.partition("@")
        return [overlays.pipeline_overlay(overlays.snapshot(repo, pinned or revision, variant), variant)]
    recipe = runnable(model)
    if revision:
        raise UserError(
            f"{path}: a local model has no revision {revision}; take the field 'revision' out of the recipe"
        )
    folder = path if path.is_dir() else path.parent
    if recipe.pipeline:
        parts = _overlays(beside(folder, recipe.pipeline), recipe.revision, recipe.variant)
    elif path.is_dir():
        parts = [overlays.pipeline_overlay(folder, variant or recipe.variant)]
    else:
        raise UserError(f"{path}: no field 'pipeline'; name the folder or the hub id that it is a recipe for")
    if isinstance(recipe.unet, str):
        parts.append(overlays.network_overlay(folder, recipe.unet))
    for kind, source in (("network", recipe.unet), ("delta", recipe.delta), ("lora", recipe.lora)):
        if isinstance(source, Weights):
            file = _file(source, folder)
            parts.append(Overlay(kind, file.parent, (file,)))
    return parts


def beside(folder: Path, pipeline: str) -> str:
    """A recipe's `pipeline`: a folder next to the recipe, or else a name as any other."""
    return str(folder / pipeline) if (folder / pipeline).is_dir() else pipeline


def _file(source: Weights, folder: Path) -> Path:
    if source.repo is None:
        return hub.fetch(str(folder), source.file, "", local=str(folder / source.file))
    return hub.fetch(source.repo, source.file, source.revision or "main")


def scheduler_of(model: str) -> tuple[Scheduler, Path | None] | None:
    """The scheduler that the model's recipe asks for, or the recipe it leans on, and where that stands."""
    path, recipe = locate(model), read_recipe(model)
    if recipe.scheduler:
        return recipe.scheduler, path
    if path and path.is_dir() and (path / "scheduler" / "scheduler_config.json").is_file():
        return None  # a network that brings its own
    if path and recipe.pipeline:
        below = beside(path if path.is_dir() else path.parent, recipe.pipeline)
        return scheduler_of(below) if locate(below) else None
    return None


def set_scheduler(pipeline: Any, model: str) -> None:
    """Give the pipeline the scheduler of the recipe, or of the recipe it leans on."""
    if found := scheduler_of(model):
        scheduler, path = found
        overlays.set_scheduler(pipeline, scheduler.name, pipeline.scheduler.config, path, **scheduler.options)


def size(model: str) -> tuple[int, int] | None:
    """Height and width in pixels of what a model draws, from its recipe or its configs; None where they do not say.

    Nothing is fetched where the recipe says it, else what `load` would fetch.
    """
    recipe = read_recipe(model)
    if recipe.height and recipe.width:
        return recipe.height, recipe.width
    configs = _configs(_overlays(model))
    network, vae = configs.get("unet") or configs.get("transformer") or {}, configs.get("vae") or {}
    edge, blocks = network.get("sample_size"), vae.get("block_out_channels")
    if not isinstance(edge, int) or not blocks:
        return None
    edge *= 2 ** (len(blocks) - 1)  # every block of the VAE but its last halves the image
    return recipe.height or edge, recipe.width or edge


def _configs(parts: Sequence[Overlay]) -> dict[str, dict[str, Any]]:
    """The config of each part, by the part's name; that of a later overlay in place of an earlier one's."""
    files = [path for overlay in parts for path in overlay.files if path.name == "config.json"]
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in files}


# ---- noise -----------------------------------------------------------------------------------------------------------


def generator(seed: int, key: str) -> torch.Generator:
    """A source of random numbers on the CPU that depends on (seed, key) alone. torch takes 32 bits of it: among 30,000
    keys two have the same numbers with a chance of a tenth.
    """
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def noise(shape: Sequence[int], *, seed: int, key: str) -> Tensor:
    """Standard normal noise that depends on (seed, key) alone, drawn on the CPU in float32."""
    return torch.randn(*shape, generator=generator(seed, key))

"""What a model's name stands for: an embedded one (`shapes/base`), a folder, a hub id (`OWNER/NAME`, or
`OWNER/NAME@REVISION`), or a recipe: a YAML file, or the name of one of those in `evaluate/models`. A folder may hold a
`recipe.yaml`.
"""

import re
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from evaluate import embedded, layouts
from evaluate.pipelines.recipe import Recipe
from evaluate.weights import SUFFIXES
from prompts.io import hub
from prompts.io.errors import UserError
from prompts.io.yaml import read_model

MODELS = Path(__file__).parents[1] / "models"
#: From 0 to 1: how like a shipped model's name another must be to be taken for a slip of it, and
#: a name that could be a hub id.
ALIKE, HUB_ALIKE = 0.6, 0.85


class HubId(NamedTuple):
    """Where something lies on the hub."""

    repository: str
    file: str | None
    revision: str


def hub_id(source: str) -> HubId | None:
    """`OWNER/NAME[/FILE][@REVISION]` taken apart; None for what is none."""
    endings = "|".join(map(re.escape, SUFFIXES))
    match = re.fullmatch(rf"([\w.-]+/[\w.-]+)(?:/([^@]+(?:{endings})))?(?:@([\w./-]+))?", source)
    return HubId(match[1], match[2], match[3] or "main") if match and not source.startswith(".") else None


def split(model: str) -> tuple[str, str]:
    """A hub id's repository and revision, '' where it names none."""
    repository, _, revision = model.partition("@")
    return repository, revision


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
    name, inside = split(model)[0], embedded.models()
    if name.partition("/")[0] in {known.partition("/")[0] for known in inside}:
        return get_close_matches(name, inside, 1, 0)[0]
    return next(iter(get_close_matches(name, [*inside, *names()], 1, cutoff)), None)


def read_recipe(model: str) -> Recipe:
    """The model's recipe, or the defaults where it has none."""
    path = locate(model)
    if path is None:
        # What others publish has no recipe of ours, and a hub that is out of reach takes its time to say so.
        return Recipe() if split(model)[0] in layouts.known() else _published(model)
    path = path / "recipe.yaml" if path.is_dir() else path
    return read_model(path, Recipe) if path.is_file() else Recipe()


@lru_cache
def _published(model: str) -> Recipe:
    """The recipe.yaml that a pipeline on the hub may have beside it, as `align export --push-to-hub` puts it there."""
    repo, revision = split(model)
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
    recipe, repo = read_recipe(model), split(model)[0]
    if recipe.model_fields_set:
        return ""
    said = f"{model} has no recipe: {recipe.steps} steps, guidance {recipe.guidance_scale:g}, fp32 unless you say else"
    shipped = {name: read_recipe(name) for name in names()}
    whole = [n for n, r in shipped.items() if r.pipeline == repo and not (r.unet or r.delta or r.lora)]
    return said + (f"; {' and '.join(whole)} draw it as published" if whole else "")


def beside(folder: Path, pipeline: str) -> str:
    """A recipe's `pipeline`: a folder next to the recipe, or else a name as any other."""
    return str(folder / pipeline) if (folder / pipeline).is_dir() else pipeline

"""The recipe of a LoRA: over what it lies and how it is drawn with."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.config.train import TrainConfig
from align.networks.initial import LORA, is_in_shards, is_pipeline, weights_file
from evaluate import pipelines
from evaluate.pipelines import address
from evaluate.pipelines.address import hub_id
from evaluate.pipelines.recipe import Recipe

#: The fields of a recipe that say how the pipeline is called.
CALL = {"steps", "timesteps", "sigmas", "guidance_scale", "height", "width", "arguments", "dtype"}


def lora_recipe(config: TrainConfig, run: Mapping[str, Any], recipe: Recipe, network: str, folder: Path) -> Recipe:
    """The recipe of a LoRA in `folder` over what training started from. recipe: the checkpoint's own recipe. Over a
    pipeline in shards text encoders and autoencoder are that pipeline's, which a distilled model shares with its
    teacher.

    Raises UserError where no recipe can say it.
    """
    sources = run["sources"]
    whole, start = sources["pipeline"] or sources["reference"], sources["initial"]
    if start in (None, whole, sources["reference"]):
        start = sources["reference"] if sources["pipeline"] else None
    name, options, _ = config.generator.stock_scheduler(flow=recipe.sigmas is not None)
    fields: dict[str, Any] = {}
    leaning = pipelines.read_recipe(start) if start and is_pipeline(start) else None
    leans = leaning is not None and bool(leaning.pipeline or leaning.unet)
    # Several files are more than a recipe has room for.
    if start and (leans or (not sources["pipeline"] and is_in_shards(start, network))):
        whole = start
    elif start:
        fields["unet"] = weights_file(start, network, folder)
    where = None if Path(whole).exists() or address.locate(address.split(whole)[0]) else hub_id(whole)
    if where:
        base = {"pipeline": where.repository, "revision": where.revision}
    else:
        base = {
            "pipeline": whole
            if not Path(whole).exists()  # an id of the hub, or the name of a recipe that ships
            else os.path.relpath(whole, folder.resolve())
        }
    return Recipe.model_validate(
        base
        | fields
        | {"lora": {"file": LORA}, "scheduler": {"name": name, "options": options}}
        | recipe.model_dump(include=CALL, exclude_none=True)
    )

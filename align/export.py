"""A training run's result as a diffusers pipeline folder that stock diffusers loads, with a recipe and a card."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor

from align.config import TrainConfig
from prompts.errors import UserError

if TYPE_CHECKING:
    from align.train import Model

CARD = """# {name}

A one-step text-to-image generator trained by `align` with the method `{method}`, {step} steps. Reference: `{reference}`;
started from `{initial}`. Every setting is in `config.yaml` beside this folder.

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{folder}")
pipeline("{prompt}", timesteps={timesteps}, guidance_scale={guidance}).images[0]
```
"""


def one_step(config: TrainConfig, model: "Model", scheduler: Any) -> tuple[Any, dict[str, Any]]:
    """The stock scheduler whose single step is `G(z, c)`, and the recipe that calls it.

    Noise scaled by sigma_init is what EulerDiscreteScheduler does; unit variance is LCMScheduler's.
    """
    from diffusers import EulerDiscreteScheduler, LCMScheduler

    timestep = int(model.schedule.timestep(torch.tensor([model.sigma_init])))
    if config.generator.noise_scale == "sigma":
        made: Any = EulerDiscreteScheduler.from_config(scheduler.config, timestep_spacing="trailing")
        guidance = 1.0
    else:
        made = LCMScheduler.from_config(scheduler.config)
        guidance = 0.0
    return made, {"steps": 1, "timesteps": [timestep], "guidance_scale": guidance}


def export(
    config: TrainConfig, model: "Model", pipeline: Any, weights: Mapping[str, Tensor], output: Path, *, step: int
) -> Path:
    """Write `output/checkpoint`, whole or not at all: the pipeline with `weights` as its network, recipe.yaml, README.md."""
    target, draft = output / "checkpoint", output / ".checkpoint.partial"
    network = getattr(pipeline, model.family.network)
    fresh = type(network).from_config(network.config)
    fresh.load_state_dict({key: value.cpu() for key, value in weights.items()})
    scheduler, recipe = one_step(config, model, pipeline.scheduler)
    components = {**pipeline.components, model.family.network: fresh, "scheduler": scheduler}
    whole = type(pipeline)(**components, **({"requires_safety_checker": False} if "safety_checker" in components else {}))
    try:
        shutil.rmtree(draft, ignore_errors=True)
        whole.save_pretrained(draft)
        (draft / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        (draft / "README.md").write_text(
            CARD.format(
                name=output.name, method=config.method, step=step, reference=config.reference, initial=config.initial or config.reference,
                folder=target.name, prompt=model.example, timesteps=recipe["timesteps"], guidance=recipe["guidance_scale"],
            )
        )  # fmt: skip
        replace(draft, target)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise UserError(f"{target}: cannot be written ({error.strerror or error}); free some space, then --resume") from None
    return target


def replace(draft: Path, target: Path) -> None:
    """Put the folder `draft` in the place of `target`, which stays whole if this fails."""
    aside = target.with_name(f".{target.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        target.rename(aside)
    draft.rename(target)
    shutil.rmtree(aside, ignore_errors=True)

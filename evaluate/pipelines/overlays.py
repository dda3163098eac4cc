"""What a model is made of: a whole diffusers pipeline, and overlays on it. Every file is
known, every weight matched by name.

An overlay's `kind` is `pipeline`, or says what its weights do to the pipeline's network, which is its
UNet or transformer: `network` takes the place of its weights, `delta` is added to them, `lora` is
added as products of low rank.
"""

import importlib
import json
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from evaluate import families, weights
from evaluate.pipelines import lora
from prompts.io import hub
from prompts.io.errors import UserError
from prompts.io.files import text_sha256

#: Parts that are not loaded: an image that a safety checker has blackened would be scored as the model's own.
UNUSED = ("safety_checker", "feature_extractor")
#: Files of a part that are no weights: configs, tokenizers and their templates, the index of weights in several files.
TEXTS = (".json", ".txt", ".model", ".jinja")


class Overlay(NamedTuple):
    """Files that are loaded, below `root`.

    variant: which of a pipeline's weights, e.g. `fp16`; None: those without a suffix.
    """

    kind: str
    root: Path
    files: tuple[Path, ...]
    variant: str | None = None

    def digest(self) -> str:
        """Hash of the files' names and bytes."""
        lines = [f"{path.relative_to(self.root).as_posix()} {weights.sha256(path)}\n" for path in self.files]
        return text_sha256("".join(lines))


# ---- files -----------------------------------------------------------------------------------------------------------


def snapshot(repo: str, revision: str | None = None, variant: str | None = None) -> Path:
    """The local folder with what is loaded of a pipeline on the hub. Raises UserError with the remedy."""
    index = hub.fetch(repo, "model_index.json", revision or "main")
    families.check_class(index, repo)  # before tens of gigabytes are fetched
    suffixes = [f"*.{variant}.safetensors", f"*.{variant}-*.safetensors"] if variant else ["*.safetensors"]
    allow = [f"{part}/{pattern}" for part in parts(index) for pattern in (*suffixes, *(f"*{text}" for text in TEXTS))]
    # The commit that the index came from, should the branch move meanwhile.
    return hub.fetch_folder(
        repo, index.parent.name, allow=["model_index.json", *allow], ignore=[] if variant else ["*.*.safetensors"]
    )


def parts(index: Path) -> dict[str, tuple[str, str]]:
    """The parts that a `model_index.json` names: the library and the class of each."""
    if not index.is_file():
        raise UserError(
            f"{index.parent}: no model_index.json there; give a folder that a diffusers pipeline was saved to"
        )
    try:
        entries: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{index}: not JSON ({error}); fetch it again") from None
    named = {name: tuple(entry) for name, entry in entries.items() if isinstance(entry, list) and name not in UNUSED}
    return {name: (library, kind) for name, (library, kind) in named.items() if library is not None}


def check_parts(folder: Path) -> dict[str, tuple[str, str]]:
    """The parts of a pipeline's folder; a UserError where one is absent: an absent tokenizer
    would be loaded as an empty one.
    """
    index = folder / "model_index.json"
    named = parts(index)
    for name in named:
        if not (folder / name).is_dir():
            raise UserError(f"{folder / name}: no such folder, though {index.name} names it; fetch it again")
    return named


def part_class(library: str, name: str) -> Any:
    """The class of a part; None where it is none of diffusers' or transformers'."""
    if library not in ("diffusers", "transformers"):
        return None
    return getattr(importlib.import_module(library), name, None)


def pipeline_overlay(folder: Path, variant: str | None = None) -> Overlay:
    """A whole pipeline: its index, and each part's configs and weights."""
    files = [folder / "model_index.json"]
    for name, entry in check_parts(folder).items():
        files += [path for path in (folder / name).iterdir() if path.suffix in TEXTS]
        kind = part_class(*entry)
        if kind is not None and issubclass(kind, nn.Module):
            files += weight_files(folder / name, variant)
    return Overlay("pipeline", folder, tuple(sorted(files)), variant)


def weight_files(part: Path, variant: str | None = None) -> list[Path]:
    """A part's safetensors files of a variant, whole every one; a UserError where there are none."""
    suffix = re.compile(rf"[^.]+\.{re.escape(variant)}(-\d+-of-\d+)?" if variant else r"[^.]+")
    files = sorted(path for path in part.glob("*.safetensors") if suffix.fullmatch(path.stem))
    if not files:
        which = f"{variant} weights in safetensors" if variant else ".safetensors weights"
        raise UserError(f"{part}: no {which} there; fetch or export the model again, or name another variant")
    weights.check_files(files)
    return files


def network_overlay(folder: Path, name: str) -> Overlay:
    """A network's folder `folder/name`: its config and weights, and the scheduler beside it,
    where it was exported with one.
    """
    config = folder / name / "config.json"
    if not config.is_file():
        raise UserError(f"{config}: no such file; recipe.yaml's field 'unet' must name a folder with a network")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    files = [config, *weight_files(folder / name), *([scheduler] if scheduler.is_file() else [])]
    return Overlay("network", folder, tuple(sorted(files)))


# ---- loading ---------------------------------------------------------------------------------------------------------


def network_name(pipeline: Any) -> str:
    """The name of the part that denoises."""
    return "unet" if "unet" in pipeline.components else "transformer"


def load_pipeline(
    overlay: Overlay, dtype: torch.dtype, dtypes: Mapping[str, torch.dtype] | None = None, *, without: str = ""
) -> Any:
    """A stock diffusers pipeline. dtypes: of parts, by name, that have another one. without: a part to leave out.

    Raises UserError for a weight that is missing or left over.
    """
    from diffusers import DiffusionPipeline

    index = overlay.root / "model_index.json"
    named = json.loads(index.read_text(encoding="utf-8"))
    components: dict[str, Any] = {name: None for name in UNUSED if name in named}
    for name, entry in parts(index).items():
        kind = part_class(*entry)
        if name == without:
            components[name] = None
        elif kind is not None and issubclass(kind, nn.Module):
            components[name] = _load_part(kind, overlay.root / name, overlay.variant, (dtypes or {}).get(name, dtype))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the safety checker that is left out
            return DiffusionPipeline.from_pretrained(overlay.root, torch_dtype=dtype, **components)
    except weights.DAMAGE as error:
        raise UserError(f"{overlay.root}: cannot be loaded ({weights.reason(error)}); fetch it again") from None


def _load_part(kind: Any, folder: Path, variant: str | None, dtype: torch.dtype) -> Any:
    # diffusers and transformers rename what older files hold, and draw at random what a
    # file lacks; here that is an error.
    name = "torch_dtype" if hasattr(kind, "load_config") else "dtype"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            part, info = kind.from_pretrained(
                folder, variant=variant, use_safetensors=True, output_loading_info=True, **{name: dtype}
            )
    except weights.DAMAGE as error:
        raise UserError(f"{folder}: cannot be loaded ({weights.reason(error)}); fetch it again") from None
    buffers = {name for name, _ in part.named_buffers()}
    # Files of older versions hold buffers that a module makes itself.
    extra = [key for key in info["unexpected_keys"] if not any(f".{key}".endswith(f".{buffer}") for buffer in buffers)]
    weights.refuse(info["missing_keys"], extra, folder)
    return part.eval()


def replace_network(pipeline: Any, overlay: Overlay) -> None:
    """Load a network's weights into the pipeline's own; with a config beside them, into a new one that it describes."""
    old = getattr(pipeline, network_name(pipeline))
    configs = {path.name: path for path in overlay.files if path.suffix == ".json"}
    files = [path for path in overlay.files if path.name not in configs]
    network = old
    if "config.json" in configs:
        network = type(old).from_config(type(old).load_config(configs["config.json"].parent)).to(old.dtype)
    tensors = {key: value for path in files for key, value in weights.read(path).items()}
    weights.load_strict(network, tensors, overlay.root if configs else files[0])
    pipeline.register_modules(**{network_name(pipeline): network.eval()})
    if "scheduler_config.json" in configs:
        config = json.loads(configs["scheduler_config.json"].read_text(encoding="utf-8"))
        set_scheduler(pipeline, str(config.get("_class_name")), config, overlay.root)


def set_scheduler(pipeline: Any, name: str, config: Mapping[str, Any], source: object, **options: Any) -> None:
    """Give the pipeline a scheduler of diffusers or of `evaluate.pipelines.schedulers`, by the name of its class.

    options: over what the config has. Not in it: diffusers takes what a config's file did not have out of the config.
    """
    import diffusers

    from evaluate.pipelines import schedulers

    kind = getattr(diffusers, name, None) or getattr(schedulers, name, None)
    if not name.endswith("Scheduler") or kind is None:
        raise UserError(f"{source}: scheduler: there is no {name!r}; name one of diffusers' schedulers")
    pipeline.scheduler = kind.from_config(config, **options)


@torch.no_grad()
def add_delta(pipeline: Any, overlay: Overlay) -> None:
    """Add a difference of weights to the network's."""
    network, (file,) = getattr(pipeline, network_name(pipeline)), overlay.files
    tensors = weights.read(file)
    weights.match(network, tensors, file)
    for key, value in network.state_dict().items():
        value += tensors[key].to(value.dtype)


def add_lora(pipeline: Any, overlay: Overlay) -> None:
    """Add a LoRA to the network's weights, and to text encoders' where it has any; a key
    without a place is a UserError.
    """
    (file,) = overlay.files
    lora.add(pipeline, network_name(pipeline), weights.read(file), file)


#: What puts an overlay on a pipeline, by the overlay's kind.
OVERLAYS: dict[str, Callable[[Any, Overlay], None]] = {"network": replace_network, "delta": add_delta, "lora": add_lora}

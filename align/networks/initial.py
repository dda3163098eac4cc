"""What a network starts from: a diffusers folder or hub id, a bare file of weights, or a LoRA.

A source is a local path, the name of an embedded model, `OWNER/NAME` or `OWNER/NAME/FILE` of the hub, the last two with
`@REVISION` where one is to be pinned. Whatever it is, its tensors go into a network of known architecture, and every
key and every shape has to match.
"""

import os
import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from evaluate import pipelines, weights
from evaluate.pipelines import address, lora
from evaluate.pipelines.address import HubId, hub_id
from prompts.io import hub
from prompts.io.errors import UserError

LORA = "pytorch_lora_weights.safetensors"  # as diffusers names it


def is_pipeline(source: str) -> bool:
    """Whether `source` is a pipeline on this machine, with a recipe of its own, rather than a
    network or something of the hub.
    """
    where = hub_id(source)
    if Path(source).suffix in weights.SUFFIXES or (where and (where.file or where.revision != "main")):
        return False
    path = address.locate(source)
    return path is not None and (
        path.is_file() or (path / "model_index.json").is_file() or (path / "recipe.yaml").is_file()
    )


def check_trainable(field: str, source: str | None) -> None:
    """Raises UserError where the images of `source`, the value of `field`, are made by more than its network."""
    if source and is_pipeline(source) and (sampler := pipelines.read_recipe(source).sampler):
        raise UserError(
            f"{field} = {source}: the sampler {sampler.get('name')} makes its images, and only a network can be "
            "trained; name the pipeline that its recipe.yaml draws with"
        )


def is_in_shards(source: str, name: str) -> bool:
    """Whether `source` is a whole pipeline, whose network `name` is in several files."""
    if (folder := Path(source)).is_dir():
        found = _files_in(folder)
        return "model_index.json" in found and len(_pick(found, source, name)) > 1
    where = None if Path(source).exists() else hub_id(source)
    if where is None or where.file or address.locate(where.repository):
        return False
    files = _list(where)
    return "model_index.json" in files and len(_pick(files, source, name)) > 1


def load_into(pipeline: Any, name: str, network: nn.Module, source: str) -> None:
    """Give `network` the weights that `source` names, or add its LoRA to those it has.

    pipeline: the one whose network `name`, `unet` or `transformer`, is of the same architecture. Raises UserError for
    what cannot be found or does not match; the network is then untouched.
    """
    tensors = read(source, name)
    if lora.is_lora(tensors):
        lora.add(pipeline, name, tensors, source, network=network)
    else:
        weights.load_strict(network, tensors, source)


def read(source: str, name: str) -> dict[str, Tensor]:
    """The tensors that `source` names, of the network `name` or of a LoRA."""
    path = Path(source)
    if path.is_file() and path.suffix in weights.SUFFIXES:
        return weights.read(path)
    where = None if path.exists() else hub_id(source)
    if where and where.file:
        return weights.read(hub.fetch(where.repository, where.file, where.revision))
    if where and address.locate(where.repository) is None:
        return _read_files(_fetch(where, source, name))
    folder = address.locate(source)
    if folder is None:
        raise UserError(f"{source}: no such file or folder, and no hub id; check it")
    recipe = pipelines.read_recipe(source)
    if recipe.pipeline or recipe.unet:
        whole: nn.Module = getattr(pipelines.load(source), name)
        return dict(whole.state_dict())
    return _read_files(_pick(_files_in(folder), source, name), folder)


def _pick(files: list[str], source: str, name: str) -> list[str]:
    """Of a folder's files those that hold the network: its own subfolder's, or the folder's; or else a LoRA."""
    for prefix in (f"{name}/", ""):
        if f"{prefix}config.json" in files:
            whole = re.compile(re.escape(prefix) + r"diffusion_pytorch_model(-\d{5}-of-\d{5})?\.safetensors")
            pickle = [file for file in files if file == f"{prefix}diffusion_pytorch_model.bin"]
            if matching := [file for file in files if whole.fullmatch(file)] or pickle:
                return matching
    if LORA in files:
        return [LORA]
    raise UserError(f"{source}: holds neither a {name} nor {LORA}; name a file of it, as in OWNER/NAME/FILE")


def _files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def _list(where: HubId) -> list[str]:
    """The files of a hub repository."""
    from huggingface_hub import list_repo_files

    try:
        return sorted(list_repo_files(where.repository, revision=where.revision))
    except Exception as error:  # what a broken line raises is its HTTP library's
        raise hub.refusal(error, where.repository, "its files", where.revision) from None


def _fetch(where: HubId, source: str, name: str) -> list[str]:
    """Local copies of the files of a hub repository that hold the network."""
    return [str(hub.fetch(where.repository, file, where.revision)) for file in _pick(_list(where), source, name)]


def _read_files(files: list[str], folder: Path = Path()) -> dict[str, Tensor]:
    return {key: value for file in files for key, value in weights.read(folder / file).items()}


def weights_file(source: str, name: str, folder: Path) -> dict[str, str]:
    """The one file with the network `name` that `source` stands for, as a recipe in `folder` calls it.

    Raises UserError where it is in several files, or a LoRA itself.
    """
    path, where = Path(source), hub_id(source)
    if lora.is_lora(read(source, name)):
        raise UserError(f"{source}: a LoRA itself, and a recipe has room for one; export the whole checkpoint")
    if path.is_file():
        return {"file": os.path.relpath(path, folder.resolve())}
    if where and where.file and not path.exists():
        return {"repo": where.repository, "revision": where.revision, "file": where.file}
    if path.is_dir():
        files = _pick(_files_in(path), source, name)
        location = {"file": os.path.relpath(path / files[0], folder.resolve())}
    else:
        assert where is not None  # what is neither has not been read
        files = _pick(_list(where), source, name)
        location = {"repo": where.repository, "revision": where.revision, "file": files[0]}
    if len(files) > 1:
        raise UserError(
            f"{source}: a network in {len(files)} files, and a recipe has room for one; export the whole checkpoint"
        )
    return location

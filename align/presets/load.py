"""Presets: what ships, and what a preset, a file and `--set key=value` come to together."""

import itertools
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from align.config.overrides import assign, merge, refuse_tokens
from align.options import Config
from prompts.io.errors import UserError
from prompts.io.hub import redact
from prompts.io.validate import nearest, validate
from prompts.io.yaml import read_yaml

#: A preset's stage -> the command that runs it. The model that validates it is in the room that carries it out.
COMMANDS = {
    "vae": "pretrain",
    "teacher": "pretrain",
    "clip": "pretrain",
    "train": "train",
    "reward": "reward",
    "sweep": "sweep",
}


def preset_files() -> list[Path]:
    """The presets' files."""
    return sorted(Path(str(resources.files("align") / "presets")).glob("*.yaml"))


def stages() -> dict[str, str]:
    """The stage of every preset, by name."""
    written = _written()
    return {name: _lineage(name, written)[0]["stage"] for name in written}


def presets(model_of: Mapping[str, type[Config]]) -> dict[str, dict[str, Any]]:
    """The presets of the stages in `model_of`, by name, unvalidated."""
    written = _written()
    return {
        name: _content(name, written, model_of) for name in written if _lineage(name, written)[0]["stage"] in model_of
    }


def file_of(preset: str) -> Path | None:
    """The file that stands in a preset's place: what ends in `.yaml` is a path, and no name."""
    return Path(preset) if preset.endswith((".yaml", ".yml")) else None


def origin_of(preset: str) -> str | None:
    """The preset that ships behind one, which for a file is its base; None for a file without."""
    path = file_of(preset)
    return read_yaml(path).get("base") if path else preset


def name_of(preset: str) -> str:
    """A preset's name, or a file's without its ending."""
    path = file_of(preset)
    return path.stem if path else preset


def _written() -> dict[str, dict[str, Any]]:
    return {path.stem: read_yaml(path) for path in preset_files()}


def _read(path: Path, written: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """A file in a preset's place. Raises UserError where it does not say what it is, or what it is laid over."""
    content = read_yaml(path)
    refuse_tokens(content, str(path))
    base, stage = content.get("base"), content.get("stage")
    if base is None and stage not in [*COMMANDS]:  # a list, in which what cannot be a key can be looked for
        raise UserError(
            f"{path}: neither a stage ({', '.join(COMMANDS)}) nor a base; add 'base: PRESET', or give a preset and"
            f" --config {path}"
        )
    if base is None:
        return content
    if base not in [*written]:
        raise UserError(f"{path}: base = {base!r}: no preset that ships; {nearest(str(base), list(written))}")
    if stage not in (None, known := _lineage(base, written)[0]["stage"]):
        raise UserError(f"{path}: stage = {stage!r}, and its base {base!r} is of stage {known!r}; leave stage out")
    return content


def content_of(preset: str, model_of: Mapping[str, type[Config]]) -> dict[str, Any]:
    """A preset, or a file in its place, unvalidated. Raises UserError for one that is of no stage in `model_of`."""
    written, path = _written(), file_of(preset)
    if path:
        written[preset] = _read(path, written)
    stage = _lineage(preset, written)[0]["stage"] if preset in written else None
    if stage in model_of:
        return _content(preset, written, model_of)
    if path and stage:
        raise UserError(f"{preset}: of stage {stage!r}; give it to 'align {COMMANDS[stage]}'")
    other = f" ({preset!r} belongs to 'align {COMMANDS[stage]}')" if stage else ""
    raise UserError(f"no preset {preset!r} here{other}; {nearest(preset, list(presets(model_of)))}")


def _content(name: str, written: Mapping[str, dict[str, Any]], model_of: Mapping[str, type[Config]]) -> dict[str, Any]:
    """What a preset comes to, laid over what its key `base` names."""
    content, *changes = _lineage(name, written)
    for change in changes:
        settings = {key: value for key, value in change.items() if key != "base"}
        content = merge(model_of[content["stage"]], content, settings)
    return content


def _lineage(name: str, written: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A preset as it is written, behind those that it is laid over; the first has a stage."""
    content = written[name]
    return [*(_lineage(content["base"], written) if content.get("base") else []), content]


def describe(path: Path) -> str:
    """The comment a preset opens with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return " ".join(line.lstrip("# ") for line in itertools.takewhile(lambda line: line.startswith("#"), lines))


def resolve(
    preset: str, model_of: Mapping[str, type[Config]], *, config: Path | None = None, sets: Sequence[str] = ()
) -> Config:
    """Preset, or a file in its place (`file_of`), then `config` laid over it, then `sets`; `model_of` maps a stage to
    the model that validates it.
    """
    content, path = content_of(preset, model_of), file_of(preset)
    model = model_of[content["stage"]]
    file = read_yaml(config) if config else {}
    refuse_tokens(file, str(config))
    for text in sets:
        refuse_tokens(text, f"--set {redact(text.partition('=')[0])}")
    content = merge(model, content, file)
    for text in sets:
        content = assign(content, text)

    def source(field: str) -> str:
        for text in reversed(sets):
            if not field or f"{field}.".startswith(f"{text.partition('=')[0]}."):
                return f"--set {text}"
        of_config = config and (not field or field.split(".")[0] in file)
        return str(config) if of_config else preset if path else f"preset {preset}"

    return validate(model, content, source)

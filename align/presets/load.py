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
    """The presets of the stages in `model_of`, by name, unvalidated.

    One with the key `base` is laid over what it names.
    """
    written, contents = _written(), {}
    for name in written:
        content, *changes = _lineage(name, written)
        if content["stage"] not in model_of:
            continue
        for change in changes:
            settings = {key: value for key, value in change.items() if key != "base"}
            content = merge(model_of[content["stage"]], content, settings)
        contents[name] = content
    return contents


def _written() -> dict[str, dict[str, Any]]:
    return {path.stem: read_yaml(path) for path in preset_files()}


def _lineage(name: str, written: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A preset as it is written, behind those that it is laid over; the first has a stage."""
    content = written[name]
    return [*(_lineage(content["base"], written) if "base" in content else []), content]


def describe(path: Path) -> str:
    """The comment a preset opens with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return " ".join(line.lstrip("# ") for line in itertools.takewhile(lambda line: line.startswith("#"), lines))


def resolve(
    preset: str, model_of: Mapping[str, type[Config]], *, config: Path | None = None, sets: Sequence[str] = ()
) -> Config:
    """Preset, then `config` laid over it, then `sets`; `model_of` maps a stage to the model that validates it."""
    known = presets(model_of)
    if preset not in known:
        stage = stages().get(preset)
        other = f" ({preset!r} belongs to 'align {COMMANDS[stage]}')" if stage else ""
        raise UserError(f"no preset {preset!r} here{other}; {nearest(preset, list(known))}")
    content, model = known[preset], model_of[known[preset]["stage"]]
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
        return str(config) if config and (not field or field.split(".")[0] in file) else f"preset {preset}"

    return validate(model, content, source)

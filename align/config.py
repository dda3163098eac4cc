"""Configuration: presets, files and `--set key=value`, validated together; an unknown key names the nearest known one."""

import contextlib
import difflib
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

from prompts.extensions import member
from prompts.io.errors import UserError
from prompts.shapes.grammar import MIX

NonNegative = Annotated[float, Field(ge=0)]
C = TypeVar("C", bound="Config")
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Config(BaseModel):
    """What every section shares: it is frozen and knows all its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Fit(Config):
    """How a network is fitted to data: Adam, linear warm-up, cosine decay to zero, an average of the weights."""

    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    warmup: int = Field(100, ge=0, description="steps")
    weight_decay: NonNegative = 0.0
    clip: PositiveFloat = 1.0
    ema: Fraction = 0.999
    save_every: PositiveInt = 500


class Sigmas(Config):
    """The distribution that noise levels are drawn from: a name in `evaluate.diffusion.TIMES` and its parameters."""

    name: Literal["lognormal", "uniform"] = "lognormal"
    parameters: dict[str, float] = {"mean": -2.0, "std": 2.0}


class VaeConfig(Config):
    """Stage `vae`: a diffusers AutoencoderKL on rendered pictures."""

    stage: Literal["vae"]
    seed: int = 0
    fit: Fit
    kl: NonNegative = Field(description="weight of the KL term, per picture, against mean squared error per channel value")
    architecture: dict[str, Any]


class TeacherConfig(Config):
    """Stage `teacher`: text encoder and UNet, trained together in the latents of a finished autoencoder."""

    stage: Literal["teacher"]
    seed: int = 0
    fit: Fit
    vae: str = Field(description="folder of the autoencoder")
    images: PositiveInt = Field(description="pictures rendered and encoded once, before training")
    mix: Mapping[str, NonNegative] = Field(dict(MIX), description="how often each family of captions is drawn")
    drop_prompt: Fraction = Field(0.1, description="share of prompts replaced by the null prompt, for guidance")
    layout: NonNegative = Field(0.0, description="weight of predicting the clean latents from the text alone")
    layout_steps: int = Field(0, ge=0, description="first steps, in which nothing else is learned")
    sigmas: Sigmas
    scheduler: dict[str, Any]
    text_encoder: dict[str, Any]
    unet: dict[str, Any]


class ClipConfig(Config):
    """Stage `clip`: a small CLIP on rendered pictures and their captions."""

    stage: Literal["clip"]
    seed: int = 0
    fit: Fit
    edited: float = Field(
        0.0, ge=0, le=0.5, description="share of a batch whose captions say what another one says but for one thing"
    )
    architecture: dict[str, Any]


class Optimizer(Config):
    """How a role's parameters are updated."""

    name: Literal["adam", "adamw", "adam8bit", "adamw8bit", "sgd"] = Field(
        "adam", description="8bit: bitsandbytes', whose two states take a byte a parameter each in place of four"
    )
    learning_rate: PositiveFloat
    betas: tuple[Fraction, Fraction] = (0.0, 0.999)
    weight_decay: NonNegative = 0.0
    clip: PositiveFloat | None = Field(10.0, description="largest norm of the gradient")


class AssistantConfig(Optimizer):
    """The assistant's optimiser and how often it runs."""

    updates: PositiveInt = Field(1, description="per generator update; k_ta of DI* Algorithm 1")
    warmup: int = Field(0, ge=0, description="updates on the student's samples before the student's first")
    weight: Literal["constant", "edm"] = "edm"


class Divergence(Config):
    """How far the student may go from the reference. `distance`, `huber_c` and `gradient` belong to SIM and DI*."""

    weight: Literal["constant", "edm", "dmd", "inverse_norm"] = "constant"
    distance: str = "pseudo_huber"
    huber_c: PositiveFloat | None = Field(None, description="denoiser units; by default 0.00054 sqrt(C H W)")
    gradient: Literal["exact", "exact_sequential", "detached"] = "exact"


class Guidance(Config):
    """Classifier-free guidance: inside the reference (`in`), as a reward (`out`, alpha_cfg = scale - 1), or off."""

    mode: Literal["off", "in", "out"] = "off"
    scale: PositiveFloat = Field(1.0, description="g; 1 is no guidance")


class Reward(Config):
    """A scorer that training maximises."""

    scorer: str
    scale: float = Field(description="alpha_rew, per picture, where the divergence is summed over C, H, W")
    weights: str | None = Field(None, description="a local path in place of the scorer's own")


class GeneratorOptions(Config):
    """`G(z, c) = D(k z, sigma_init, c)`; k is sigma_init (`sigma`) or sqrt(1 + sigma_init^2) (`unit`, DMD2's)."""

    name: str = "one_step"
    sigma_init: PositiveFloat = 2.5
    noise_scale: Literal["sigma", "unit"] = "sigma"


def _as_its_own(value: Any) -> Any:
    """The generator's options as its file has them; of `one_step`, and of what is no mapping, pydantic sees to it."""
    name = value.get("name", "one_step") if isinstance(value, Mapping) else "one_step"
    if name == "one_step":
        return value
    return member("align.generators", name, "build", what="generator.name").Options.model_validate(value)


class LoraConfig(Config):
    """LoRA adapters in place of full copies."""

    rank: PositiveInt = 64
    alpha: PositiveFloat = 64.0
    targets: tuple[str, ...] = (
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "conv1",
        "conv2",
        "proj_in",
        "proj_out",
        "net.0.proj",
        "net.2",
    )


class HeldOut(Config):
    """Scorers that are not trained on, watched on fixed captions and noise while training runs."""

    scorers: dict[str, NonNegative] = Field({}, description="scorer -> the fall, in its units, that trips the guard")
    prompts: str | None = None
    pictures: PositiveInt = 64
    every: PositiveInt = Field(50, description="steps")
    guard: Literal["stop", "warn", "off"] = "warn"


class TrainConfig(Config):
    """Stage `train`: one-step generators by Diff-Instruct, SIM, Diff-Instruct++ or Diff-Instruct*."""

    stage: Literal["train"]
    method: Literal["di", "sim", "di++", "di*"]
    seed: int = Field(0, ge=0)
    reference: str = Field(description="embedded model, folder or hub id, or with `pipeline` anything that `initial` may be")
    pipeline: str | None = Field(None, description="where everything but the network is, if the reference is a network alone")
    initial: str | None = Field(
        None,
        description="what the student starts from: a folder or hub id, a file of weights, or a LoRA over the reference; "
        "by default the reference",
    )
    family: str = "sd15"
    generator: Annotated[SerializeAsAny[GeneratorOptions], BeforeValidator(_as_its_own)] = GeneratorOptions()
    terms: dict[str, dict[str, Any]] = Field({}, description="further terms of the student's loss: name -> its options")
    critics: dict[str, dict[str, Any]] = Field({}, description="what else is trained beside the student: name -> its options")
    prompts: str = Field(
        description="shapes:train; a text file with one prompt a line; FILE:COLUMN of a .parquet, .csv, .tsv, .json or .jsonl "
        "file; OWNER/NAME:COLUMN[@REVISION] of the hub"
    )
    text_encoding: Literal["ahead", "live"] = Field(
        "ahead", description="ahead encodes every prompt before training and lets go of the text encoders; live keeps them"
    )
    text_cache: str | None = Field(
        None, description="folder of the encoded prompts; by default one below ALIGN_CACHE or ~/.cache"
    )
    steps: PositiveInt
    batch_size: PositiveInt = Field(description="global: pictures a step, over all processes and micro-batches")
    accumulate: PositiveInt = Field(1, description="micro-batches a step and process")
    sigmas: Sigmas = Sigmas()
    divergence: Divergence = Divergence()
    cfg: Guidance = Guidance()
    rewards: tuple[Reward, ...] = ()
    reward_vae: str | None = Field(None, description="a tiny autoencoder's folder or hub id; by default the reference's own")
    student: Optimizer
    assistant: AssistantConfig
    ema: Fraction = 0.95
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"
    parallel: Literal["ddp", "fsdp2"] = Field(
        "ddp", description="fsdp2 spreads weights and optimiser states over the processes"
    )
    lora: LoraConfig | None = None
    gradient_checkpointing: bool = False
    held_out: HeldOut = HeldOut()
    save_every: PositiveInt = 100
    sample_every: int = Field(50, ge=0, description="steps between grids of samples; 0 draws none")
    report: int = Field(0, ge=0, description="held-out captions on which the result is compared with its start; 0 is none")
    report_prompts: str | None = Field(None, description="where these captions are; by default those of `held_out`")
    trackers: tuple[str, ...] = Field((), description="accelerate's, for example tensorboard")

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        rewarded = self.method in ("di++", "di*")
        if rewarded and not self.rewards:
            raise ValueError(
                f"method {self.method} needs rewards; add one, or choose {'di' if self.method == 'di++' else 'sim'}"
            )
        if not rewarded and self.rewards:
            raise ValueError(
                f"method {self.method} takes no rewards; remove them, or choose {'di++' if self.method == 'di' else 'di*'}"
            )
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}; change one of them"
            )
        if self.text_encoding == "live" and self.text_cache:
            raise ValueError(f"text_cache {self.text_cache} does nothing with text_encoding live; leave it out, or set ahead")
        if self.held_out.scorers and not self.held_out.prompts:
            raise ValueError("held_out.scorers need held_out.prompts; name some, for example shapes:validation")
        for role in ("student", "assistant"):
            name = getattr(self, role).name
            if name.endswith("8bit") and (self.parallel == "fsdp2" or self.precision == "fp64"):
                raise ValueError(
                    f"{role}.name {name} works with neither parallel fsdp2 nor precision fp64; set it to {name.removesuffix('8bit')}"
                )
        if self.cfg.mode == "off" and self.cfg.scale != 1:
            raise ValueError(f"cfg.scale {self.cfg.scale:g} does nothing with cfg.mode off; set cfg.mode to in or out")
        return self


class RewardConfig(Config):
    """Stage `reward`: a preference model by Bradley-Terry, from pairs of pictures of one prompt."""

    stage: Literal["reward"]
    seed: int = Field(0, ge=0)
    fit: Fit
    initial: str = Field(description="folder of the CLIP that it starts from")
    held_out: Fraction = Field(0.2, description="share of the pairs' prompts that accuracy is measured on")


class EqualReward(Config):
    """The claim that at equal reward, read off the curves, `better` is ahead of `than`. Both are curves, or one is a cell or a baseline."""

    better: str
    than: str
    metrics: tuple[str, ...] = Field((), description="where it is ahead; by default in every metric but the reward")


class LessStable(Config):
    """The claim that the cells `worse` vary more over seeds, and are stopped more often, than `than`, pair by pair."""

    worse: tuple[str, ...] = Field(min_length=1)
    than: tuple[str, ...] = Field(min_length=1)
    metrics: tuple[str, ...] = Field((), description="that vary more; by default all")

    @model_validator(mode="after")
    def _consistent(self) -> "LessStable":
        if len(self.worse) != len(self.than):
            raise ValueError(f"less_stable pairs {len(self.worse)} cells with {len(self.than)}; give each its counterpart")
        return self


#: Before a scorer's name: the share of pictures that it prefers to those of `Measure.over`.
WIN = "win/"


class Measure(Config):
    """What is measured of every finished run, on the same captions and the same noise."""

    prompts: str
    captions: PositiveInt
    pictures: PositiveInt = Field(2, description="of each caption")
    over: str | None = Field(None, description="the model that win/SCORER is over, ties counting half")
    metrics: dict[str, Literal["higher", "lower"]] = Field(
        min_length=1, description="scorer, win/SCORER or set metric -> which is better; the first is the reward, a scorer"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Measure":
        if any(name.startswith(WIN) for name in self.metrics) and not self.over:
            raise ValueError(f"{WIN}SCORER is a share of wins over a model; name it with measure.over")
        return self


class Baseline(Config):
    """What the runs of a sweep are held against without training: a model as it is, or the best of several of its pictures."""

    model: str
    best_of: PositiveInt = Field(1, description="pictures a caption, of which the one that the reward likes best is measured")
    steps: PositiveInt | None = Field(None, description="in place of the model's own")
    guidance_scale: PositiveFloat | None = Field(None, description="in place of the model's own")


class SweepConfig(Config):
    """Stage `sweep`: runs of `align train` that differ from a centre in one thing each, several seeds of every one."""

    stage: Literal["sweep"]
    centre: str = Field(description="preset of 'align train'")
    common: dict[str, Any] = Field({}, description="laid over the preset in every cell")
    cells: dict[str, dict[str, Any]] = Field(description="name -> what is laid over the centre")
    seeds: PositiveInt
    seeds_of: dict[str, PositiveInt] = Field({}, description="cell -> its seeds, where they are fewer")
    baselines: dict[str, Baseline] = Field({}, description="name -> what is measured without training")
    measure: Measure
    curves: dict[str, tuple[str, ...]] = Field(
        {}, description="name -> cells that differ in the reward's scale alone, or baselines"
    )
    equal_reward: tuple[EqualReward, ...] = ()
    less_stable: tuple[LessStable, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> "SweepConfig":
        for name in (*self.cells, *self.baselines):
            if name == CENTRE or not re.fullmatch(r"[\w.+*-]*\w[\w.+*-]*", name):
                raise ValueError(f"{name!r} cannot name a cell; choose letters, digits and + - . *, other than {CENTRE!r}")
        trained = [CENTRE, *self.cells]
        known = [*trained, *self.baselines]
        stable = [cell for claim in self.less_stable for cell in (*claim.worse, *claim.than)]
        claims: list[EqualReward | LessStable] = [*self.equal_reward, *self.less_stable]
        for name, there in [
            *((name, known) for curve in self.curves.values() for name in curve),
            *((name, trained) for name in (*self.seeds_of, *stable)),
            *((name, [*self.curves, *known]) for claim in self.equal_reward for name in (claim.better, claim.than)),
            *((name, list(self.measure.metrics)) for claim in claims for name in claim.metrics),
        ]:
            if name not in there:
                raise ValueError(
                    f"no {'metric' if there == list(self.measure.metrics) else 'cell or curve'} {name!r}; {_nearest(name, there)}"
                )
        for claim in self.equal_reward:
            sides = [self.curves.get(name, (name,)) for name in (claim.better, claim.than)]
            if max(map(len, sides)) == 1:
                raise ValueError(f"equal_reward: {claim.better} and {claim.than} are single cells; one side must be a curve")
            if all(name in self.baselines for side in sides for name in side):
                raise ValueError(
                    f"equal_reward: {claim.better} and {claim.than} are baselines, which have no seeds; one must be trained"
                )
        return self


#: The cell that all others are compared with: what a sweep starts from, unchanged.
CENTRE = "centre"

PRETRAIN: dict[str, type[Config]] = {"vae": VaeConfig, "teacher": TeacherConfig, "clip": ClipConfig}
TRAIN: dict[str, type[Config]] = {"train": TrainConfig}
REWARD: dict[str, type[Config]] = {"reward": RewardConfig}
SWEEP: dict[str, type[Config]] = {"sweep": SweepConfig}


def preset_files() -> list[Path]:
    """The presets' files."""
    return sorted(Path(str(resources.files("align") / "presets")).glob("*.yaml"))


def presets() -> dict[str, dict[str, Any]]:
    """Every preset by name, unvalidated. One with the key `base` is laid over the preset it names."""
    written = {path.stem: read_yaml(path) for path in preset_files()}
    return {name: _over_base(content, written) for name, content in written.items()}


def _over_base(content: dict[str, Any], written: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    if "base" not in content:
        return content
    own = {key: value for key, value in content.items() if key != "base"}
    base = _over_base(written[content["base"]], written)
    return merge((PRETRAIN | TRAIN | REWARD | SWEEP)[base["stage"]], base, own)


def describe(path: Path) -> str:
    """The comment a preset opens with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return " ".join(line.lstrip("# ") for line in itertools.takewhile(lambda line: line.startswith("#"), lines))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file holding a mapping; UserError otherwise."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}: not valid YAML{where}; mend it there") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no keys; write 'key: value' lines")
    return content


def _nearest(name: str, known: Sequence[str]) -> str:
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {match[0]!r}?" if match else f"known: {', '.join(sorted(known))}"


def _section(model: type[BaseModel] | None, key: str) -> type[BaseModel] | None:
    """The model of the section `key` of `model`, None where the field is no section."""
    field = model.model_fields.get(key) if model else None
    types = [field.annotation, *get_args(field.annotation)] if field else []
    return next((t for t in types if isinstance(t, type) and issubclass(t, BaseModel)), None)


def merge(model: type[BaseModel], base: dict[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`change` laid over `base`: sections are merged key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in change.items():
        section, old = _section(model, key), merged.get(key)
        merged[key] = merge(section, old, value) if section and isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged


def _assign(content: dict[str, Any], text: str) -> dict[str, Any]:
    """`content` with `a.b=value` carried out, the value read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"--set {text!r}: not of the form key=value; write for example --set batch_size=8")
    try:
        parsed: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"--set {text!r}: the value is not valid YAML; quote it") from None
    if isinstance(parsed, str):
        with contextlib.suppress(ValueError):  # YAML 1.1 reads 1e-4 as text
            parsed = float(parsed)
    return place(content, key.split("."), parsed)


def place(content: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """A copy of `content` with `value` at `path`, in place of what was there."""
    first, *rest = path
    inner = content.get(first)
    return {**content, first: place(inner if isinstance(inner, dict) else {}, rest, value) if rest else value}


def difference(old: Any, new: Any, *path: str) -> str | None:
    """`a.b was 1 and is now 2`, of the first of two configs' values that differ; None where none does. Positions in lists count from 0."""
    if old == new:
        return None
    parts = [_parts(old), _parts(new)]
    if parts[0] is not None and parts[1] is not None:
        for key in sorted(parts[0].keys() | parts[1].keys()):
            if found := difference(parts[0].get(key), parts[1].get(key), *path, str(key)):
                return found
    said = ["not set" if value is None else repr(value) for value in (old, new)]
    return f"{'.'.join(path)} was {said[0]} and is now {said[1]}"


def _parts(value: Any) -> dict[Any, Any] | None:
    """What a value consists of, by name or by position; None for one that is a whole."""
    if isinstance(value, list):
        return dict(enumerate(value))
    return {} if value is None else value if isinstance(value, dict) else None


def _keys(model: type[BaseModel], location: Sequence[Any]) -> list[str]:
    """The keys known beside the last one of `location`."""
    inner: type[BaseModel] | None = model
    for part in location[:-1]:
        inner = inner if isinstance(part, int) else _section(inner, str(part))
    return list(inner.model_fields) if inner else []


def validate(model: type[C], content: dict[str, Any], source: str | Callable[[str], str]) -> C:
    """A config from plain values. UserError names the source (or what `source` makes of the field), the field and the remedy."""
    try:
        return model.model_validate(content)
    except ValidationError as failure:
        error = failure.errors()[0]
        field = ".".join(str(part) for part in error["loc"])
        where = source(field) if callable(source) else source
        if error["type"] == "extra_forbidden":
            raise UserError(
                f"{where}: unknown key {field!r}; {_nearest(str(error['loc'][-1]), _keys(model, error['loc']))}"
            ) from None
        if error["type"] == "missing":
            raise UserError(f"{where}: {field!r} is missing; give it a value") from None
        if error["type"] == "value_error":
            raise UserError(f"{where}: {error['ctx']['error']}") from None
        raise UserError(f"{where}: {field} = {error['input']!r} cannot be used: {error['msg'].lower()}; change it") from None


def refuse_tokens(content: Any, source: str) -> None:
    """Raise UserError where a text in `content` holds a token of the hub, or a password: configs are written to disk."""
    from prompts.io.hub import redact

    if isinstance(content, str) and redact(content) != content:
        raise UserError(
            f"{source}: holds a token or a password, and a config is written to disk; take it out, and use 'hf auth login' or HF_TOKEN"
        )
    if isinstance(content, Mapping):
        for key, value in content.items():
            refuse_tokens(str(key), source)
            refuse_tokens(value, source)
    elif isinstance(content, list):
        for value in content:
            refuse_tokens(value, source)


def resolve(
    preset: str, model_of: Mapping[str, type[Config]], *, config: Path | None = None, sets: Sequence[str] = ()
) -> Config:
    """Preset, then `config` laid over it, then `sets`; `model_of` maps the key `stage` to the model that validates it."""
    from prompts.io.hub import redact

    known = presets()
    mine = [name for name, content in known.items() if content.get("stage") in model_of]
    if preset not in mine:
        other = f" ({preset!r} belongs to 'align {command(known[preset]['stage'])}')" if preset in known else ""
        raise UserError(f"no preset {preset!r} here{other}; {_nearest(preset, mine)}")
    content, model = known[preset], model_of[known[preset]["stage"]]
    file = read_yaml(config) if config else {}
    refuse_tokens(file, str(config))
    for text in sets:
        refuse_tokens(text, f"--set {redact(text.partition('=')[0])}")
    content = merge(model, content, file)
    for text in sets:
        content = _assign(content, text)

    def source(field: str) -> str:
        for text in reversed(sets):
            if not field or f"{field}.".startswith(f"{text.partition('=')[0]}."):
                return f"--set {text}"
        return str(config) if config and (not field or field.split(".")[0] in file) else f"preset {preset}"

    return validate(model, content, source)


def command(stage: str) -> str:
    """The command that runs presets of a stage."""
    return {"train": "train", "reward": "reward", "sweep": "sweep"}.get(stage, "pretrain")


def dump(config: Config) -> str:
    """The config as YAML, every key spelled out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def read_run(folder: Path) -> dict[str, Any]:
    """A run folder's `run.json`, which says what its config does not; empty where there is none."""
    path = folder / "run.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        raise UserError(f"{path}: not JSON; delete it, and --resume the run to have it written again") from None
    return content

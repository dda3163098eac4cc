"""Recipes of published models: each loads from the real ids, revisions and file names, and makes an image."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import tiny_models
import torch
import yaml
from hub import Hub
from safetensors.torch import load_file, save_file
from tiny_models import SIDE

from evaluate import cli, embedded, families, pipelines, samplers, weights
from evaluate.pipelines import address, overlays, random_init
from evaluate.pipelines.recipe import Recipe, Weights
from evaluate.results.csv_io import read_csv
from evaluate.runs.settings import from_options
from prompts.io import hub
from prompts.io.errors import UserError

RECIPES = {name: pipelines.read_recipe(name) for name in address.names()}


def kind(recipe: Recipe) -> tuple[Any, ...]:
    """What tells recipes apart that are put together otherwise."""
    parts = (recipe.unet, recipe.delta, recipe.lora, recipe.timesteps, recipe.sigmas)
    return (*map(type, parts), recipe.scheduler and recipe.scheduler.name)


#: One recipe of every kind; the others are run by the slow tests.
QUICK = {
    name
    for name, _ in {
        kind(each): (name, each)
        for name, each in RECIPES.items()
        if not each.reported_only and each.pipeline in tiny_models.PIPELINES
    }.values()
}
RUNNABLE = [
    pytest.param(
        name,
        marks=[
            pytest.mark.skipif(
                recipe.pipeline not in tiny_models.PIPELINES, reason=f"tests/tiny_models.py has no {recipe.pipeline}"
            ),
            *([] if name in QUICK else [pytest.mark.slow]),
        ],
    )
    for name, recipe in RECIPES.items()
    if not recipe.reported_only
]
PROMPTS = ["a small red circle", "a large blue square left of a small red circle"]
#: Rows of the papers' tables, counted in the papers. DI++ Table 1 has two more; which of Table 2's
#: models they are it does not say.
ROWS = {"DI* Table 1": 11, "DI* Table 2": 12, "DI* Table 3": 11, "DI++ Table 1": 46, "DI++ Table 2": 29}


def draw(pipeline: Any, recipe: Recipe, prompts: list[str], **options: Any) -> torch.Tensor:
    return samplers.draw(pipeline, recipe, prompts, **{"seed": 3, "width": SIDE, "height": SIDE} | options)


def own(tmp_path: Path, text: str, **changes: Any) -> str:
    """A recipe of one's own: that of a row, with changes."""
    content = yaml.safe_load((address.MODELS / f"{text}.yaml").read_text()) | changes
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return str(path)


# ---- rows ------------------------------------------------------------------------------------------------------------


def test_every_row_of_the_papers_is_there() -> None:
    found = Counter(row for recipe in RECIPES.values() if recipe.about for row in recipe.about.rows)
    assert found == ROWS


@pytest.mark.parametrize("name", RECIPES)
def test_a_row_says_what_it_is(name: str) -> None:
    recipe = RECIPES[name]
    assert recipe.about
    if recipe.reported_only:
        assert not (recipe.pipeline or recipe.unet or recipe.lora)
        for use in (pipelines.load, pipelines.digest):
            with pytest.raises(UserError, match=re.escape(f"{name}: reported only: {recipe.reported_only}")):
                use(name)
        return
    assert {"pipeline", "steps", "guidance_scale", "width", "height", "dtype"} <= recipe.model_fields_set
    assert recipe.about.parameters
    sources = [source for source in (recipe.unet, recipe.delta, recipe.lora) if isinstance(source, Weights)]
    pinned = [recipe.revision, *(source.revision for source in sources)]
    if not all(pinned):
        assert "revision" in (recipe.about.note or "")
    assert all(re.fullmatch("[0-9a-f]{40}", revision) for revision in pinned if revision)
    assert recipe.timesteps is None or len(recipe.timesteps) == recipe.steps
    assert recipe.sigmas is None or len(recipe.sigmas) == recipe.steps


@pytest.mark.parametrize("name", RUNNABLE)
def test_it_loads_and_makes_images_that_depend_on_prompt_and_seed_alone(name: str, models: Hub) -> None:
    models.requests.clear()
    pipeline, recipe = pipelines.load(name), pipelines.read_recipe(name)
    asked = [path for path in models.requests if "/resolve/" in path]
    assert not any("safety_checker" in path or "feature_extractor" in path for path in asked)
    images = draw(pipeline, recipe, PROMPTS)
    assert images.shape == (2, 3, SIDE, SIDE)
    assert images.isfinite().all()
    assert images.std() > 0.01
    turned = draw(pipeline, recipe, PROMPTS[::-1])
    torch.testing.assert_close(turned.flip(0), images, atol=1e-3, rtol=0)
    alone = draw(pipeline, recipe, PROMPTS[:1])
    torch.testing.assert_close(alone[0], images[0], atol=1e-3, rtol=0)
    other = draw(pipeline, recipe, PROMPTS[:1], seed=4)
    assert (other - alone).abs().mean() > 1e-3


def test_the_pinned_revision_is_asked_for(models: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    models.requests.clear()
    pipelines.load("sd15-hyper-1step")
    recipe = RECIPES["sd15-hyper-1step"]
    assert recipe.lora
    files = [path.strip("/").split("/resolve/") for path in models.requests if "/resolve/" in path]
    assert {(repo, rest.partition("/")[0]) for repo, rest in files} == {
        (recipe.pipeline, recipe.revision),
        (recipe.lora.repo, recipe.lora.revision),
    }
    names = {rest.partition("/")[2] for repo, rest in files if repo == recipe.pipeline}
    assert {name for name in names if name.endswith(".safetensors")} == {
        "text_encoder/model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    }


def test_offline_once_it_is_there(models: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pipelines.digest("sd15-hyper-1step"), pipelines.digest("sdxl-sim")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    models.requests.clear()
    assert (pipelines.digest("sd15-hyper-1step"), pipelines.digest("sdxl-sim")) == before
    assert pipelines.load("sd15-hyper-1step")
    assert not models.requests


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("shapes/bse", "shapes/base"),
        ("shapes/bse@main", "shapes/base"),
        ("shapes/v1-5", "shapes/base"),  # like none of them, but under their prefix
        ("shapse/base", "shapes/base"),
        ("sdxl-dmd2-1step-1042", "sdxl-dmd2-1step-1024"),
    ],
)
def test_a_slip_of_a_shipped_models_name_is_told_without_the_hub(given: str, meant: str, published: Hub) -> None:
    published.requests.clear()
    for use in (pipelines.read_recipe, pipelines.load, pipelines.digest):
        with pytest.raises(UserError, match=f"{given}: no such folder or recipe; did you mean '{meant}'"):
            use(given)
    assert not published.requests


def test_other_hub_ids_still_go_to_the_hub(published: Hub) -> None:
    assert address.locate("somebody/base") is address.locate("tianweiy/DMD2") is None
    published.requests.clear()
    with pytest.raises(UserError, match=r"somebody/base: recipe\.yaml cannot be fetched"):
        pipelines.read_recipe("somebody/base")
    assert published.requests


# ---- what is loaded is what the files hold ---------------------------------------------------------------------------


def test_old_names_of_parts_are_read(models: Hub) -> None:
    pipeline = pipelines.load("sd15-25step")
    folder = models.root / "stable-diffusion-v1-5/stable-diffusion-v1-5" / str(RECIPES["sd15-25step"].revision)
    text = load_file(folder / "text_encoder" / "model.fp16.safetensors")
    own = pipeline.text_encoder.state_dict()
    assert "text_model.embeddings.position_ids" in text
    for key, value in text.items():
        if not key.endswith("position_ids"):
            found = own.get(key, own.get(key.removeprefix("text_model.")))
            torch.testing.assert_close(found, value.float(), atol=0, rtol=0)
    auto = load_file(folder / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    assert "decoder.mid_block.attentions.0.query.weight" in auto
    loaded = pipeline.vae.state_dict()["decoder.mid_block.attentions.0.to_q.weight"]
    torch.testing.assert_close(loaded, auto["decoder.mid_block.attentions.0.query.weight"].float(), atol=0, rtol=0)
    plain = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"]
    assert not torch.equal(pipeline.unet.conv_in.weight, plain)  # the variant has other numbers


def test_bare_networks_deltas_and_loras_are_what_their_files_say(models: Hub) -> None:
    base = pipelines.load("sdxl-50step").unet.state_dict()
    recipe = RECIPES["sdxl-dmd2-1step-1024"]
    assert isinstance(recipe.unet, Weights)
    bare = weights.read(hub.fetch(str(recipe.unet.repo), recipe.unet.file, str(recipe.unet.revision)))
    loaded = pipelines.load("sdxl-dmd2-1step-1024")
    assert all(torch.equal(value, bare[key]) for key, value in loaded.unet.state_dict().items())
    assert type(loaded.scheduler).__name__ == "LCMScheduler"
    assert any(not torch.equal(value, base[key]) for key, value in bare.items())

    plain = pipelines.load("sd15-25step").unet.state_dict()
    recipe = RECIPES["sd15-perflow-4step"]
    assert recipe.delta
    delta = weights.read(hub.fetch(str(recipe.delta.repo), recipe.delta.file, str(recipe.delta.revision)))
    for key, value in pipelines.load("sd15-perflow-4step").unet.state_dict().items():
        torch.testing.assert_close(value, plain[key] + delta[key])

    for name, up, down in (("sd15-lcm-1step", "lora_up", "lora_down"), ("sd15-hyper-1step", "lora_B", "lora_A")):
        recipe = RECIPES[name]
        assert recipe.lora
        low = weights.read(hub.fetch(str(recipe.lora.repo), recipe.lora.file, str(recipe.lora.revision)))
        merged = pipelines.load(name).unet.state_dict()
        assert merged.keys() == plain.keys()
        changed = 0
        for key, value in merged.items():
            stem = key.removesuffix(".weight")
            stem = f"unet.{stem}" if up == "lora_B" else "lora_unet_" + stem.replace(".", "_")
            expected = plain[key]
            if f"{stem}.{up}.weight" in low:
                changed += 1
                a, b = low[f"{stem}.{up}.weight"], low[f"{stem}.{down}.weight"]
                scale = low.get(f"{stem}.alpha", torch.tensor(2.0)) / 2  # of rank 2
                expected = expected + scale * (a.flatten(1) @ b.flatten(1)).view_as(expected)
            torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5)
        assert changed == len([key for key in low if up in key])


def test_the_digest_is_of_what_is_loaded(models: Hub, tmp_path: Path) -> None:
    board = {
        row["model"]: row["model_sha256"] for row in read_csv(Path(__file__).parents[2] / "leaderboards" / "shapes.csv")
    }
    for name, known in board.items():
        assert pipelines.digest(name) == known
    repo = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    local = tiny_models.copy(models, repo, tmp_path / "local")
    file = tmp_path / "own.safetensors"
    shutil.copy(local / "unet" / "diffusion_pytorch_model.safetensors", file)
    name = own(tmp_path, "sd15-25step", pipeline="local", revision=None, unet={"file": file.name})
    before = pipelines.digest(name)
    for spare in ("unet/diffusion_pytorch_model.safetensors", "README.md", "safety_checker/model.safetensors"):
        (local / spare).write_bytes(b"another")  # not of the variant, or not loaded at all
    assert pipelines.digest(name) == before
    for used in ("vae/diffusion_pytorch_model.fp16.safetensors", "scheduler/scheduler_config.json"):
        path = local / used
        content = path.read_bytes()
        tensors = load_file(path) if path.suffix == ".safetensors" else {}
        (
            save_file({key: value + 1 for key, value in tensors.items()}, path)
            if tensors
            else path.write_bytes(content + b"\n")
        )
        assert pipelines.digest(name) != before
        path.write_bytes(content)
    assert pipelines.digest(name) == before
    tensors = load_file(file)
    save_file({key: value + 1 for key, value in tensors.items()}, file)
    assert pipelines.digest(name) != before


@pytest.mark.parametrize(
    ("repo", "part"),
    [
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "text_encoder"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "text_encoder_2"),
        ("PixArt-alpha/PixArt-XL-2-512x512", "transformer"),
        ("stabilityai/stable-diffusion-3.5-large", "text_encoder_3"),
        ("black-forest-labs/FLUX.1-dev", "vae"),
    ],
)
def test_a_key_too_few_or_too_many_is_an_error(repo: str, part: str, models: Hub, tmp_path: Path) -> None:
    folder = tiny_models.copy(models, repo, tmp_path / "local")
    assert pipelines.load(str(folder))
    path = next(path for path in (folder / part).glob("*.safetensors") if "fp16" not in path.name)
    tensors = load_file(path)
    victim = next(key for key, value in tensors.items() if value.dim() == 1)
    for broken, said in (
        ({key: value for key, value in tensors.items() if key != victim}, "is missing"),
        (tensors | {"another.weight": torch.ones(2)}, "is not known"),
        (tensors | {victim: torch.ones(5)}, str(folder / part)),
    ):
        save_file(broken, path, metadata={"format": "pt"})
        with pytest.raises(UserError, match=re.escape(said)) as caught:
            pipelines.load(str(folder))
        assert part in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["unet", "delta"])
def test_a_bare_file_must_match(kind: str, models: Hub, tmp_path: Path) -> None:
    tensors = tiny_models.unet().state_dict()
    for broken, said in (
        ({key: value for key, value in tensors.items() if key != "conv_in.bias"}, "'conv_in.bias' is missing"),
        (tensors | {"another": torch.ones(2)}, "'another' is not known"),
        (tiny_models.sdxl_unet().state_dict(), "another model"),
    ):
        torch.save(broken, tmp_path / "bare.bin")
        with pytest.raises(UserError, match=rf"bare\.bin: .*{said}"):
            pipelines.load(own(tmp_path, "sd15-25step", **{kind: {"file": "bare.bin"}}))
    with pytest.raises(UserError, match=r"gone\.bin: no such file"):
        pipelines.load(own(tmp_path, "sd15-25step", **{kind: {"file": "gone.bin"}}))


def test_a_lora_for_another_architecture(models: Hub, tmp_path: Path) -> None:
    good = tiny_models.lora(tiny_models.unet(), peft=True)
    stray = {
        "unet.mid_block.nowhere.lora_A.weight": torch.ones(2, 16),
        "unet.mid_block.nowhere.lora_B.weight": torch.ones(16, 2),
    }
    foreign = {f"transformer.{key.removeprefix('unet.')}": value for key, value in good.items()}
    for broken in (
        tiny_models.lora(tiny_models.sdxl_unet(), peft=True),
        tiny_models.lora(tiny_models.sdxl_unet(), peft=False),
        good | stray,
        foreign,
        {key: value for key, value in good.items() if key != next(iter(good))},
        {"weight": torch.ones(2)},
    ):
        save_file(broken, tmp_path / "low.safetensors")
        with pytest.raises(UserError, match=r"low\.safetensors: .*a LoRA for another architecture") as caught:
            pipelines.load(own(tmp_path, "sd15-25step", lora={"file": "low.safetensors"}))
        assert "\n" not in str(caught.value)


def test_a_recipe_may_set_what_the_schedulers_file_does_not_have(tmp_path: Path, tiny: Path) -> None:
    shutil.copytree(tiny, tmp_path / "model")
    file = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in config.items() if key != "timestep_spacing"}))
    for spacing in ("trailing", "leading"):
        scheduler = {"name": "DDIMScheduler", "options": {"timestep_spacing": spacing, "clip_sample": False}}
        changes = {"pipeline": str(tmp_path / "model"), "revision": None, "variant": None, "scheduler": scheduler}
        made = pipelines.load(own(tmp_path, "sd15-25step", **changes)).scheduler
        assert type(made).__name__ == "DDIMScheduler"
        assert (made.config.timestep_spacing, made.config.clip_sample) == (spacing, False)
        assert made.config.beta_end == config["beta_end"]


def test_a_recipe_that_the_hub_did_not_say_is_not_the_default_one(models: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    models.folder("somebody/one-step", "main")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between its attempts
    monkeypatch.setattr(models, "busy", {"recipe.yaml"})
    with pytest.raises(UserError, match=r"recipe\.yaml cannot be fetched"):
        pipelines.read_recipe("somebody/one-step")
    monkeypatch.setattr(models, "busy", set())
    assert pipelines.read_recipe("somebody/one-step") == Recipe()
    address._published.cache_clear()
    monkeypatch.setattr(models, "busy", {"recipe.yaml"})  # it has said so before
    assert pipelines.read_recipe("somebody/one-step") == Recipe()


def test_a_model_without_a_recipe_says_how_it_is_drawn_and_who_knows_better(tiny: Path) -> None:
    repo = RECIPES["pixart-15step"].pipeline
    assert address.unsaid(f"{repo}") == (
        f"{repo} has no recipe: 50 steps, guidance 7.5, fp32 unless you say else; pixart-15step and"
        " pixart-25step draw it as published"
    )
    assert address.unsaid(str(tiny)).startswith(f"{tiny} has no recipe")
    assert address.unsaid("shapes/base") == address.unsaid("pixart-15step") == ""


def test_a_pipeline_that_nothing_draws_with_is_refused_before_its_weights_are_fetched(published: Hub) -> None:
    folder = published.folder("somebody/kolors", "main")
    (folder / "model_index.json").write_text(
        '{"_class_name": "KolorsPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}'
    )
    (folder / "unet").mkdir()
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"large")
    with pytest.raises(UserError, match="somebody/kolors: KolorsPipeline: no family draws with it"):
        pipelines.load("somebody/kolors")
    assert not any(path.endswith(".safetensors") for path in published.requests if "somebody/kolors" in path)


def test_a_pipeline_of_no_family(models: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = pipelines.load("pixart-15step")
    monkeypatch.setattr(type(families.load("pixart")), "pipelines", ())
    with pytest.raises(UserError, match="PixArtAlphaPipeline: no family draws with it"):
        draw(pipeline, RECIPES["pixart-15step"], PROMPTS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scheduler": {"name": "FastScheduler"}}, "scheduler: there is no 'FastScheduler'"),
        ({"scheduler": {"name": "UNet2DConditionModel"}}, "scheduler: there is no"),
        ({"width": 500}, "width"),
        ({"dtype": "fp8"}, "dtype"),
        ({"unet": {"repo": "a/b"}}, "unet"),
        ({"pipeline": None}, "no field 'pipeline'"),
        ({"variant": "fp8"}, "no fp8 weights"),
    ],
)
def test_a_recipe_that_cannot_be_meant(changes: dict[str, Any], said: str, models: Hub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as caught:
        pipelines.load(own(tmp_path, "sd15-25step", **changes))
    assert "\n" not in str(caught.value)


# ---- what the hub refuses --------------------------------------------------------------------------------------------


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A token that every request carries, and an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_DoNotTellAnybody")
    return "DoNotTellAnybody"


def test_what_the_hub_refuses_is_said_with_the_remedy(
    models: Hub, secret: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, base = "0" * 40, RECIPES["sd15-25step"].pipeline
    unet = RECIPES["sd15-dmd2-1step"].unet
    there = unet.revision if isinstance(unet, Weights) else None
    for changes, said in (
        ({"pipeline": "nobody/nothing"}, "nobody/nothing: .*no such repository.*hf auth login"),
        ({"revision": gone}, f"{base}: .*no revision {gone}.*name another revision"),
        ({"pipeline": "tianweiy/DMD2", "revision": None}, r"tianweiy/DMD2: model_index\.json cannot be fetched"),
        ({"unet": {"repo": "tianweiy/DMD2", "revision": gone, "file": "a.bin"}}, "tianweiy/DMD2: a.bin .*no revision"),
        (
            {"lora": {"repo": "nobody/nothing", "file": "low.safetensors"}},
            r"nobody/nothing: low\.safetensors .*no such",
        ),
        (
            {"unet": {"repo": "tianweiy/DMD2", "revision": there, "file": "gone.bin"}},
            r"tianweiy/DMD2: gone\.bin .*no such file at revision 19179ac8.*check the file's name",
        ),
    ):
        with pytest.raises(UserError, match=said) as caught:
            pipelines.load(own(tmp_path, "sd15-25step", **changes))
        assert "\n" not in str(caught.value)
        assert secret not in str(caught.value)
    monkeypatch.setattr(models, "gated", {"black-forest-labs/FLUX.1-dev"})
    for use in (pipelines.load, pipelines.digest):
        with pytest.raises(
            UserError, match=r"FLUX\.1-dev: .*gated.*accept its terms at https://huggingface.co/black-forest"
        ) as caught:
            use("flux-dev-50step")
        assert secret not in str(caught.value)


@pytest.mark.parametrize("token", ["hf_Do\x0bNotTell", "plain\x0cDoNotTell", "hf_DoNotTellé"])
def test_a_token_is_in_no_error(token: str, models: Hub, secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP libraries quote a header that they cannot send."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client's own patience
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match="cannot be fetched") as caught:
        pipelines.load("sd15-25step")
    assert "NotTell" not in str(caught.value)


def test_an_address_is_told_without_its_password() -> None:
    error = ConnectionError("no answer from https://me:secret@mirror.example/a with 'Bearer abc.def'")
    said = str(hub.refusal(error, "a/b", "c", "main"))
    assert "mirror.example" in said
    assert not any(word in said for word in ("me:", "secret", "abc"))


# ---- samplers --------------------------------------------------------------------------------------------------------


def test_a_straight_flow_is_followed_in_any_number_of_steps() -> None:
    from evaluate.pipelines.schedulers import RectifiedFlowScheduler

    torch.manual_seed(0)
    noise, data = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    for steps in (1, 5):
        scheduler, x = RectifiedFlowScheduler(), noise
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps.tolist() == pytest.approx([1000 * (1 - i / steps) for i in range(steps)])
        for t in scheduler.timesteps:
            (x,) = scheduler.step(data - noise, t, scheduler.scale_model_input(x, t))
        torch.testing.assert_close(x, data, atol=1e-5, rtol=0)


def test_a_window_is_crossed_where_its_noise_is_known() -> None:
    from evaluate.pipelines.schedulers import PiecewiseRectifiedFlowScheduler

    torch.manual_seed(0)
    scheduler = PiecewiseRectifiedFlowScheduler(**tiny_models.SD_BETAS)
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [1000, 750, 500, 250]
    abar = scheduler.alphas_cumprod
    for t, start, end in ((1000, 999, 749), (750, 749, 499), (500, 499, 249), (250, 249, 0)):
        x_end, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
        gamma = (abar[start] / abar[end]).sqrt()
        x = gamma * x_end + (1 - gamma**2).sqrt() * noise
        (found,) = scheduler.step(noise, torch.tensor(t), x, return_dict=False)
        torch.testing.assert_close(found, x_end, atol=1e-4, rtol=1e-4)


# ---- commands --------------------------------------------------------------------------------------------------------


def test_the_command_lists_every_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["evaluate", "models"])
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit):
        cli.main()
    runnable, reported = (
        {line.split("│")[1].strip(): line for line in table.splitlines() if "│" in line}
        for table in capsys.readouterr().out.split("reported only")
    )
    lines = runnable | reported
    shipped = {name for name in embedded.names() if (embedded.folder(name) / "recipe.yaml").is_file()}
    assert set(lines) == shipped | set(RECIPES)
    for name, recipe in RECIPES.items():
        assert recipe.reported_only in reported[name] if recipe.reported_only else name in runnable
    assert all(word in lines["sdxl-50step"] for word in ("50", "7.5", "1024 x 1024", "2.6 B", "openrail++"))
    assert "gated" in lines["flux-dev-50step"]


def test_a_recipe_is_drawn_in_its_own_dtype_on_a_gpu_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    given: dict[str, Any] = {
        "prompts": None, "images": None, "limit": 2, "seed": 0, "per_prompt": 1, "batch": 4, "output": tmp_path,
        "shard": "1/1"
    }  # fmt: skip
    for device, dtype, expected in (("cuda", None, "bf16"), ("cuda", "fp32", "fp32"), ("cpu", None, "fp32")):
        (asked,) = from_options("shapes", ["flux-dev-50step"], [], device=device, dtype=dtype, **given)
        assert asked.dtype == expected


def test_random_weights_are_drawn_from_a_rows_configs(models: Hub) -> None:
    pipeline = random_init.random_pipeline("sdxl-distar-long", dtype=torch.float32, device="cpu")
    assert type(pipeline.scheduler).__name__ == "LCMScheduler"
    assert draw(pipeline, RECIPES["sdxl-distar-long"], PROMPTS).isfinite().all()
    with pytest.raises(UserError, match="reported only"):
        random_init.random_pipeline("sd15-boot-1step", dtype=torch.float32, device="cpu")


def test_parts_and_index_agree(models: Hub, tmp_path: Path) -> None:
    folder = tiny_models.copy(models, "stabilityai/sd-turbo", tmp_path / "local")
    (folder / "model_index.json").write_text(
        json.dumps(
            {
                "_class_name": "StableDiffusionPipeline",
                "unet": ["diffusers", "UNet2DConditionModel"],
                "vae": [None, None],
            }
        )
    )
    assert overlays.parts(folder / "model_index.json") == {"unet": ("diffusers", "UNet2DConditionModel")}
    with pytest.raises(UserError, match="cannot be loaded"):
        pipelines.load(str(folder))

"""Layouts: published sizes, vocabularies of the right size, and when they stand in for the hub."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hub import Hub
from torch import nn

from evaluate import cli, layouts, scorers
from evaluate.layouts import _parts, z_image
from evaluate.pipelines import random_init
from evaluate.results.csv_io import read_csv
from evaluate.weights import RandomWeights
from prompts.io.errors import UserError


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def table(places: int, width: int) -> int:
    """Numbers of a table of places, which diffusers saves with the weights and does not train."""
    return places**2 * width


T5 = 9_524_621_312 // 2  # FLUX.1-dev, text_encoder_2/model.safetensors.index.json, bytes in bf16
CLIPS = 123_060_480 + 694_659_840  # 817,720,320 in all, as inspectors of the published SDXL count both of its encoders
KLEIN = 3_875_544_576  # as others have counted it
#: What is published of each: bytes of the repositories' own `*.safetensors.index.json`, in bf16, where there is one.
PUBLISHED = {
    "stabilityai/stable-diffusion-xl-base-1.0": {
        "unet": 2_567_463_684, "text_encoder": 123_060_480, "text_encoder_2": CLIPS - 123_060_480, "vae": 83_653_863,
    },
    "XDG-XHS/distar_long_1step": {"unet": 2_567_463_684},
    "stabilityai/stable-diffusion-3.5-large": {
        "transformer": 16_292_561_536 // 2 - table(192, 2432), "text_encoder_3": T5,
    },
    # Elements of its one file.
    "stabilityai/stable-diffusion-3.5-medium": {"transformer": 2_469_663_936 - table(384, 1536), "text_encoder_3": T5},
    "black-forest-labs/FLUX.1-dev": {"transformer": 23_802_816_640 // 2, "text_encoder_2": T5},
    # The network that PixArt-Sigma kept.
    "PixArt-alpha/PixArt-XL-2-512x512": {"transformer": 610_856_096, "text_encoder": T5, "vae": 83_653_863},
    "Tongyi-MAI/Z-Image": {"transformer": 12_309_817_472 // 2, "text_encoder": 8_044_936_192 // 2},
    "Tongyi-MAI/Z-Image-Turbo": {"transformer": 12_309_817_472 // 2},
    "black-forest-labs/FLUX.2-klein-4B": {"transformer": KLEIN, "text_encoder": 8_044_936_192 // 2},
    "black-forest-labs/FLUX.2-klein-base-4B": {"transformer": KLEIN},
    "Qwen/Qwen-Image": {"transformer": 40_860_802_176 // 2, "text_encoder": 16_584_333_312 // 2},
}  # fmt: skip


def on_meta(repo: str) -> Any:
    with layouts.first():
        return random_init.random_pipeline(repo, dtype=torch.float32, device="meta")


@pytest.mark.parametrize(
    "repo",
    [
        pytest.param(repo, marks=[] if "xl-base" in repo or "Z-Image" in repo else [pytest.mark.slow])
        for repo in PUBLISHED
    ],
)
def test_a_layout_has_the_published_sizes_and_vocabularies(repo: str) -> None:
    pipeline = on_meta(repo)
    found = {name: parameters(getattr(pipeline, name)) for name in PUBLISHED[repo]}
    assert found == PUBLISHED[repo]
    for name, tokenizer in pipeline.components.items():
        if name.startswith("tokenizer"):
            encoder = getattr(pipeline, name.replace("tokenizer", "text_encoder"))
            words = {"CLIPTokenizer": (49408, 77), "T5Tokenizer": (32100, 512), "Qwen2Tokenizer": (151646, 131072)}
            assert (len(tokenizer), tokenizer.model_max_length) == words[type(tokenizer).__name__]
            assert max(tokenizer.get_vocab().values()) < encoder.get_input_embeddings().num_embeddings
            # Every word is about one token, as it would be.
            assert len(tokenizer("a small red circle on a white background").input_ids) <= 8 + 2


def test_every_layout_of_a_pipeline_is_counted() -> None:
    assert {repo for repo, make in layouts.known().items() if "model_index.json" in make()} == set(PUBLISHED)


#: md5 in github.com/Tongyi-MAI/Z-Image, src/config/manifests/z-image-turbo.txt, and how each file ends.
MANIFEST = {
    "transformer": ("baed87136fe5f848e24b072f99856cc3", "\n"),
    "scheduler": ("ca682fcc6c5a94cf726b7187e64b9411", ""),
}


def test_z_image_is_what_its_authors_published() -> None:
    version = {"_diffusers_version": "0.36.0.dev0"}
    network = {"_class_name": "ZImageTransformer2DModel", **version, **z_image.TRANSFORMER}
    made = {"transformer": dict(sorted(network.items()))}
    scheduler = z_image.whole(3.0)["scheduler/scheduler_config.json"]
    order = ("_class_name", "_diffusers_version", "num_train_timesteps", "use_dynamic_shifting", "shift")
    made["scheduler"] = {name: ({"num_train_timesteps": 1000} | version | scheduler)[name] for name in order}
    for name, (md5, end) in MANIFEST.items():
        assert hashlib.md5(f"{json.dumps(made[name], indent=2)}{end}".encode()).hexdigest() == md5, name


def test_chats_are_told_in_qwens_way() -> None:
    tokenizer = on_meta("Tongyi-MAI/Z-Image-Turbo").tokenizer
    message = [{"role": "user", "content": "a red circle"}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert text == "<|im_start|>user\na red circle<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(text).input_ids
    assert [ids.count(special) for special in (151644, 151645)] == [2, 1]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # open_clip's docs/model_profile.csv: 986.11 M and 427.62 M.
        ("pickscore", 986_109_441),
        ("clipscore/vit-g-14-dmd2", 1_366_678_273),
        ("clipscore/vit-l-14-torchmetrics", 427_616_513),
        ("imagereward", None),
        ("aesthetic/v2", None),
        # Two bytes each; the smaller's repository is 6,327,057,688 bytes large, the larger's 22.9 GB.
        ("vqascore/clip-flant5-xl", 3_159_445_504),
        ("vqascore/clip-flant5-xxl", 11_459_590_144),
        ("aesthetic/v2.5", None),
        ("hpsv3", None),
        ("mps", None),
        ("geneval", None),
    ],
)
def test_scorers_need_no_hub(name: str, count: int | None, published: Hub) -> None:
    asked = len(published.requests)
    with layouts.first(), torch.device("meta"):
        scorer = scorers.load(name, device="meta", random_weights=True)
    assert len(published.requests) == asked
    if count:
        assert parameters(scorer) == count
    if hasattr(scorer, "clip") and hasattr(scorer, "tokenizer") and count:
        assert len(scorer.tokenizer) == 49408
        assert scorer.length("a small red circle on a white background") == 16
    assert parameters(scorer) > 3e8


def test_text_that_is_not_known_is_spelled_out() -> None:
    from evaluate.scorers._clip import clip_tokenizer
    from evaluate.scorers.imagereward import make_tokenizer

    files = RandomWeights()
    with layouts.first():
        words = [files.fetch("openai/clip-vit-large-patch14", name, "main") for name in ("vocab.json", "merges.txt")]
        bert = make_tokenizer(files.fetch("bert-base-uncased", "vocab.txt", "main"))
    assert len(bert) == 30522 + 2
    for tokenizer in (clip_tokenizer(*words), bert):
        ids = tokenizer("Quincunx, 7!").input_ids
        assert len(ids) >= 11 and tokenizer.unk_token_id not in ids[1:-1]


# ---- when they are taken ---------------------------------------------------------------------------------------------

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"


def test_the_hub_comes_first_unless_weights_are_random_anyway(models: Hub) -> None:
    (revision,) = (models.root / SDXL).iterdir()
    size = parameters(random_init.random_pipeline(f"{SDXL}@{revision.name}", dtype=torch.float32, device="meta").unet)
    assert size < 1e6, "the loopback hub's small one"
    asked = len(models.requests)
    assert parameters(on_meta(SDXL).unet) == 2_567_463_684
    assert len(models.requests) == asked


def test_a_layout_stands_in_for_a_hub_that_fails_and_that_is_said(
    small_layout: str, published: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        pipeline = random_init.random_pipeline(f"{small_layout}@main", dtype=torch.float32, device="cpu")
    assert pipeline.unet.config.sample_size == 8
    (line,) = [line for line in capsys.readouterr().err.splitlines() if small_layout in line]
    assert (
        line
        == f"{small_layout}: configs and tokenizers are made from published figures (evaluate/layouts), not fetched"
    )
    with pytest.raises(UserError, match=r"owner/other: .* cannot be fetched"):
        random_init.random_pipeline("owner/other", dtype=torch.float32, device="cpu")
    with pytest.raises(UserError, match=r"never\.json cannot be fetched"):
        RandomWeights().fetch(small_layout, "never.json", "main")


def test_a_hub_that_failed_is_not_asked_again(small_layout: str, published: Hub) -> None:
    def asked(times: int) -> int:
        before = len(published.requests)
        for _ in range(times):
            random_init.random_pipeline(small_layout, dtype=torch.float32, device="meta")
        return len(published.requests) - before

    once = asked(1)
    assert once and asked(2) == 2 * once
    with layouts.asked_once():
        assert asked(3) == once
        with layouts.first():
            assert asked(1) == 0
    with layouts.first(), layouts.asked_once():
        assert asked(1) == 0
    assert asked(1) == once


def test_a_model_is_timed_without_a_hub(
    small_layout: str, published: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = len(published.requests)
    (tmp_path / "recipe.yaml").write_text(f"pipeline: {small_layout}\nsteps: 1\nguidance_scale: 1.0\n")
    arguments = ["--model", str(tmp_path / "recipe.yaml"), "--random-weights", "--repeats", "1"]
    monkeypatch.setattr("sys.argv", ["evaluate", "time", *arguments, "--device", "cpu", "--output", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert len(published.requests) == asked
    (row,) = read_csv(tmp_path / "timings.csv")
    assert row["weights"] == "random" and float(row["denoiser_s"]) > 0


def test_vocabularies_are_made_of_distinct_words() -> None:
    vocabulary = _parts.clip_words()["vocab.json"]
    assert sorted(vocabulary.values()) == list(range(49408))
    assert [vocabulary[word] for word in ("!", "<|startoftext|>", "<|endoftext|>")] == [0, 49406, 49407]

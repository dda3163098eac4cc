"""What tests share: a hub on loopback, tiny random scorers on it, and a tiny random pipeline
in the layout of the real ones.
"""

import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import warm
from clock import Hours
from hub import Hub

# The hub client reads its settings once, when it is imported: before that, no test has any hub but this one.
assert "huggingface_hub" not in sys.modules
HUB = Hub()
CACHE = tempfile.TemporaryDirectory()
os.environ |= {
    "HF_ENDPOINT": HUB.url,
    "HF_HOME": CACHE.name,
    # They go before HF_HOME: a cache of one's own would be filled with these tests' networks.
    "HF_HUB_CACHE": f"{CACHE.name}/hub",
    "HUGGINGFACE_HUB_CACHE": f"{CACHE.name}/hub",
    "HF_DATASETS_CACHE": f"{CACHE.name}/datasets",
    "ALIGN_CACHE": f"{CACHE.name}/align",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_XET": "1",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}
# What is compared is text without colours, of what ships alone.
for name in (
    "ALIGN_EXTENSIONS",
    "FORCE_COLOR",
    "HF_HUB_OFFLINE",
    "PY_COLORS",
    "TRANSFORMERS_OFFLINE",
    "TTY_COMPATIBLE",
):
    os.environ.pop(name, None)
# The same digits with a GPU and without: what is compared is compared on the CPU, but where a test is of the GPU.
if "TEST_ON_GPU" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# An editable install is looked for last of all, after `tests`, which is on the path for its helpers:
# there `tests/align` would be taken for `align`.
path, helpers = sys.path, str(Path(warm.__file__).parent)
sys.path = [folder for folder in path if folder != helpers]  # twice there in a process of xdist
for package in ("align", "evaluate", "prompts"):
    importlib.import_module(package)
sys.path = path

import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture
def hours(monkeypatch: pytest.MonkeyPatch) -> Hours:
    """The clock that benchmarks go by."""
    from evaluate.bench import scorers, timing

    clock = Hours()
    for module in (scorers, timing):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture(scope="session")
def published() -> Hub:
    """The loopback hub with the files of every real scorer, small."""
    import tiny_scorers

    tiny_scorers.publish(HUB)
    return HUB


@pytest.fixture(scope="session")
def models(published: Hub) -> Hub:
    """The loopback hub with every model that a recipe names, small."""
    import tiny_models

    tiny_models.publish(published)
    return published


@pytest.fixture
def real_scorers(published: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The scorers other than those of `shapes` load small random weights from the loopback hub."""
    import tiny_scorers

    tiny_scorers.shrink(monkeypatch, published)
    return published


@pytest.fixture(scope="session")
def published_features() -> Hub:
    """The loopback hub with the networks whose features distribution metrics compare, small."""
    import tiny_features

    tiny_features.publish(HUB)
    return HUB


@pytest.fixture
def tiny_networks(published_features: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Distribution metrics load small random weights from the loopback hub."""
    import tiny_features

    tiny_features.shrink(monkeypatch, published_features)
    return published_features


@pytest.fixture(scope="session")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Python that begins with the libraries imported."""
    with warm.interpreter(tmp_path_factory.mktemp("warm")) as program:
        yield program


@pytest.fixture
def quick_programs(interpreter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that are started with `sys.executable` begin with the libraries imported."""
    monkeypatch.setattr(sys, "executable", str(interpreter))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random pipeline."""
    from tiny import save_tiny

    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPModel

    from align.world.pretrain import make_tokenizer

    torch.manual_seed(7)
    tokenizer = make_tokenizer()
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), **ends, **small, "max_position_embeddings": 24}
    clip = CLIPModel(
        CLIPConfig(projection_dim=8, text_config=text, vision_config={**small, "image_size": 32, "patch_size": 8})
    )
    folder = tmp_path_factory.mktemp("scorers") / "shapes" / "clip"
    clip.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_clip(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`shapes/clip` is a random network of a few parameters."""
    from evaluate import embedded

    monkeypatch.setattr(embedded, "HERE", clip_folder.parents[1])


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Any:
    """accelerate keeps its precision for the life of a process; tests want their own."""
    yield
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state()
    PartialState._reset_state()


@pytest.fixture
def small_layout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The id of a model of which a layout is known, of a tiny network, and the hub has nothing."""
    import tiny_families

    from evaluate import layouts

    folder = tiny_families.save(tiny_families.pipeline("sdxl", tmp_path / "made"), tmp_path / "small")
    files = [file for file in folder.rglob("*") if file.suffix in (".json", ".txt")]
    layout = {str(file.relative_to(folder)): file.read_text(encoding="utf-8") for file in files}
    monkeypatch.setattr(layouts, "known", lambda: {"owner/small": lambda: layout})
    monkeypatch.setattr(layouts, "used", set())
    return "owner/small"


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny random pipeline of every family; who changes one puts it back."""
    import tiny_families

    return {
        name: tiny_families.pipeline(name, tmp_path_factory.mktemp(name))
        for name in tiny_families.FAMILIES | tiny_families.FLOWS
    }

"""How fast the evaluator is: its scorers and its Fréchet distance beside the originals', and
what the harness itself costs.

Everything is warm, on one machine, in one run. An original that cannot be imported here (hpsv2, image-reward) is timed
by its own environment on the same machine and the same weights, and comes in through a file (`Originals`).
"""

import itertools
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from evaluate import environment, layouts, scorers
from evaluate.bench.timing import peak_mib, time_call
from evaluate.preprocess import CLIP_224, Preprocess
from evaluate.scorers import Scorer
from evaluate.scorers.shapes import Reading
from prompts.io.errors import UserError

#: Images per call unless another number is asked for, and their edge in pixels.
IMAGES, EDGE = 32, 512
#: Records that the harness's own cost is given for.
RECORDS = 10_000


def noise_images(n: int = IMAGES, edge: int | None = None) -> Tensor:
    """What every scorer is given: noise, `[n, 3, edge, edge]`, uint8; by default of EDGE pixels a side."""
    shape, source = (n, 3, edge or EDGE, edge or EDGE), torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=source)


#: Of all images: the originals' public calls take one prompt and several images.
PROMPT = "a photo of red bicycles in the snow"
#: What scorers that must know more are told of it: GenEval, GenEval 2 (as many atoms as a prompt has there), DPG-Bench.
META: dict[str, Any] = {
    "tag": "colors",
    "include": [{"class": "bicycle", "count": 1, "color": "red"}],
    "vqa_list": [[f"Is bicycle {i} red?", "Yes"] for i in range(1, 9)],
    "questions": [
        {"id": i, "question": f"Is bicycle {i} red?", "parents": [], "category": "attribute"} for i in range(1, 9)
    ],
}


# ---- scorers ---------------------------------------------------------------------------------------------------------


class Original(BaseModel):
    """Seconds of an original's public call on `noise_images()` and PROMPT, median of warm
    calls, its weights, and its scores.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float
    weights_sha256: str | None
    scores: tuple[float, ...]


class Originals(BaseModel):
    """What an original's own environment writes. scorers: by protocol.

    The other fields must be those of the run beside it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hardware: str
    images: int
    edge: int
    prompt: str
    versions: str
    scorers: dict[str, Original]

    @classmethod
    def read(cls, path: Path, hardware: str, images: int = IMAGES) -> "Originals":
        """Raises UserError for timings that were made elsewhere or of other images."""
        try:
            originals = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            detail = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
            field = ".".join(map(str, detail["loc"])) or "file"
            raise UserError(f"{path}: {field}: {detail['msg']}; write it again in the originals' environment") from None
        for field, wanted in (("hardware", hardware), ("images", images), ("edge", EDGE), ("prompt", PROMPT)):
            if (value := getattr(originals, field)) != wanted:
                raise UserError(
                    f"{path}: {field} is {value!r}, here it is {wanted!r}; time the originals on this machine"
                )
        return originals


@dataclass(frozen=True)
class ScorerTiming:
    """One scorer: images per second of ours and of the original, None where none could be timed.

    weights: the sha256 of both. difference: the largest between their scores; None where the original returns none.
    dtype: what ours computes in. weights_gib: its networks'. peak_gib: the most that is allocated on a GPU while it
    scores, its weights included; None on a CPU.
    """

    scorer: str
    weights: str | None
    dtype: str
    weights_gib: float
    peak_gib: float | None
    ours: float
    original: float | None
    ratio: float | None
    difference: float | None
    by: str


def _torchmetrics(scorer: Any) -> Callable[[Tensor, list[str]], object]:
    """torchmetrics' CLIPScore around the scorer's own network."""
    from torchmetrics.functional.multimodal import clip_score
    from transformers import CLIPImageProcessor, CLIPProcessor

    edge = scorer.clip.config.vision_config.image_size
    processor = CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": edge}, crop_size=edge), scorer.tokenizer)
    network = _Unwrapped(scorer.clip)
    return lambda images, texts: clip_score(images, texts, lambda: (network, processor))


class _Unwrapped:
    """A CLIP of transformers 5, which returns objects where torchmetrics takes tensors."""

    def __init__(self, clip: Any):
        self.clip, self.config = clip, clip.config

    def to(self, device: Any) -> "_Unwrapped":
        return self

    def get_image_features(self, *inputs: Tensor) -> Tensor:
        features: Tensor = self.clip.get_image_features(*inputs).pooler_output
        return features

    def get_text_features(self, *inputs: Tensor) -> Tensor:
        features: Tensor = self.clip.get_text_features(*inputs).pooler_output
        return features


#: Originals that can be imported beside us: protocol -> who, and what makes its call from our scorer.
IMPORTABLE: dict[str, tuple[str, Callable[[Any], Callable[[Tensor, list[str]], object]]]] = {
    "clipscore/vit-l-14-torchmetrics": ("torchmetrics", _torchmetrics),
}


@torch.no_grad()
def bench_scorer(
    scorer: Scorer,
    weights: str | None,
    *,
    device: str,
    repeats: int,
    n: int = IMAGES,
    originals: Originals | None = None,
) -> ScorerTiming:
    """Time `scorer.score` on `noise_images(n)`, its prompt encoded anew each time, and its original.

    weights: sha256 of the scorer's. Raises UserError where the original was timed on others.
    """
    if isinstance(scorer, Reading):
        raise UserError(f"{scorer.protocol}: reads captions of its world alone; name a scorer of photographs")
    takes = scorer.prepare
    edge = takes.size if isinstance(takes, Preprocess) and not takes.resize else None  # images of its own size alone
    images, rounds = noise_images(n, edge).to(device), itertools.count()

    def ours() -> None:
        # A prompt nobody has seen: features that are kept from the last call would be no match for the original.
        scorer.score(images, [f"{PROMPT}, {next(rounds)}"] * n, [META] * n)

    where = torch.device(device)
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    rate = n / time_call(ours, device=device, repeats=repeats).median
    peak = peak_mib(where) / 2**10 if where.type == "cuda" else None
    name, theirs, difference, by = scorer.protocol, None, None, ""
    if name in IMPORTABLE:
        by, make = IMPORTABLE[name]
        call = make(scorer)
        theirs = n / time_call(lambda: call(images, [PROMPT] * n), device=device, repeats=repeats).median
    elif originals and name in originals.scorers:
        original = originals.scorers[name]
        if original.weights_sha256 != weights:
            raise UserError(
                f"{name}: the original was timed with weights {original.weights_sha256}, ours are {weights}; give both"
                " the same file"
            )
        by, theirs = originals.versions, n / original.seconds
        scores = scorer.score(images, [PROMPT] * n, [META] * n).double().cpu()
        difference = (scores - torch.tensor(original.scores, dtype=torch.float64)).abs().max().item()
    size = sum(each.numel() * each.element_size() for each in (*scorer.parameters(), *scorer.buffers())) / 2**30
    dtype = str(next((each.dtype for each in scorer.parameters()), torch.float32)).removeprefix("torch.")
    ratio = rate / theirs if theirs else None
    return ScorerTiming(name, weights, dtype, size, peak, rate, theirs, ratio, difference, by)


# ---- the harness -----------------------------------------------------------------------------------------------------


class FakeForward:
    """A context that lasts `seconds` per image, what is done in it included; `total` of all of them."""

    def __init__(self, seconds: float):
        self.seconds, self.total = seconds, 0.0

    @contextmanager
    def __call__(self, images: int) -> Iterator[None]:
        """What stands for a network's forward."""
        began = time.perf_counter()
        yield
        time.sleep(max(0.0, began + self.seconds * images - time.perf_counter()))
        self.total += time.perf_counter() - began


class _Stub(Scorer):
    """A scorer whose forward is faked: images are read and prepared as for a real one."""

    def __init__(self, name: str, fake_forward: FakeForward) -> None:
        super().__init__(name, CLIP_224)
        self.fake_forward = fake_forward

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """A row of nothing per prompt."""
        return {"features": torch.zeros(len(prompts), 1)}

    def forward(self, pixels: Tensor, text: Mapping[str, Tensor]) -> Tensor:
        """A number per image, after the fake forward."""
        with self.fake_forward(len(pixels)):
            return pixels.flatten(1).mean(1)


def bench_harness(
    records: int = RECORDS, *, edge: int = EDGE, drawing: float = 0.02, scoring: float = 0.002
) -> dict[str, float]:
    """What `evaluate run` costs besides its networks, from the first prompt to the leaderboard's row,
    files written to a scratch folder.

    drawing, scoring: seconds per image that stand for the forwards of the model and of each of as many scorers as
    `METRICS` names. Returns them, records, edge, total_s, forward_s, overhead (the share of the total outside the
    forwards) and outside_ms, milliseconds per record outside them.
    """
    from evaluate.runs import run
    from evaluate.runs.settings import METRICS, Settings
    from prompts.suites import Prompt, Suite

    fake_forwards, generator = (FakeForward(drawing), FakeForward(scoring)), torch.Generator().manual_seed(0)
    # As smooth as images are, so that their files are as large: noise would not pack,
    # flat colour would pack to nothing.
    canvas = torch.nn.functional.interpolate(
        torch.rand(1, 3, edge // 4, edge // 4, generator=generator), size=(2 * edge, 2 * edge), mode="bicubic"
    )[0].clamp(0, 1)

    def draw(texts: Sequence[str], ids: Sequence[str], seeds: Sequence[int]) -> Tensor:
        with fake_forwards[0](len(texts)):
            corners = [(37 * int(each) % edge, 101 * int(each) % edge) for each in ids]
            return torch.stack([canvas[:, y : y + edge, x : x + edge] for y, x in corners])

    prompts = tuple(Prompt(str(i), f"a photo of {i} bicycles", {"tens": str(i // 10 % 10)}) for i in range(records))
    suite = Suite("stub", prompts, "0" * 64, "made up", "none")
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(suite=suite, model="shapes/base", metrics=METRICS, output=Path(folder))
        began = time.perf_counter()
        run.run(settings, make=lambda *_, **__: draw, load=lambda name, **_: _Stub(name, fake_forwards[1]))
        total = time.perf_counter() - began
    forward = fake_forwards[0].total + fake_forwards[1].total
    return {
        "records": records,
        "edge": edge,
        "scorers": len(METRICS),
        "drawing_s": drawing,
        "scoring_s": scoring,
        "total_s": total,
        "forward_s": forward,
        "overhead": (total - forward) / total,
        "outside_ms": 1000 * (total - forward) / records,
    }


# ---- the Fréchet distance --------------------------------------------------------------------------------------------


def bench_frechet(dimension: int = 2048, *, repeats: int = 3) -> dict[str, float]:
    """Seconds of ours and of clean-fid's own function, once, on the same full-rank
    statistics, and by how much they differ.

    Ours starts from moments that have computed nothing yet. Raises UserError under a scipy that
    clean-fid's function does not know.
    """
    from cleanfid.fid import frechet_distance as original

    from evaluate.distribution.frechet import Moments, frechet_distance

    generator = torch.Generator().manual_seed(0)
    # Variances fall over two decades, as an encoder's do, in axes that are not the coordinates'.
    scales = torch.logspace(0, -1, dimension, dtype=torch.float64)
    axes = torch.linalg.qr(torch.randn(dimension, dimension, generator=generator, dtype=torch.float64)).Q
    a, b = (
        Moments.of((torch.randn(2 * dimension, dimension, generator=generator) * scales + shift) @ axes)
        for shift in (0.0, 0.05)
    )

    def ours() -> float:
        return frechet_distance(*(Moments(each.n, each.mean, each.scatter) for each in (a, b)))

    def theirs() -> float:
        statistics = [x.numpy() for each in (a, b) for x in (each.mean, each.covariance)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy calls one of clean-fid's arguments deprecated
            return float(original(*statistics))

    values: list[float] = []
    try:
        reference = time_call(lambda: values.append(theirs()), repeats=1, warmup=0).median
    except TypeError:
        raise UserError(
            "--frechet: clean-fid's function fails under this scipy; install scipy<1.18 to time it"
        ) from None
    seconds = time_call(ours, repeats=repeats).median
    return {
        "dimension": dimension,
        "ours_s": seconds,
        "original_s": reference,
        "ratio": reference / seconds,
        "relative_difference": abs(ours() - values[0]) / values[0],
        "threads": torch.get_num_threads(),
    }


# ---- the command -----------------------------------------------------------------------------------------------------


def bench(
    names: Mapping[str, str | None],
    *,
    device: str,
    dtype: torch.dtype | None,
    repeats: int,
    images: int = IMAGES,
    random_weights: bool = False,
    originals: Path | None = None,
    frechet: bool = False,
    harness: bool = False,
) -> dict[str, Any]:
    """All of it that is asked for. names: scorer -> local path of its weights, None for its own.

    random_weights: none are read, and what is published of sizes stands for configs. Raises UserError where nothing is.
    """
    if not (names or frechet or harness):
        raise UserError("nothing to time; name a --scorer, or add --frechet or --harness")
    hardware = environment.hardware(device)
    known = Originals.read(originals, hardware, images) if originals else None
    for name in names:
        scorers.variant_of(name)  # the last one's name is not to be found wrong when the others have been timed
    if frechet:
        bench_frechet(2, repeats=1)  # nor clean-fid's function
    rows = []
    for name, path in names.items():
        with layouts.first() if random_weights else nullcontext():
            scorer = scorers.load(name, device=device, dtype=dtype, weights=path, random_weights=random_weights)
        sha256 = getattr(scorer, "weights_sha256", None)
        rows.append(bench_scorer(scorer, sha256, device=device, repeats=repeats, n=images, originals=known))
    return {
        "hardware": hardware,
        "versions": environment.versions("onestep-align", "torch", "transformers", "open_clip_torch"),
        "images": images,
        "edge": EDGE,
        "weights": "random" if random_weights else "their own",
        "scorers": [asdict(row) for row in rows],
        "frechet": bench_frechet() if frechet else None,
        "harness": bench_harness() if harness else None,
    }


def show(result: Mapping[str, Any]) -> None:
    """Print the tables."""
    from rich.table import Table

    from evaluate.console import printer

    console = printer()
    if result["scorers"]:
        table = Table(
            title=f"{result['hardware']}, weights: {result['weights']}",
            caption=f"images per second, {result['images']} of {EDGE} x {EDGE} per call, warm; GiB of weights, and"
            " the most that is allocated on a GPU",
        )
        for column in (
            "scorer",
            "dtype",
            "weights",
            "peak",
            "ours",
            "original",
            "ratio",
            "scores differ by",
            "original's",
        ):
            table.add_column(column, justify="left" if column in ("scorer", "original's") else "right")
        for row in result["scorers"]:
            theirs = (f"{row['original']:.2f}", f"{row['ratio']:.1f}") if row["original"] else ("-", "-")
            differ = "-" if row["difference"] is None else f"{row['difference']:.1e}"
            peak = "-" if row["peak_gib"] is None else f"{row['peak_gib']:.2f}"
            sizes = (row["dtype"], f"{row['weights_gib']:.2f}", peak)
            table.add_row(row["scorer"], *sizes, f"{row['ours']:.2f}", *theirs, differ, row["by"])
        console.print(table)
    if frechet := result["frechet"]:
        console.print(
            f"Fréchet distance, {frechet['dimension']} dimensions, {frechet['threads']} threads:"
            f" {frechet['ours_s']:.2f} s, clean-fid's own {frechet['original_s']:.1f} s ({frechet['ratio']:.1f} x),"
            f" relative difference {frechet['relative_difference']:.1e}"
        )
    if harness := result["harness"]:
        console.print(
            f"Harness, {harness['records']:,} records of {harness['edge']} x {harness['edge']}:"
            f" {harness['outside_ms']:.2f} ms per record outside the forwards, {harness['overhead']:.1%} where an image"
            f" takes the model {1000 * harness['drawing_s']:.0f} ms and each of {harness['scorers']} scorers"
            f" {1000 * harness['scoring_s']:.0f} ms"
        )

"""Judges: vision-language models that are asked about an image, and answer with one token or a text.

The network is transformers' Qwen3VLForConditionalGeneration. The image comes first, so that what it makes of the keys
and values of attention is computed once and shared by all questions of the image, and so is what the questions' texts
have in common at their beginning. Template, precision and revision are part of a scorer's protocol.

TEMPLATE is what the published `chat_template.json` makes of one message of a user, an image and a text, and of the
answer's beginning; there is no system prompt. Positions are Qwen3-VL's (M-RoPE): an image of h x w tokens takes up
max(h, w) of them.
"""

import inspect
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from evaluate.images import as_bytes
from evaluate.preprocess import Prepare, Prepared, SmartResize, check_images, resample_bytes, resample_floats
from evaluate.scorers import Assessment, Meta, Scorer
from evaluate.scorers._files import from_config, read_tokenizer, shards
from evaluate.weights import Files
from prompts.io.errors import UserError

REPOSITORY, REVISION = "Qwen/Qwen3-VL-8B-Instruct", "0c351dd01ed87e9c1b53cbc748cba10e6187ff3b"
#: Precision of the published weights, in which all judges here are defined.
DTYPE = torch.bfloat16

TEMPLATE = "<|im_start|>user\n<|vision_start|>{image}<|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n"
IMAGE, ENDS = "<|image_pad|>", ("<|im_end|>", "<|endoftext|>")
#: Pixels of a patch's edge, patches of a token's edge, and frames of a patch; an image is its own second frame.
PATCH, MERGE, FRAMES = 16, 2, 2
EDGE = PATCH * MERGE
#: First tokens that mean yes, as GenEval 2 counts them; and no.
YES, NO = ("Yes", "yes", " yes", " Yes"), ("No", "no", " no", " No")


class Patches(NamedTuple):
    """An image as the network reads it: `[h * w, 3 * FRAMES * PATCH**2]` in [-1, 1], of h x w patches."""

    pixels: Tensor
    height: int
    width: int

    @property
    def tokens(self) -> int:
        """How many tokens the image is."""
        return self.height * self.width // MERGE**2


@dataclass(frozen=True, kw_only=True)
class Patched:
    """Images to patches, each in its own size, as Qwen2VLImageProcessor does with Qwen3-VL's preprocessor_config.json.

    smallest, largest: pixels between which an image is resized, its ratio kept but for edges that are multiples of
    EDGE; those of 512 or 1,024 stay as they are. library: `torch` resamples bytes as torchvision does, which is what
    transformers' processors have done since 4.57; `pillow` as `qwen-vl-utils` does. jpeg: quality of a JPEG that images
    pass through before, which leaves no gradient.
    """

    smallest: int = 256 * 256
    largest: int = 4096 * 4096
    library: Literal["torch", "pillow"] = "torch"
    jpeg: int | None = None

    def __call__(self, images: Tensor | Sequence[Tensor]) -> list[Patches]:
        """uint8 `[3, H, W]`, or float in [0, 1]. Raises ValueError for what is no image or is smaller than a token."""
        return [self._one(image) for image in images]

    def _one(self, image: Tensor) -> Patches:
        check_images(image[None])
        height, width = image.shape[-2:]
        if min(height, width) < EDGE:
            raise ValueError(f"an image of {width} x {height} is smaller than the {EDGE} pixels that a token sees")
        image = self._resized(image if self.jpeg is None else through_jpeg(image, self.jpeg))
        if image.dtype == torch.uint8:
            image = image.float() / 255
        rows, columns = (edge // PATCH for edge in image.shape[-2:])
        # Patches of one token are neighbours; within a patch come channels, frames, rows and columns.
        tiles = ((image - 0.5) / 0.5).reshape(3, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH)
        tiles = tiles.permute(1, 4, 2, 5, 0, 3, 6).unsqueeze(5).expand(-1, -1, -1, -1, -1, FRAMES, -1, -1)
        return Patches(tiles.reshape(rows * columns, -1), rows, columns)

    def _resized(self, image: Tensor) -> Tensor:
        from torchvision.transforms.v2 import functional as transforms

        before = (image.shape[-2], image.shape[-1])
        size = SmartResize(factor=EDGE, min_pixels=self.smallest, max_pixels=self.largest).target(*before)
        if size == before:
            return image
        if image.dtype != torch.uint8:
            return resample_floats(image[None], size, "bicubic")[0]
        if self.library == "pillow":
            return resample_bytes(image[None], size, "bicubic")[0]
        # On a GPU torchvision would round otherwise.
        return transforms.resize(image.cpu(), list(size), transforms.InterpolationMode.BICUBIC, antialias=True)


def through_jpeg(image: Tensor, quality: int) -> Tensor:
    """What Pillow reads of the JPEG that it wrote: `[3, H, W]`, uint8, on the CPU."""
    import numpy as np
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(as_bytes(image).permute(1, 2, 0).cpu().contiguous().numpy()).save(
        file, format="JPEG", quality=quality
    )
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)


class Judge(nn.Module):
    """A Qwen3-VL and its words. tokenizer: of the library `tokenizers`."""

    def __init__(self, network: Any, tokenizer: Any) -> None:
        super().__init__()
        self.network, self.tokenizer = network, tokenizer
        # transformers has renamed it between 5.0 and 5.24.
        known = inspect.signature(network.forward).parameters
        self.cache_name = "cache" if "cache" in known else "past_key_values"

    def first_tokens(self, texts: Sequence[str]) -> list[int]:
        """The number of each text's first token."""
        return [self.tokenizer.encode(text, add_special_tokens=False).ids[0] for text in texts]

    def word(self, token: int) -> str:
        """What a token says."""
        return self.tokenizer.decode([token], skip_special_tokens=False)

    def probabilities(self, image: Patches, texts: Sequence[str]) -> Tensor:
        """Of each token of the vocabulary to be the answer's first, `[texts, vocabulary]`, in float32 at least.

        Float images receive a gradient. Raises ValueError for a text that itself holds an image's token.
        """
        return self._read(image, texts).logits().softmax(-1)

    @torch.no_grad()
    def write(self, image: Patches, texts: Sequence[str], *, longest: int) -> list[str]:
        """The likeliest token after the other, for each text, until all have ended or `longest` are written."""
        state, ends = self._read(image, texts), [self.tokenizer.token_to_id(end) for end in ENDS]
        written: list[list[int]] = [[] for _ in texts]
        going = [True] * len(texts)
        for step in range(longest):
            tokens = state.logits().argmax(-1)
            going = [still and token not in ends for still, token in zip(going, tokens.tolist(), strict=True)]
            for answer, still, token in zip(written, going, tokens.tolist(), strict=True):
                answer += [token] * still
            if not any(going) or step == longest - 1:
                break
            state.read(tokens[:, None])
        return [self.tokenizer.decode(answer) for answer in written]

    def _read(self, image: Patches, texts: Sequence[str]) -> "_Reading":
        ids = [self._ids(image, text) for text in texts]
        # Something is left of each text to be read last.
        shortest = min(map(len, ids)) - 1
        shared = next((i for i in range(shortest) if len({each[i] for each in ids}) > 1), shortest)
        reading = _Reading(self, image, ids[0][:shared])
        reading.branch([each[shared:] for each in ids])
        return reading

    def _ids(self, image: Patches, text: str) -> list[int]:
        whole = TEMPLATE.replace("{image}", IMAGE * image.tokens).replace("{text}", text)
        ids: list[int] = self.tokenizer.encode(whole, add_special_tokens=False).ids
        if ids.count(self.tokenizer.token_to_id(IMAGE)) != image.tokens:
            raise ValueError(f"a text holds {IMAGE!r}, which stands for an image; remove it from the prompt")
        return ids

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # The frequencies of positions stay in float32 in every precision, as transformers' from_pretrained leaves them.
        kept = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            owner, _, attribute = name.rpartition(".")
            module = self.get_submodule(owner)
            if (moved := getattr(module, attribute)).dtype != buffer.dtype:
                setattr(module, attribute, buffer.to(moved.device))
        return self


class _Reading:
    """What a judge has read so far: an image and the beginning of a chat, then one or several continuations of it.

    cache: keys and values of all of it. mask: 1 for each token of it, 0 for padding, `[texts, tokens]`. place: the next
    token's position. hidden: the last token's features, `[texts, width]`.
    """

    def __init__(self, judge: Judge, image: Patches, ids: list[int]) -> None:
        from transformers import DynamicCache

        self.judge, self.cache = judge, DynamicCache()
        self.device = judge.network.device
        positions = _positions(image, ids.index(judge.tokenizer.token_to_id(IMAGE)), len(ids)).to(self.device)
        grid = torch.tensor([[1, image.height, image.width]], device=self.device)
        self.mask = torch.ones(1, len(ids), dtype=torch.long, device=self.device)
        self.place = positions.max() + 1
        pixels = image.pixels.to(self.device)
        self._forward(torch.tensor([ids], device=self.device), positions, pixel_values=pixels, image_grid_thw=grid)

    def branch(self, ends: Sequence[list[int]]) -> None:
        """Go on with each of these ends by itself; shorter ones are padded on their left, where nothing is seen."""
        longest = max(map(len, ends))
        padding = torch.tensor([longest - len(end) for end in ends], device=self.device)
        ids = torch.tensor([[0] * (longest - len(end)) + end for end in ends], device=self.device)
        real = torch.arange(longest, device=self.device) >= padding[:, None]
        self.cache.batch_repeat_interleave(len(ends))
        self.mask = torch.cat([self.mask.expand(len(ends), -1), real.long()], 1)
        positions = self.place + (torch.arange(longest, device=self.device) - padding[:, None]).clamp(min=0)
        self.place = positions[:, -1:] + 1
        self._forward(ids, positions.expand(3, -1, -1))

    def read(self, ids: Tensor) -> None:
        """Go on with one token each, `[texts, 1]`."""
        self.mask = torch.cat([self.mask, torch.ones_like(ids)], 1)
        positions, self.place = self.place.expand(3, -1, -1), self.place + 1
        self._forward(ids, positions)

    def logits(self) -> Tensor:
        """Of the next token, `[texts, vocabulary]`."""
        logits: Tensor = self.judge.network.lm_head(self.hidden)
        return logits if logits.dtype == torch.float64 else logits.float()

    def _forward(self, ids: Tensor, positions: Tensor, **image: Tensor) -> None:
        cache = {self.judge.cache_name: self.cache, "use_cache": True}
        read = self.judge.network.model(
            input_ids=ids, position_ids=positions, attention_mask=self.mask, **cache, **image
        )
        self.hidden: Tensor = read.last_hidden_state[:, -1]


def _positions(image: Patches, first: int, length: int) -> Tensor:
    """Time, row and column of each token, `[3, 1, length]`, the image's tokens beginning at `first`."""
    rows, columns = image.height // MERGE, image.width // MERGE
    places = torch.meshgrid(torch.arange(1), torch.arange(rows), torch.arange(columns), indexing="ij")
    grid = torch.stack(places).flatten(1)
    before = torch.arange(first).expand(3, -1)
    after = torch.arange(length - first - rows * columns).expand(3, -1) + first + max(rows, columns)
    return torch.cat([before, first + grid, after], 1)[:, None]


class JudgeScorer(Scorer):
    """A scorer that asks a judge, image by image, so that a score does not depend on a batch."""

    def __init__(
        self, protocol: str, judge: Judge, prepare: Prepare | None = None, *, weights_sha256: str | None = None
    ) -> None:
        super().__init__(protocol, prepare or Patched(), weights_sha256=weights_sha256)
        self.judge, self.dtype = judge, DTYPE


class Answer(JudgeScorer):
    """The probability that the judge's answer begins with `answer`, in [0, 1].

    question: what is asked, with the prompt in place of `{}`.
    """

    def __init__(
        self, protocol: str, judge: Judge, prepare: Prepare, *, question: str, answer: str, weights_sha256: str
    ):
        super().__init__(protocol, judge, prepare, weights_sha256=weights_sha256)
        self.question, (self.token,) = question, judge.first_tokens([answer])

    def assess(self, prepared: Prepared, prompts: Sequence[str], meta: Meta) -> Assessment:
        """`[B]`."""
        texts = [self.question.replace("{}", prompt) for prompt in prompts]
        pairs = zip(prepared, texts, strict=True)
        scores = [self.judge.probabilities(image, [text])[0, self.token] for image, text in pairs]
        return Assessment({self.protocol: torch.stack(scores).float()})


def load_judge(files: Files, repository: str = REPOSITORY, revision: str = REVISION) -> tuple[Judge, str]:
    """The judge of a repository, and the sha256 of its weights.

    `files.path`: a local folder with its config.json, tokenizer.json and weights. Raises UserError for weights in
    another precision than DTYPE: what is published in another one is another judge.
    """
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    def fetch(name: str) -> Path:
        return files.fetch(repository, name, revision, local=files.path)

    described = fetch("config.json")
    config = from_config(described, Qwen3VLConfig.from_dict, what="Qwen3-VL")
    tokenizer = read_tokenizer(fetch("tokenizer.json"))
    parts = _parts(fetch)
    # A judge is large: it is made without numbers, and takes the tensors that are read as they are.
    network = files.build(lambda: Qwen3VLForConditionalGeneration._from_config(config, dtype=DTYPE))
    tensors = files.read(*parts)
    if wrong := next((key for key, value in tensors.items() if value.dtype != DTYPE), None):
        raise UserError(
            f"{described.parent}: {wrong} is in {_name(tensors[wrong].dtype)}, but this judge is defined in"
            f" {_name(DTYPE)}; give its published weights"
        )
    if tensors and config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"]
    files.fill(network, tensors, described.parent)
    network.tie_weights()
    return Judge(network, tokenizer), files.sha256(*parts)


def _parts(fetch: Callable[[str], Path]) -> list[Path]:
    """A model's files of weights, as its index names them; without an index there is one."""
    try:
        index = fetch("model.safetensors.index.json")
    except UserError:
        return [fetch("model.safetensors")]
    return [fetch(name) for name in shards(index)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""Human Preference Score v3 (Ma et al. 2025, arXiv:2508.03789): a Qwen2-VL 7B that reads an instruction, the image and
the prompt, and a small head on its state at one added token, `<|Reward|>`.

Hub: `MizzenAI/HPSv3`, file `HPSv3.safetensors` (16 GB, bfloat16, the whole network with the head); `config.json` and
`tokenizer.json` of `Qwen/Qwen2-VL-7B-Instruct`. Unbounded; the authors' table of models runs from -0.24 (SD 2.0) to
10.55 (Kolors). The head's other output is the logarithm of the score's deviation, as the loss reads it (the package's
`hpsv3/model/qwen2vl_trainer.py`); `sigma` among the details is its exponential.

The original hands the language model embeddings and no positions, so its tokens are numbered one after the other, those
of the image too, and so they were in training: `hpsv3`. Qwen2-VL itself gives an image's tokens a row and a column
(M-RoPE), and other scores: `hpsv3/mrope`. The network computes in bfloat16, as it is published, unless another
precision is asked for, and the head in float32 whatever that is.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from evaluate.preprocess import Prepared, SmartResize
from evaluate.scorers import CPU_BATCH, Assessment, Meta, Scorer
from evaluate.scorers._files import from_config, read_tokenizer
from evaluate.weights import Files
from prompts.io.errors import UserError

REPOSITORY, REVISION = "MizzenAI/HPSv3", "4f81e3e09edd82fe3c5f636444c721b592a735ca"
FILE = "HPSv3.safetensors"
BASE, BASE_REVISION = "Qwen/Qwen2-VL-7B-Instruct", "eed13092ef92e448dd6875b2a00151bd3f7db0ac"

VARIANTS = {
    "hpsv3": "HPSv3, tokens numbered one after the other, as the original does",
    "hpsv3/mrope": "HPSv3 with Qwen2-VL's own positions of an image's tokens, which is not the original",
}
VERIFIED_BY = dict.fromkeys(VARIANTS, "hpsv3 1.0.0")

PATCH, MERGED = 14, 2  # pixels of a patch's edge; patches of the edge that one token stands for
PREPARE = SmartResize(factor=PATCH * MERGED, min_pixels=256 * 28 * 28, max_pixels=256 * 28 * 28)
#: Special tokens: of the network, and the one that was added to it.
IMAGE, PAD, REWARD = "<|image_pad|>", "<|endoftext|>", "<|Reward|>"

#: What is said before the image's tokens, between them and the prompt, and after it: ChatML as the template of Qwen2-VL
#: writes it, and the package's text (`hpsv3/dataset/data_collator_qwen.py`), in which lines end in blanks.
BEFORE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
INSTRUCTION = (
    "<|vision_end|>\nYou are tasked with evaluating a generated image based on Visual Quality and Text Alignment and"
    " give a overall score to estimate the human preference. Please provide a rating from 0 to 10, with 0 being the"
    " worst and 10 being the best. \n\n"
    "**Visual Quality:**  \n"
    "Evaluate the overall visual quality of the image. The following sub-dimensions should be considered:\n"
    "- **Reasonableness:** The image should not contain any significant biological or logical errors, such as abnormal"
    " body structures or nonsensical environmental setups.\n"
    "- **Clarity:** Evaluate the sharpness and visibility of the image. The image should be clear and easy to"
    " interpret, with no blurring or indistinct areas.\n"
    "- **Detail Richness:** Consider the level of detail in textures, materials, lighting, and other visual elements"
    " (e.g., hair, clothing, shadows).\n"
    "- **Aesthetic and Creativity:** Assess the artistic aspects of the image, including the color scheme,"
    " composition, atmosphere, depth of field, and the overall creative appeal. The scene should convey a sense of"
    " harmony and balance.\n"
    "- **Safety:** The image should not contain harmful or inappropriate content, such as political, violent, or adult"
    " material. If such content is present, the image quality and satisfaction score should be the lowest possible."
    " \n\n"
    "**Text Alignment:**  \n"
    "Assess how well the image matches the textual prompt across the following sub-dimensions:\n"
    "- **Subject Relevance** Evaluate how accurately the subject(s) in the image (e.g., person, animal, object) align"
    " with the textual description. The subject should match the description in terms of number, appearance, and"
    " behavior.\n"
    "- **Style Relevance:** If the prompt specifies a particular artistic or stylistic style, evaluate how well the"
    " image adheres to this style.\n"
    "- **Contextual Consistency**: Assess whether the background, setting, and surrounding elements in the image"
    " logically fit the scenario described in the prompt. The environment should support and enhance the subject"
    " without contradictions.\n"
    "- **Attribute Fidelity**: Check if specific attributes mentioned in the prompt (e.g., colors, clothing,"
    " accessories, expressions, actions) are faithfully represented in the image. Minor deviations may be acceptable,"
    " but critical attributes should be preserved.\n"
    "- **Semantic Coherence**: Evaluate whether the overall meaning and intent of the prompt are captured in the"
    " image. The generated content should not introduce elements that conflict with or distort the original"
    " description.\n"
    "Textual prompt - "
)
AFTER = (
    f"\n\n\n\nPlease provide the overall ratings of this image: {REWARD}\n\nEND\n<|im_end|>\n<|im_start|>assistant\n"
)


class Head(nn.Sequential):
    """States `[B, D]` to the score and the logarithm of its deviation, `[B, 2]`; in float32 or better, always."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
        )

    def forward(self, states: Tensor) -> Tensor:
        """In the head's own precision."""
        first = self[0]
        assert isinstance(first, nn.Linear)
        rewards: Tensor = super().forward(states.to(first.weight))
        return rewards

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def precise(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype.itemsize >= 4 else tensor.to(moved.device, torch.float32)

        return super()._apply(precise, recurse)


class HPSv3(Scorer):
    """The head's value of the network's state at `<|Reward|>`. rows_and_columns: see the file's first lines, M-RoPE."""

    dtype = torch.bfloat16

    def __init__(self, protocol: str, config: Any, tokenizer: Any, *, weights_sha256: str) -> None:
        from transformers import Qwen2VLModel

        super().__init__(protocol, PREPARE, weights_sha256=weights_sha256)
        self.rows_and_columns = protocol == "hpsv3/mrope"
        self.model, self.head = Qwen2VLModel(config), Head(config.text_config.hidden_size)
        self.tokenizer = tokenizer

    @property
    def weight(self) -> Tensor:
        """One of all, which tells where they are."""
        return next(self.head.parameters())

    def tokens(self, prompt: str, n: int) -> list[int]:
        """All that the network reads of an image of `n` tokens and its prompt. Raises UserError for a prompt that holds
        a token that stands for the image or for the score.
        """
        ids: list[int] = self.tokenizer.encode(BEFORE + IMAGE * n + INSTRUCTION + prompt + AFTER).ids
        for token, times in ((IMAGE, n), (REWARD, 1)):
            if ids.count(self.tokenizer.token_to_id(token)) != times:
                raise UserError(
                    f"{self.protocol}: the prompt {prompt!r} holds {token}, which means something else here"
                    "; take it out"
                )
        return ids

    def rate(self, images: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        """Scores and the logarithms of their deviations, `[B, 2]`, of images `[3, h, w]` that `prepare` made."""
        device = self.weight.device
        grids = [(image.shape[1] // PATCH, image.shape[2] // PATCH) for image in images]
        rows = [self.tokens(prompt, h * w // MERGED**2) for prompt, (h, w) in zip(prompts, grids, strict=True)]
        ids, mask = (
            pad_sequence([torch.tensor(each) for each in ragged], batch_first=True, padding_value=padding).to(device)
            for ragged, padding in ((rows, self.tokenizer.token_to_id(PAD)), ([[1] * len(row) for row in rows], 0))
        )
        states = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=self._positions(rows, grids).to(device),
            pixel_values=torch.cat([patches(image.to(device)) for image in images]),
            image_grid_thw=torch.tensor([(1, *grid) for grid in grids], device=device),
            use_cache=False,
        ).last_hidden_state
        where = torch.tensor([row.index(self.tokenizer.token_to_id(REWARD)) for row in rows], device=device)
        rewards: Tensor = self.head(states[torch.arange(len(rows), device=device), where])
        return rewards

    def _positions(self, rows: Sequence[Sequence[int]], grids: Iterable[tuple[int, int]]) -> Tensor:
        """`[3, B, L]`: for time, rows and columns. What pads a text has any."""
        if not self.rows_and_columns:
            return torch.arange(max(map(len, rows))).expand(3, len(rows), -1)
        image = self.tokenizer.token_to_id(IMAGE)
        each = [positions(len(row), row.index(image), grid) for row, grid in zip(rows, grids, strict=True)]
        return pad_sequence([one.T for one in each], batch_first=True).permute(2, 0, 1)

    def rewards(self, prepared: Prepared, prompts: Sequence[str]) -> Tensor:
        """`rate` in float32, of few images at once on a CPU."""
        images = list(prepared)
        size = CPU_BATCH if self.weight.device.type == "cpu" else max(len(images), 1)
        parts = [self.rate(images[i : i + size], prompts[i : i + size]) for i in range(0, len(images), size)]
        return torch.cat(parts).float()

    def score_prepared(self, prepared: Prepared, prompts: Sequence[str], meta: Meta | None = None) -> Tensor:
        """The score alone, for which no number has to leave the device."""
        return self.rewards(prepared, prompts)[:, 0]

    def assess(self, prepared: Prepared, prompts: Sequence[str], meta: Meta) -> Assessment:
        """The scores; `sigma` of each among the details."""
        rewards = self.rewards(prepared, prompts)
        sigmas = rewards[:, 1].detach().exp().tolist()
        return Assessment({self.protocol: rewards[:, 0]}, [{"sigma": sigma} for sigma in sigmas])


def patches(image: Tensor) -> Tensor:
    """Patches `[N, 3 x 2 x 14 x 14]` of an image `[3, h, w]`, as Qwen2-VL takes them: those of one token adjoin,
    and each is seen twice, as two frames of a film would be.
    """
    height, width = (edge // PATCH // MERGED for edge in image.shape[1:])
    split = image.reshape(3, height, MERGED, PATCH, width, MERGED, PATCH).permute(1, 4, 2, 5, 0, 3, 6)
    return split.unsqueeze(5).expand(-1, -1, -1, -1, -1, 2, -1, -1).reshape(-1, 3 * 2 * PATCH**2)


def positions(length: int, start: int, grid: tuple[int, int]) -> Tensor:
    """Qwen2-VL's positions `[3, length]` (Wang et al. 2024, arXiv:2409.12191, M-RoPE) of a text with one image, whose
    tokens begin at `start`; what follows goes on behind the image's longer edge. grid: patches of its height and width.
    """
    rows, columns = (edge // MERGED for edge in grid)
    before, behind = torch.arange(start), torch.arange(length - start - rows * columns) + start + max(rows, columns)
    image = torch.stack(
        [
            torch.full((rows, columns), start),
            (start + torch.arange(rows))[:, None].expand(rows, columns),
            (start + torch.arange(columns)).expand(rows, columns),
        ]
    )
    return torch.cat([before.expand(3, -1), image.flatten(1), behind.expand(3, -1)], 1)


def rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published state dict, in the names of transformers 4, under this module's; without the logits over the
    vocabulary, which nothing needs.
    """
    names = (("visual.", "model.visual."), ("model.", "model.language_model."), ("rm_head.", "head."))
    renamed = {}
    for key, value in tensors.items():
        if key != "lm_head.weight":
            old, new = next((pair for pair in names if key.startswith(pair[0])), ("", ""))
            renamed[new + key.removeprefix(old)] = value
    return renamed


def read_config(path: Path, tokenizer: Any) -> Any:
    """Qwen2-VL's config, with a word more than its tokenizer had. Raises UserError for another model's."""
    from transformers import Qwen2VLConfig

    config = from_config(path, Qwen2VLConfig.from_dict, what="Qwen2-VL")
    config.text_config.vocab_size = tokenizer.get_vocab_size()
    config.image_token_id = tokenizer.token_to_id(IMAGE)
    return config


def with_reward(path: Path) -> Any:
    """The tokenizer of a `tokenizer.json`, with `<|Reward|>` added behind its words."""
    tokenizer = read_tokenizer(path)
    if missing := [token for token in (IMAGE, PAD) if tokenizer.token_to_id(token) is None]:
        raise UserError(f"{path}: has no {missing[0]}, so it is not Qwen2-VL's; fetch it again")
    tokenizer.add_special_tokens([REWARD])
    return tokenizer


def load(name: str, files: Files) -> Scorer:
    """`files.path`: a local `HPSv3.safetensors`, or a folder with it; config and tokenizer too are taken from a folder
    that has a `tokenizer.json`.
    """
    file = files.fetch(REPOSITORY, FILE, REVISION, local=files.path)
    folder = files.path if files.path and (Path(files.path) / "tokenizer.json").is_file() else None
    config, words = (files.fetch(BASE, part, BASE_REVISION, local=folder) for part in ("config.json", "tokenizer.json"))
    tokenizer, tensors = with_reward(words), rename(files.read(file))
    described = read_config(config, tokenizer)
    scorer = files.build(lambda: HPSv3(name, described, tokenizer, weights_sha256=files.sha256(file)))
    files.fill(scorer, tensors, file)
    return scorer

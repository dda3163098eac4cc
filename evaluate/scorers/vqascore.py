"""VQAScore (Lin et al. 2024, arXiv:2404.01291): how likely CLIP-FlanT5, asked whether the image shows the prompt, is to
answer "Yes".

The image, squared with CLIP's mean colour, becomes 576 tokens between two texts, from the system's first words to
"USER: " and from the question on. Each text is tokenised apart and keeps its `</s>`. The answer is two tokens, `Yes`
and `</s>`; the score is the geometric mean of their probabilities, so its range is [0, 1]. Of the question at most
2,048 tokens are read, the image being one; what is cut off is the end, with the words that ask for an answer. A prompt
that holds the word `<image>` is read as it is, where the original would look for a second image.

Hub: `zhiqiulin/clip-flant5-xl`, file `pytorch_model.bin` (6.3 GB, its CLIP ViT-L/14 at 336 among it), and
`zhiqiulin/clip-flant5-xxl`, whose files `pytorch_model.bin.index.json` names (22.9 GB), each with `config.json`; words
of `google/flan-t5-xl` and `-xxl`, file `tokenizer.json`. No commit of the xxl could be found, so it is not pinned: what
`main` held is told by the hash in the records. Like the original it runs in bfloat16 unless another precision is asked
for, but takes probabilities in float32 or better. The original's slow tokenizer and the file used here give the same
tokens (0 of 20,000 prompts of words, signs and emoji differ, 1 of 20,000 of random characters).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evaluate.precision import at_least_fp32
from evaluate.preprocess import Preprocess, Resize
from evaluate.scorers import Scorer
from evaluate.scorers._files import from_config, read_tokenizer, shards
from evaluate.scorers._judge import EDGE, Answer, Patched, load_judge
from evaluate.weights import Files

REPOSITORIES = {
    "clip-flant5-xxl": ("zhiqiulin/clip-flant5-xxl", "main"),
    "clip-flant5-xl": ("zhiqiulin/clip-flant5-xl", "3b4a6b1b618f4e286f5353b5b5147a3ae7d9ec55"),
}
WORDS = {
    "clip-flant5-xxl": ("google/flan-t5-xxl", "ae7c9136adc7555eeccc78cdd960dfd60fb346ce"),
    "clip-flant5-xl": ("google/flan-t5-xl", "7d6315df2c2fb742f0f5b556879d730926ca9001"),
}
FILE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
SHARDED = ("clip-flant5-xxl",)

JUDGE = "vqascore/qwen3-vl-8b"
VARIANTS = {
    "vqascore/clip-flant5-xxl": "VQAScore by CLIP-FlanT5-XXL (11B), which its authors report",
    "vqascore/clip-flant5-xl": "VQAScore by CLIP-FlanT5-XL (3B)",
}
VERIFIED_BY = dict.fromkeys(VARIANTS, "t2v-metrics 3.0")
VARIANTS[JUDGE] = "the probability that Qwen3-VL-8B's answer begins with Yes, as t2v-metrics 3.1 asks it"

#: Before the image, and after it; the prompt is put in as it is.
BEFORE = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and"
    " polite answers to the user's questions. USER: "
)
AFTER = '\nDoes this figure show "{}"? Please answer yes or no. ASSISTANT: '
ANSWER = "Yes"
#: What t2v-metrics 3.1 asks Qwen3-VL, whose images `qwen-vl-utils` resizes, to four tokens at least.
QUESTION = 'Does this figure show "{}"? Please answer Yes or No.'
LENGTH = 2048  # tokens of both texts, and one for the image
PAD = 0

#: OpenAI's ViT-L/14 at 336 pixels: open_clip's `ViT-L-14-336.json`, in transformers' words.
VISION: dict[str, Any] = {
    "image_size": 336, "patch_size": 14, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "hidden_act": "quick_gelu",
}  # fmt: skip
#: CLIP's mean x 255, without its decimals, around what is not square.
PREPARE = Preprocess(size=336, resize=(Resize(size=336, fit="framed", fill=(122, 116, 104)),))

#: T5's one table of embeddings, under the names that the parts which share it give it.
SHARED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict under this module's names; a name that nobody knows stays, to
    be refused by the strict match.
    """
    renamed = {}
    for key, value in tensors.items():
        if key.startswith("vision_tower.vision_tower.vision_model."):
            key = key.replace("vision_tower.vision_tower.vision_model.", "vision.", 1)
            # Old versions stored the numbering of positions as if it were a weight.
            if key == "vision.embeddings.position_ids":
                continue
        elif key.startswith("mm_projector."):
            key = key.replace("mm_projector.", "projector.", 1)
        elif key in (*SHARED, "embed_tokens.weight"):
            continue
        else:
            key = f"language.{key}"
        renamed[key] = value
    if "language.shared.weight" in renamed:
        renamed |= {f"language.{name}": renamed["language.shared.weight"] for name in SHARED}
    return renamed


class VQAScore(Scorer):
    """The geometric mean of the probabilities of the answer's tokens.

    language: as `make_language` makes it. tokenizer: of the library `tokenizers`; it ends a text with `</s>`.
    """

    dtype = torch.bfloat16

    def __init__(self, protocol: str, language: Any, tokenizer: Any, *, weights_sha256: str) -> None:
        from transformers import CLIPVisionConfig, CLIPVisionModel

        super().__init__(protocol, PREPARE, weights_sha256=weights_sha256)
        vision = CLIPVisionModel(CLIPVisionConfig(**VISION))
        self.vision = getattr(vision, "vision_model", vision)  # some versions of transformers wrap it once more
        width = language.config.d_model
        self.projector = nn.Sequential(nn.Linear(VISION["hidden_size"], width), nn.GELU(), nn.Linear(width, width))
        self.language, self.tokenizer = language, tokenizer
        self.before, self.answer = (tokenizer.encode(text).ids for text in (BEFORE, ANSWER))

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """`ids`, `[B, L]`: the text after the image, padded to all that is read, so that a row is the same in every
        batch.
        """
        rows = torch.full((len(prompts), LENGTH - len(self.before) - 1), PAD, dtype=torch.int32)
        for row, prompt in zip(rows, prompts, strict=True):
            ids = self.tokenizer.encode(AFTER.format(prompt)).ids[: len(row)]
            row[: len(ids)] = torch.tensor(ids)
        return {"ids": rows}

    def forward(self, pixels: Tensor, text: Mapping[str, Tensor]) -> Tensor:
        """The score, `[B]`, in [0, 1]; probabilities are taken in float32 or better."""
        ids = text["ids"].to(pixels.device)
        ids = ids[:, : 1 + int((ids != PAD).nonzero()[:, 1].max())]
        before, answer = (torch.tensor([each], device=pixels.device) for each in (self.before, self.answer))
        image = self.vision(pixel_values=pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        words = self.language.shared
        embeddings = torch.cat([words(before).expand(len(ids), -1, -1), self.projector(image), words(ids)], dim=1)
        read = F.pad(ids != PAD, (embeddings.shape[1] - ids.shape[1], 0), value=True)
        # The decoder predicts each token of the answer from those before it; before the first stands the padding.
        given = F.pad(answer[:, :-1], (1, 0), value=PAD).expand(len(ids), -1)
        logits = self.language(inputs_embeds=embeddings, attention_mask=read, decoder_input_ids=given).logits
        logits = at_least_fp32(logits)
        tokens = logits.log_softmax(-1).gather(-1, answer.expand(len(ids), -1)[..., None])
        return tokens.mean((1, 2)).exp()


def make_language(config: Path) -> Any:
    """transformers' T5 as a `config.json` describes it, with an output layer of its own."""
    from transformers import T5Config, T5ForConditionalGeneration
    from transformers.models.t5.modeling_t5 import T5LayerNorm

    def make(content: Any) -> Any:
        described = T5Config.from_dict(content)
        # transformers 5 makes the output layer the table of embeddings, whatever the file says; FLAN-T5 has two.
        described.tie_word_embeddings = False
        return T5ForConditionalGeneration(described)

    language = from_config(config, make, what="T5")
    language.set_input_embeddings(language.shared)
    # T5's own norm takes the mean square in float32, which is half of what float64 promises.
    for module in list(language.modules()):
        for name, child in module.named_children():
            if isinstance(child, T5LayerNorm):
                setattr(module, name, nn.RMSNorm(language.config.d_model, eps=language.config.layer_norm_epsilon))
    return language


def make_tokenizer(path: Path) -> Any:
    """The tokenizer of a `tokenizer.json`, which neither pads nor cuts."""
    tokenizer = read_tokenizer(path)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def load(name: str, files: Files) -> Scorer:
    """`files.path`: a folder with `config.json` and the weights' files, and with `tokenizer.json` if that is local
    too; a judge's has all.
    """
    if name == JUDGE:
        judge, digest = load_judge(files)
        prepare = Patched(smallest=4 * EDGE**2, library="pillow")
        return Answer(name, judge, prepare, question=QUESTION, answer=ANSWER, weights_sha256=digest)
    model = name.partition("/")[2]
    (repository, revision), (words, words_revision) = REPOSITORIES[model], WORDS[model]
    config = files.fetch(repository, "config.json", revision, local=files.path)
    folder = files.path if files.path and (Path(files.path) / "tokenizer.json").is_file() else None
    tokenizer = make_tokenizer(files.fetch(words, "tokenizer.json", words_revision, local=folder))
    weights = [FILE]
    if model in SHARDED:
        weights = shards(files.fetch(repository, INDEX, revision, local=files.path))
    paths = [files.fetch(repository, file, revision, local=files.path) for file in weights]
    language = files.build(lambda: make_language(config))
    scorer = VQAScore(name, language, tokenizer, weights_sha256=files.sha256(*paths))
    files.fill(scorer, rename(files.read(*paths)), repository)
    return scorer

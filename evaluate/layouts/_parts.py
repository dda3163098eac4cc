"""Parts that several published models share: text encoders, tokenizers, and Stable Diffusion's autoencoder."""

import json
from collections.abc import Iterable
from functools import cache
from typing import Any

from prompts.shapes.grammar import FAMILIES, captions

#: stable-diffusion-xl-base-1.0, tokenizer: words of `vocab.json`, and `model_max_length`.
CLIP_WORDS, CLIP_LENGTH = 49408, 77
#: FLUX.1-dev, tokenizer_2: pieces, 100 more for missing spans, and `model_max_length`.
T5_PIECES, T5_SPANS, T5_LENGTH = 32000, 100, 512

# ---- networks --------------------------------------------------------------------------------------------------------


def clip_text(hidden: int, layers: int, heads: int, **options: Any) -> dict[str, Any]:
    """A CLIP's text tower as stable-diffusion-xl-base-1.0's two `text_encoder` configs describe it, four times as wide
    between as the text it reads and writes.
    """
    return {
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": hidden,
        "vocab_size": CLIP_WORDS,
        "max_position_embeddings": CLIP_LENGTH,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        **options,
    }


#: OpenAI's ViT-L/14 and OpenCLIP's ViT-bigG/14: stable-diffusion-xl-base-1.0, text_encoder and text_encoder_2.
CLIP_L = clip_text(768, 12, 12, hidden_act="quick_gelu")
CLIP_BIG_G = clip_text(1280, 32, 20, hidden_act="gelu")

#: T5 v1.1 XXL's encoder: stable-diffusion-3.5-large, text_encoder_3.
T5_XXL = {
    "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu",
    "vocab_size": 32128, "tie_word_embeddings": False,
}  # fmt: skip


def autoencoder(channels: int, scaling_factor: float, sample_size: int, **options: Any) -> dict[str, Any]:
    """Stable Diffusion's autoencoder, whose widths all of its descendants have kept: the `vae` configs of
    stable-diffusion-v1-5, stable-diffusion-xl-base-1.0, stable-diffusion-3.5-large and FLUX.1-dev.
    """
    return {
        "latent_channels": channels,
        "scaling_factor": scaling_factor,
        "sample_size": sample_size,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        **options,
    }


# ---- tokenizers ------------------------------------------------------------------------------------------------------


def _text() -> list[str]:
    """Text whose words are one token each, as they are in the published vocabularies: captions, and who speaks."""
    return [caption for family in FAMILIES for caption in captions("train", family)] + ["user assistant"]


def filled(pieces: Iterable[str], size: int) -> list[str]:
    """Distinct pieces, and as many that occur nowhere as are missing to `size`."""
    distinct = list(dict.fromkeys(pieces))
    return distinct + [f"<unused {number}>" for number in range(len(distinct), size)]


def _merges(backend: Any, size: int, ending: str, more: Iterable[str]) -> list[tuple[str, str]]:
    """Byte pairs that make every word of the captions and of `more` one token. backend: an empty tokenizer of the
    right kind.
    """
    from tokenizers import trainers

    options: dict[str, Any] = {"end_of_word_suffix": ending} if ending else {}
    backend.train_from_iterator([*_text(), *more], trainers.BpeTrainer(vocab_size=size, show_progress=False, **options))
    return [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]


def byte_pairs(
    backend: Any, special: list[str], size: int, ending: str = "", more: Iterable[str] = ()
) -> dict[str, Any]:
    """`vocab.json`, of `size` words and the special ones behind them, and `merges.txt`. more: text that is to be about
    as long as it really is, beside captions.
    """
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _merges(backend, 2048, ending, more)
    words = [*letters, *(f"{letter}{ending}" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = filled(words, size) + special
    lines = "".join(f"{' '.join(pair)}\n" for pair in merges)
    return {
        "vocab.json": {word: number for number, word in enumerate(vocabulary)},
        "merges.txt": f"#version: 0.2\n{lines}",
    }


@cache
def clip_words() -> dict[str, Any]:
    """The two files of a CLIP's vocabulary."""
    from transformers import CLIPTokenizer

    special = ["<|startoftext|>", "<|endoftext|>"]
    return byte_pairs(CLIPTokenizer().backend_tokenizer, special, CLIP_WORDS - len(special), "</w>")


def clip_tokenizer(pad_token: str = "<|endoftext|>") -> dict[str, Any]:
    """A CLIP's. pad_token: OpenCLIP's pads with `!`."""
    return clip_words() | {"tokenizer_config.json": {"model_max_length": CLIP_LENGTH, "pad_token": pad_token}}


@cache
def t5_tokenizer(known: str = "") -> dict[str, Any]:
    """T5's. known: text besides captions whose words are one token each."""
    from transformers import T5Tokenizer

    words = sorted({f"▁{word}" for caption in [*_text(), known] for word in caption.split()})
    pieces = filled(["<pad>", "</s>", "<unk>", "▁", *words, *map(chr, range(33, 127))], T5_PIECES)
    spans = [f"<extra_id_{number}>" for number in reversed(range(T5_SPANS))]
    # Whole words before their letters, and what occurs nowhere last.
    scores = [(piece, -1.0 if piece in words else -20.0 if piece.startswith("<unused") else -5.0) for piece in pieces]
    made = T5Tokenizer(vocab=scores + [(span, 0.0) for span in spans], extra_ids=T5_SPANS)
    return {
        "tokenizer.json": json.loads(made.backend_tokenizer.to_str()),
        "tokenizer_config.json": {"model_max_length": T5_LENGTH, "tokenizer_class": "T5Tokenizer"},
    }

"""A small Qwen3-VL and its words, for both sides of the comparison with judges' original code.

Needs numpy and `tokenizers` alone. Questions are our own sentences.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

try:
    from upstream import seeded
except ImportError:  # the originals' environment runs scripts of this folder
    import seeded

#: Qwen3-VL's config, small: what stands in `config.json`, as transformers wrote it before its fifth version.
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "model_type": "qwen3_vl",
    "tie_word_embeddings": False,
    "text_config": {
        "model_type": "qwen3_vl_text", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-6, "rope_theta": 5e6,
        "rope_scaling": {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True},
        "max_position_embeddings": 4096, "bos_token_id": None, "eos_token_id": None,
    },
    "vision_config": {
        "model_type": "qwen3_vl", "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2,
        "out_hidden_size": 32, "num_position_embeddings": 36, "deepstack_visual_indexes": [0, 1],
    },
}  # fmt: skip

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
#: Words that are one token, with a blank before them and without; all else is spelled out.
WORDS = (
    "Yes", "yes", "No", "no", "one", "One", "two", "Two", "three", "Three", "seven", "Seven", "How", "many", "Is",
    "Are", "there", "the", "in", "image", "red", "cat", "user", "assistant", "Answer", "word",
)  # fmt: skip
#: How Qwen cuts text into words.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

#: Atoms as GenEval 2 has them: of every kind of answer, of several lengths, and a count that has no digit.
ATOMS = {
    "few": [["Is there a cat in the image?", "Yes"]],
    "counts": [
        ["How many red cats are in the image?", "three"],
        ["Are the cats red?", "Yes"],
        ["How many moons are there in the image, seen through a window of the old observatory?", "twelve"],
        ["How many houses?", "seven"],
    ],
    "many": [
        ["How many cats are in the image?", "one"],
        ["Are there any cats in the image?", "Yes"],
        ["Is the cat to the left of the “naïve” café?", "Yes"],
        ["Is it so?", "Yes"],
        ["How many dogs are in the image?", "two"],
    ],
}


def tokenizer() -> Any:
    """Byte pairs with WORDS, as the library `tokenizers` has them."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        merges |= dict.fromkeys((word[:end], word[end]) for end in range(1, len(word)))
    merges |= dict.fromkeys(("Ġ", word) for word in WORDS)
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*letters, *("".join(pair) for pair in merges)]))}
    backend = Tokenizer(models.BPE(vocabulary, list(merges)))
    cut = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    return backend


def weights(layout: Mapping[str, Iterable[int]]) -> dict[str, np.ndarray]:
    """Seeded; the answers that count are now likely and now not."""
    arrays, words = seeded.weights("judge", layout), tokenizer()
    answers = ("Yes", " Yes", "one", " one", "Two", "three", "3", "seven", " Seven", "No", " no")
    arrays["lm_head.weight"][[words.encode(answer).ids[0] for answer in answers]] *= 4
    return arrays


def config(words: Any) -> dict[str, Any]:
    """CONFIG with the numbers of the special words."""
    text = {**CONFIG["text_config"], "vocab_size": words.get_vocab_size()}
    named = {
        f"{name}_token_id": words.token_to_id(word)
        for name, word in (
            ("image", "<|image_pad|>"), ("video", "<|video_pad|>"), ("vision_start", "<|vision_start|>"),
            ("vision_end", "<|vision_end|>"),
        )
    }  # fmt: skip
    return {**CONFIG, "text_config": text, **named}

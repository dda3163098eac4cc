"""What both sides of the comparison with t2v-metrics are made of: a small CLIP-FlanT5, its words, prompts.

Needs numpy, sentencepiece and torch alone, so that it runs in the original's environment as it does in ours.
"""

import base64
import io
from typing import Any

import numpy as np
import sentencepiece
import torch
from sentencepiece import sentencepiece_model_pb2
from upstream import seeded

VISION = {
    "image_size": 336, "patch_size": 28, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 2, "hidden_act": "quick_gelu",
}  # fmt: skip
WORDS = [
    "A", "chat", "between", "a", "curious", "user", "and", "an", "artificial", "intelligence", "assistant", "The",
    "gives", "helpful", "detailed", "polite", "answers", "to", "the", "users", "questions", "Does", "this", "figure",
    "show", "Please", "answer", "yes", "or", "no", "Yes", "photo", "red", "bicycle", "in", "snow", "cat", "moon", "on",
    "of",
]  # fmt: skip
LETTERS = [*map(chr, range(33, 127)), *"“”…éàöß猫½"]
#: By falling probability, no two alike, so that a text has one best split: special, words, their beginnings, letters.
PIECES = list(
    dict.fromkeys(
        ["<pad>", "</s>", "<unk>", *(f"▁{word}" for word in WORDS), *(word[-3:] for word in WORDS),
         *(f"▁{word[:2]}" for word in WORDS), "▁", *LETTERS]
    )
)  # fmt: skip
#: Numbers that stand for spans, which follow the pieces and do not occur.
SPANS = 100

LANGUAGE = {
    "model_type": "clip_t5", "architectures": ["CLIPT5ForConditionalGeneration"], "torch_dtype": "bfloat16",
    "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
    "feed_forward_proj": "gated-gelu", "vocab_size": len(PIECES) + SPANS, "tie_word_embeddings": False,
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
    "mm_hidden_size": 32, "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
}  # fmt: skip
PROMPTS = (
    "a photo of a red bicycle in the snow",
    "a cat that says \"yes\" or 'no', {} and {0} and {name}",
    "猫 on the MOON   with\tblanks\nand “l'été” … naïve ½ ﬁne 🐈",
    "",
    " a photo of the moon, " * 40,
)
#: More than is read, so that the end of the question is cut off.
TOO_LONG = "the red cat on the moon " * 420
#: By model, what its weights are drawn from. The larger lies in two files.
SEEDS = {"clip-flant5-xl": "vqascore-xl", "clip-flant5-xxl": "vqascore-xxl"}


def scores() -> list[float]:
    """Of each piece, its log probability."""
    return [0.0 if i < 3 else -2 - 0.05 * i for i in range(len(PIECES))]


def spiece() -> bytes:
    """A `spiece.model` of PIECES that treats characters as T5's does."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a chat between users"] * 9), model_writer=written, vocab_size=16,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    model = sentencepiece_model_pb2.ModelProto.FromString(written.getvalue())
    kinds = [model.SentencePiece.CONTROL, model.SentencePiece.CONTROL, model.SentencePiece.UNKNOWN]
    del model.pieces[:]
    for i, (piece, score) in enumerate(zip(PIECES, scores(), strict=True)):
        model.pieces.add(piece=piece, score=score, type=kinds[i] if i < 3 else model.SentencePiece.NORMAL)
    model.trainer_spec.vocab_size = len(PIECES)
    return model.SerializeToString()


def tokenizer_json() -> dict[str, Any]:
    """The same as a `tokenizer.json`, in the shape of T5's."""
    special = [
        {"id": i, "content": PIECES[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for i in range(3)
    ]  # fmt: skip
    characters = sentencepiece_model_pb2.ModelProto.FromString(spiece()).normalizer_spec.precompiled_charsmap
    blank = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(characters).decode()},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, blank]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, end],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, end, {"Sequence": {"id": "B", "type_id": 0}}, end],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "decoder": blank,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": list(zip(PIECES, scores(), strict=True)),
                  "byte_fallback": False},
    }  # fmt: skip


def weights(model: str, layout: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """The model's tensors, in bfloat16 as they are published; what T5 shares is one tensor."""
    arrays = seeded.weights(SEEDS[model], layout)
    for name in (name for name in arrays if name.endswith("Attention.q.weight")):
        arrays[name] *= LANGUAGE["d_kv"] ** -0.5  # T5 does not divide what attention weighs: its queries are small
    tensors = {name: torch.from_numpy(array).bfloat16() for name, array in arrays.items()}
    return {name: tensors["shared.weight"] if "embed_tokens" in name else each for name, each in tensors.items()}


def files(model: str, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The files of weights, and of the larger the index: name -> tensors, or JSON."""
    if model == "clip-flant5-xl":
        return {"pytorch_model.bin": tensors}
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    where = {key: names[key.startswith(("decoder", "vision"))] for key in tensors}
    parts = {name: {key: tensors[key] for key in tensors if where[key] == name} for name in names}
    return {"pytorch_model.bin.index.json": {"metadata": {}, "weight_map": where}, **parts}


def images() -> dict[str, np.ndarray]:
    """Wide, tall, square, grey, large and small ones, with odd surpluses."""
    return seeded.pictures("vqascore/")

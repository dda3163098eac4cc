"""What scorers read besides their weights. Those of open_clip bring their configs and words along.

Figures: of the CLIPs, github.com/mlfoundations/open_clip, src/open_clip/model_configs, ViT-H-14.json and ViT-L-14.json;
of SigLIP, src/transformers/models/siglip/convert_siglip_to_hf.py of github.com/huggingface/transformers; of
CLIP-FlanT5's T5, the sizes of google/flan-t5-xl and -xxl, with the vocabulary cut to the tokenizer's 32,100 words as
github.com/linzhiqiu/CLIP-FlanT5, llava/train/t5_train.py, cuts it; of BERT's words, the vocabulary that
`evaluate.scorers.imagereward` takes from ImageReward, less BLIP's two tokens.
"""

from functools import partial
from typing import Any

from evaluate.layouts import Layout, _parts


def clip(embedding: int, text: dict[str, Any], width: int, layers: int, hidden_act: str) -> dict[str, Any]:
    """The config of transformers' CLIPModel for images of 224 pixels in patches of 14, four times as wide between as
    the image it reads; heads of an image: 16.
    """
    vision = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "hidden_act": hidden_act,
        "projection_dim": embedding,
    }
    return {"model_type": "clip", "projection_dim": embedding, "text_config": text, "vision_config": vision}


def vit_h_14() -> dict[str, Any]:
    """OpenCLIP's ViT-H/14."""
    return clip(1024, _parts.clip_text(1024, 24, 16, hidden_act="gelu"), 1280, 32, "gelu")


def vit_l_14() -> dict[str, Any]:
    """OpenAI's ViT-L/14."""
    return clip(768, _parts.CLIP_L, 1024, 24, "quick_gelu")


def bert_words() -> str:
    """A `vocab.txt` of 30,522 words, in which text is spelled out."""
    letters = [chr(code) for code in range(33, 127)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    return "".join(f"{word}\n" for word in _parts.filled(words, 30522))


def pickscore() -> Layout:
    """Fine-tuned from OpenCLIP's ViT-H/14."""
    return {"config.json": vit_h_14()}


def openai() -> Layout:
    """CLIPScore's and the Aesthetic predictor's."""
    return {"config.json": vit_l_14(), **_parts.clip_words()}


def clip_flan_t5(**sizes: int) -> Layout:
    """VQAScore's language; the files of its weights are none."""
    language = {**_parts.T5_XXL, "vocab_size": _parts.T5_PIECES + _parts.T5_SPANS, **sizes}
    return {"config.json": language, "pytorch_model.bin.index.json": {"weight_map": {}}}


def flan_t5() -> Layout:
    """VQAScore's words, those of its question among them."""
    from evaluate.scorers.vqascore import AFTER, ANSWER, BEFORE

    return _parts.t5_tokenizer(f"{BEFORE} {AFTER} {ANSWER}")


def laion() -> Layout:
    """OpenCLIP's ViT-H/14 itself: PickScore's words, MPS's CLIP."""
    return {"config.json": vit_h_14(), **_parts.clip_words()}


def siglip() -> Layout:
    """Aesthetic v2.5's, of which the text tower is not read."""
    vision = {
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
        "image_size": 384, "patch_size": 14,
    }  # fmt: skip
    return {"config.json": {"model_type": "siglip", "vision_config": vision}}


def bert() -> Layout:
    """ImageReward's words."""
    return {"vocab.txt": bert_words()}


LAYOUTS = {
    "yuvalkirstain/PickScore_v1": pickscore,
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": laion,
    "google/siglip-so400m-patch14-384": siglip,
    "openai/clip-vit-large-patch14": openai,
    "bert-base-uncased": bert,
    "zhiqiulin/clip-flant5-xxl": clip_flan_t5,
    "zhiqiulin/clip-flant5-xl": partial(clip_flan_t5, d_model=2048, d_ff=5120, num_heads=32),
    "google/flan-t5-xxl": flan_t5,
    "google/flan-t5-xl": flan_t5,
}

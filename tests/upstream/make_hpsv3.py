"""Writes `hpsv3.json`, with `tox run -e upstream-hpsv3`: what the package's own class and its own preparation of images
and texts make of seeded weights, images and prompts.

As published, but for what cannot be here: a small configuration, and a tokenizer of bytes with Qwen2's rules for
splitting text. The chat template is Qwen2-VL's for one message with an image and a text.
"""

import hashlib
import json
import platform
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import seeded  # noqa: E402

PACKAGES = ("hpsv3", "transformers", "tokenizers", "torch", "pillow", "numpy")
#: Qwen2-VL's special words, in their order.
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: Words that are one token each, behind a blank, so that texts are about as long as they really are.
WORDS = (  # noqa: SIM905
    "the image should and prompt overall description evaluate elements content subject with dimensions attributes "
    "generated alignment of following relevance in clothing artistic quality provide contain or textual whether "
    "contradictions environmental inappropriate visual such satisfaction significant nonsensical composition "
    "surrounding environment accessories expressions represented evaluating score preference being be considered "
    "biological structures visibility indistinct atmosphere accurately appearance particular style background "
    "faithfully deviations acceptable are not sharpness interpret materials aesthetic including political how "
    "specifies stylistic logically described mentioned preserved introduce to estimate abnormal blurring textures "
    "lighting creative material possible well behavior this scenario specific critical captured a red cat photo "
    "bicycle snow moon paint long very that goes on"
).split()
TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message.role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: Beside the ones of `seeded`: braces of every kind, and lines.
PROMPTS = (
    "{text_prompt} { } {{0}} {a!r} 100%",
    "two lines\n\n  and a tab\t, “quotes” — 日本語 🦊 Ünïcödé",
)


def letters() -> list[str]:
    """The 256 characters that stand for bytes, as GPT-2 has them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte if byte in plain else 256 + sum(b not in plain for b in range(byte))) for byte in range(256)]


def merges() -> list[tuple[str, str]]:
    """Pairs that build each of WORDS from its left, and blank lines."""
    pairs = [(f"Ġ{word}"[:cut], f"Ġ{word}"[cut]) for word in WORDS for cut in range(1, len(word) + 1)]
    return list(dict.fromkeys([*pairs, ("Ċ", "Ċ"), ("Ġ", "Ġ")]))


def tokenizer() -> dict[str, Any]:
    """`tokenizer.json`: bytes and a few pairs of them, then the special words."""
    words = [*letters(), *("".join(pair) for pair in merges())]
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
        "fuse_unk": False, "byte_fallback": False, "vocab": {word: i for i, word in enumerate(words)},
        "merges": [" ".join(pair) for pair in merges()],
    }  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": len(words) + i, "content": word, **added} for i, word in enumerate(SPECIAL)],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "post_processor": level, "decoder": level, "model": model,
    }  # fmt: skip


def word_id(word: str) -> int:
    """The number of a special word."""
    return 256 + len(merges()) + SPECIAL.index(word)


#: `config.json` of Qwen/Qwen2-VL-7B-Instruct, as it was published.
PUBLISHED: dict[str, Any] = {
    "bos_token_id": 151643, "eos_token_id": 151645, "vision_start_token_id": 151652, "vision_end_token_id": 151653,
    "vision_token_id": 151654, "image_token_id": 151655, "video_token_id": 151656, "attention_dropout": 0.0,
    "hidden_act": "silu", "hidden_size": 3584, "initializer_range": 0.02, "intermediate_size": 18944,
    "max_position_embeddings": 32768, "max_window_layers": 28, "model_type": "qwen2_vl", "num_attention_heads": 28,
    "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 32768, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
    "use_sliding_window": False, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 152064,
    "vision_config": {
        "depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "in_chans": 3, "hidden_size": 3584,
        "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2,
    },
}  # fmt: skip


def small_config() -> dict[str, Any]:
    """The same, small, in float32, with this tokenizer's numbers."""
    return PUBLISHED | {
        "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1,
        "num_hidden_layers": 2, "max_window_layers": 2, "torch_dtype": "float32",
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "bos_token_id": word_id("<|endoftext|>"), "eos_token_id": word_id("<|im_end|>"),
        "image_token_id": word_id("<|image_pad|>"), "video_token_id": word_id("<|video_pad|>"),
        "vision_start_token_id": word_id("<|vision_start|>"), "vision_end_token_id": word_id("<|vision_end|>"),
        "vision_token_id": word_id("<|vision_pad|>"), "vocab_size": 256 + len(merges()) + len(SPECIAL) + 24,
        "vision_config": PUBLISHED["vision_config"]
        | {"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2},
    }  # fmt: skip


def prompts(prefix: str) -> list[str]:
    """A short, an empty or a middling, and a long one of `seeded`, and PROMPTS."""
    return [*seeded.prompts(prefix)[::2], *PROMPTS]


def weights(prefix: str, layout: dict[str, Any]) -> dict[str, np.ndarray]:
    """Seeded, and words louder, so that a prompt counts beside an instruction and an image that are far longer."""
    arrays = seeded.weights(f"{prefix}hpsv3", layout)
    return {name: array * (4 if "embed_tokens" in name else 1) for name, array in arrays.items()}


def make_processor(folder: Path) -> Any:
    """The processor that the package's `create_model_and_processor` makes of the published files, of this tokenizer."""
    from transformers import Qwen2TokenizerFast, Qwen2VLImageProcessor, Qwen2VLProcessor

    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()), encoding="utf-8")
    words = Qwen2TokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), padding_side="right", pad_token="<|endoftext|>"
    )
    words.add_special_tokens({"additional_special_tokens": ["<|Reward|>"]})
    # The published preprocessor_config.json has these two and the class's own numbers.
    images = Qwen2VLImageProcessor(min_pixels=3136, max_pixels=12845056)
    return Qwen2VLProcessor(images, words, chat_template=TEMPLATE)


def make_model(config: dict[str, Any], reward: int, words: int) -> Any:
    """The package's class as its `create_model_and_processor` builds it."""
    from hpsv3.model.qwen2vl_trainer import Qwen2VLRewardModelBT
    from transformers import Qwen2VLConfig

    made = Qwen2VLConfig(**config)
    model = Qwen2VLRewardModelBT(
        made, output_dim=2, reward_token="special", special_token_ids=[reward], rm_head_type="ranknet"
    )
    if words:
        model.resize_token_embeddings(words)
    return model


def mrope(judge: Any, files: list[str], prompt: str) -> list[list[float]]:
    """What the original says with the positions that transformers' class gives an image's tokens."""
    batch = judge.prepare_batch(files, [prompt] * len(files))
    places, _ = judge.model.get_rope_index(batch["input_ids"], batch["image_grid_thw"], None, batch["attention_mask"])
    rewards: list[list[float]] = judge.model(return_dict=True, position_ids=places, **batch)["logits"].tolist()
    return rewards


def make_judge(folder: Path) -> Any:
    """The package's inferencer around a small network."""
    from hpsv3 import HPSv3RewardInferencer

    judge = object.__new__(HPSv3RewardInferencer)
    judge.processor, judge.device, judge.use_special_tokens = make_processor(folder), "cpu", True
    words = judge.processor.tokenizer
    judge.model = make_model(small_config(), words.convert_tokens_to_ids("<|Reward|>"), len(words)).eval()
    judge.model.config.pad_token_id = words.pad_token_id
    return judge


def run(judge: Any, prefix: str, folder: Path) -> dict[str, Any]:
    """Both outputs of the head by variant, prompt (M-RoPE: every third) and image, of weights that the prefix names."""
    import torch
    from PIL import Image

    arrays = weights(prefix, {name: list(tensor.shape) for name, tensor in judge.model.state_dict().items()})
    judge.model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, strict=True)
    files = []
    for name, array in seeded.pictures(prefix).items():
        files.append(str(folder / f"{name}.png"))
        Image.fromarray(array).save(files[-1])
    said = prompts(prefix)
    rows = [judge.reward(image_paths=files, prompts=[prompt] * len(files)).tolist() for prompt in said]
    alone = [judge.reward(image_paths=[file], prompts=[said[-1]]).tolist()[0] for file in files]
    batch = judge.prepare_batch(files, [said[-1]] * len(files))
    return {
        "scores": {"hpsv3": rows, "hpsv3/mrope": [mrope(judge, files, prompt) for prompt in said[::3]]},
        "batches_differ_by": float(np.abs(np.array(alone) - np.array(rows[-1])).max()),
        "weights_sha256": seeded.sha256(arrays),
        "tokens": [row[keep.bool()].tolist() for row, keep in zip(batch["input_ids"], batch["attention_mask"])],  # noqa: B905
        "grids": batch["image_grid_thw"].tolist(),
    }


def main(prefixes: list[str]) -> None:
    """Write hpsv3.json beside this file."""
    import torch
    from hpsv3.dataset.data_collator_qwen import INSTRUCTION, prompt_with_special_token

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with torch.device("meta"):
        whole = make_model(PUBLISHED, 151657, 0)
    text = INSTRUCTION.format(text_prompt="{text_prompt}") + prompt_with_special_token
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        judge = make_judge(Path(name))
        results = {prefix: run(judge, prefix, Path(name)) for prefix in prefixes}
    content = {
        "made_by": "tests/upstream/make_hpsv3.py",
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        "make_sha256": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
        "layout": {key: list(tensor.shape) for key, tensor in judge.model.state_dict().items()},
        "published": seeded.census({key: list(tensor.shape) for key, tensor in whole.state_dict().items()}),
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "prefixes": results,
    }
    (HERE / "hpsv3.json").write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    for prefix, result in results.items():
        for variant, rows in result["scores"].items():
            table = np.array(rows)[..., 0]
            print(prefix, variant, table.std(0).mean(), table.std(1).mean(), table.min(), table.max())
        print(result["batches_differ_by"])


if __name__ == "__main__":
    main(sys.argv[1:] or list(seeded.PREFIXES))

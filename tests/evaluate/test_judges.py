"""Judges: one token after an image and many questions, as one question at a time; and the scorers that ask them."""

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compared import compares
from hub import Hub
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_scorers import GENEVAL2, UPSTREAM
from torch import Tensor
from upstream import judge as small
from upstream import seeded

from evaluate import layouts, scorers
from evaluate.results.records import Records
from evaluate.runs import run
from evaluate.runs.settings import Settings
from evaluate.scorers import _judge, unifiedreward
from evaluate.scorers._judge import Answer, Judge, Patched, Patches
from prompts import suites
from prompts.io.errors import UserError

TEXTS = ["How many red cats are in the image?", "Is it?", "Is there a moon behind the “naïve” café, or none at all?"]


@pytest.fixture
def judge(real_scorers: Hub) -> Judge:
    return load().judge


def load(name: str = "geneval2", **options: Any) -> Any:
    return scorers.load(name, **options)


@cache
def image(name: str) -> Tensor:
    array = seeded.pictures()[name]
    return torch.from_numpy(np.stack([array] * 3) if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def stock_images(pixels: Tensor) -> Any:
    """What transformers' own class makes of an image with Qwen3-VL's published `preprocessor_config.json`."""
    from transformers import Qwen2VLImageProcessor

    processor = Qwen2VLImageProcessor(
        size={"shortest_edge": 65536, "longest_edge": 16777216}, patch_size=16, temporal_patch_size=2, merge_size=2,
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    return processor(images=[pixels], return_tensors="pt")


def stock_inputs(judge: Judge, pixels: Tensor, text: str) -> dict[str, Tensor]:
    """A whole chat about an image, for transformers' own `forward` and `generate`."""
    images = stock_images(pixels)
    tokens = int(images["image_grid_thw"].prod()) // 4
    chat = f"<|im_start|>user\n<|vision_start|>{'<|image_pad|>' * tokens}<|vision_end|>{text}<|im_end|>\n"
    ids = torch.tensor([judge.tokenizer.encode(f"{chat}<|im_start|>assistant\n").ids])
    kinds = (ids == judge.tokenizer.token_to_id("<|image_pad|>")).int()
    return {"input_ids": ids, "mm_token_type_ids": kinds, "attention_mask": torch.ones_like(ids), **images}


# ---- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["square", "wide", "odd", "small", "grey"])
def test_patches_are_transformers_own(name: str) -> None:
    (ours,), stock = Patched()([image(name)]), stock_images(image(name))
    assert [1, ours.height, ours.width] == stock["image_grid_thw"][0].tolist()
    torch.testing.assert_close(ours.pixels, stock["pixel_values"], atol=1e-6, rtol=0)


def test_floats_are_patched_as_bytes_but_for_rounding() -> None:
    bytes_, floats = (Patched()([each])[0].pixels for each in (image("odd"), image("odd").float() / 255))
    # Half a level for each of two passes, of which the second spreads the first's; a level is 2 / 255 wide.
    assert 0 < (bytes_ - floats).abs().max() <= 1.25 * 2 / 255
    same, exact = (Patched()([each])[0].pixels for each in (image("large"), image("large").float() / 255))
    assert torch.equal(same, exact), "1,024 x 768 is not resized"


def test_pillow_resamples_where_a_protocol_says_so() -> None:
    ours = Patched(smallest=4 * 32 * 32, library="pillow")
    pixels = ours._resized(image("odd"))
    whole = Image.fromarray(image("odd").permute(1, 2, 0).numpy())
    assert torch.equal(pixels, torch.from_numpy(np.array(whole.resize((448, 288)))).permute(2, 0, 1))


def test_a_jpeg_is_pillows(tmp_path: Path) -> None:
    Image.fromarray(image("large").permute(1, 2, 0).numpy()).save(tmp_path / "a.jpg", quality=95)
    read = torch.from_numpy(np.array(Image.open(tmp_path / "a.jpg"))).permute(2, 0, 1)
    assert torch.equal(Patched(jpeg=95)([image("large")])[0].pixels, Patched()([read])[0].pixels)
    assert not torch.equal(read, image("large"))


@pytest.mark.parametrize("size", [(1, 1), (31, 400), (400, 31)])
def test_an_image_of_less_than_a_token_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{size[1]} x {size[0]} is smaller than the 32 pixels"):
        Patched()([torch.zeros(3, *size, dtype=torch.uint8)])


# ---- the judge -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["square", "wide", "odd", "small"])
def test_questions_together_are_questions_one_at_a_time(judge: Judge, name: str) -> None:
    """transformers' whole forward, without a cache, for each question by itself."""
    (patches,) = Patched()([image(name)])
    with torch.no_grad():
        together = judge.probabilities(patches, TEXTS)
        for row, text in zip(together, TEXTS, strict=True):
            logits = judge.network(**stock_inputs(judge, image(name), text), use_cache=False).logits[0, -1]
            torch.testing.assert_close(row, logits.softmax(-1), atol=1e-5, rtol=0)
            assert row.argmax() == logits.argmax()
    assert (together[0] - together[1]).abs().max() > 1e-4, "questions differ"


@pytest.mark.parametrize("texts", [TEXTS[:1], ["Is it?", "Is it?"], ["Is it red?", "Is it a red cat?", "Is"]])
def test_what_questions_share_is_read_once(judge: Judge, texts: list[str]) -> None:
    (patches,) = Patched()([image("square")])
    with torch.no_grad(), tokens_read(judge) as count:
        together = judge.probabilities(patches, texts)
        ids = [stock_inputs(judge, image("square"), text)["input_ids"][0].tolist() for text in texts]
        alike = len(list(takewhile(lambda column: len(set(column)) == 1, zip(*ids, strict=False))))
        shared = min(alike, min(map(len, ids)) - 1)
        assert count() == shared + len(ids) * (max(map(len, ids)) - shared)
        alone = torch.cat([judge.probabilities(patches, [text]) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


class tokens_read:
    """Counts the tokens that a judge's language model reads, padding included."""

    def __init__(self, judge: Judge) -> None:
        self.model, self.count = judge.network.model.language_model, 0

    def __enter__(self) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            self.count += kwargs["inputs_embeds"].shape[:2].numel()

        self.handle = self.model.register_forward_pre_hook(hook, with_kwargs=True)
        return lambda: self.count

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


def test_a_fifth_of_the_tokens_is_read(judge: Judge) -> None:
    """At 1,024 x 1,024 and GenEval 2's 7.5 questions an image. On its own it is 1/6.7, counted with Qwen's words."""
    (patches,) = Patched()([torch.zeros(3, 1024, 1024, dtype=torch.uint8)])
    assert patches.tokens == 1024
    texts = [f"How many of the things with number {i} are in the image? Answer in one word." for i in range(7)]
    with torch.no_grad():
        with tokens_read(judge) as together:
            judge.probabilities(patches, texts)
            judge.probabilities(patches, texts[:6])
        alone = sum(stock_inputs(judge, torch.zeros(3, 1024, 1024), text)["input_ids"].numel() for text in texts)
    assert together() / 2 <= alone / 5


def test_what_is_written_is_transformers_own(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy, several at once, of which some end before the others."""
    (patches,) = Patched()([image("small")])
    texts = [*TEXTS, "Are there?"]

    def stock(text: str, ends: list[int], longest: int = 12) -> list[int]:
        inputs = stock_inputs(judge, image("small"), text)
        options = {"max_new_tokens": longest, "do_sample": False, "eos_token_id": ends or None, "pad_token_id": 0}
        written = judge.network.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :].tolist()
        return [token for token in written if token not in ends]

    plain = [stock(text, []) for text in texts]
    assert judge.write(patches, texts, longest=12) == [judge.tokenizer.decode(tokens) for tokens in plain]
    assert judge.write(patches, texts[:1], longest=2) == [judge.tokenizer.decode(stock(texts[0], [], 2))]
    # What the first answer holds third ends it now, and others elsewhere or not at all.
    token = plain[0][2]
    monkeypatch.setattr(_judge, "ENDS", ("<|im_end|>", judge.tokenizer.id_to_token(token)))
    ended = [stock(text, [token]) for text in texts]
    assert judge.write(patches, texts, longest=12) == [judge.tokenizer.decode(tokens) for tokens in ended]
    assert len({len(tokens) for tokens in ended}) > 1, "some end before the others"


def test_a_text_that_holds_an_image_is_refused(judge: Judge) -> None:
    with pytest.raises(ValueError, match="stands for an image"):
        judge.probabilities(Patched()([image("square")])[0], ["Is <|image_pad|> red?"])


def test_frequencies_stay_exact_in_half_precision(judge: Judge) -> None:
    before = {name: buffer.clone() for name, buffer in judge.named_buffers()}
    half = judge.to(torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert before
    assert all(torch.equal(buffer, before[name]) for name, buffer in half.named_buffers())


# ---- an answer's probability -----------------------------------------------------------------------------------------


@pytest.fixture
def answer(judge: Judge) -> Answer:
    prepare, question = Patched(smallest=4 * 32 * 32), 'Is this "{}"? Yes or no.'
    return Answer("answer", judge, prepare, question=question, answer="Yes", weights_sha256="").requires_grad_(False)


def test_vqascore_asks_qwen_as_t2v_metrics_does(real_scorers: Hub) -> None:
    scorer: Any = scorers.load("vqascore/qwen3-vl-8b")
    assert isinstance(scorer, Answer)
    assert scorer.question == 'Does this figure show "{}"? Please answer Yes or No.'
    assert [scorer.token] == scorer.judge.first_tokens(["Yes"])
    assert scorer.prepare == Patched(smallest=4 * 32 * 32, library="pillow")
    score = scorer.score([image("square")], ["a moon"])
    assert score.shape == (1,) and 0 <= score.item() <= 1


def test_an_answer_is_the_probability_of_its_first_token(answer: Answer) -> None:
    prompts = ["a {red} cat", "a moon"]
    scores = answer.score([image("small"), image("square")], prompts)
    for score, name, prompt in zip(scores, ("small", "square"), prompts, strict=True):
        inputs = stock_inputs(answer.judge, image(name), f'Is this "{prompt}"? Yes or no.')
        (patches,) = answer.prepare([image(name)])
        inputs |= {"pixel_values": patches.pixels, "image_grid_thw": torch.tensor([[1, patches.height, patches.width]])}
        ids = inputs["input_ids"][0].tolist()
        pad = answer.judge.tokenizer.token_to_id("<|image_pad|>")
        start = ids.index(pad)
        ids = ids[:start] + [pad] * patches.tokens + ids[start + ids.count(pad) :]
        inputs |= {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids))}
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == pad).int()
        logits = answer.judge.network(**inputs).logits[0, -1]
        (token,) = answer.judge.first_tokens(["Yes"])
        torch.testing.assert_close(score, logits.softmax(-1)[token], atol=1e-6, rtol=1e-4)


def test_its_gradient_is_that_of_the_score(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, which transformers' norms and the image tower's rotations leave, but not here."""
    from transformers.models.qwen3_vl import modeling_qwen3_vl as stock

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> list[Tensor]:
        cos, sin = cos[:, None].double(), sin[:, None].double()
        return [x * cos + stock.rotate_half(x) * sin for x in (q, k)]

    def norm(self: Any, x: Tensor) -> Tensor:
        return self.weight * x * (x.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()

    monkeypatch.setattr(stock.Qwen3VLTextRMSNorm, "forward", norm)
    monkeypatch.setattr(stock, "apply_rotary_pos_emb_vision", rotate)
    answer = answer.double()
    levels = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images = (0.3 + 0.4 * levels).requires_grad_()
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def exact(x: Tensor) -> Tensor:
        probabilities = answer.judge.probabilities(answer.prepare(x)[0], ['Is this "a cat"? Yes or no.'])
        return probabilities[0, answer.token].log()

    (gradient,) = torch.autograd.grad(exact(images), images)
    step = 1e-5
    with torch.no_grad():
        difference = (exact(images + step * direction) - exact(images - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-5, atol=1e-8)


def test_bytes_and_floats_agree_where_nothing_is_resized(answer: Answer) -> None:
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    assert scorers.path_gap(answer, images, ["a cat", "a moon"]) < 1e-6


# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(real_scorers: Hub, tmp_path: Path) -> Path:
    return Path(shutil.copytree(real_scorers.folder(_judge.REPOSITORY, _judge.REVISION), tmp_path / "judge"))


def change(folder: Path, alter: Any) -> None:
    for file in folder.glob("*.safetensors"):
        save_file(alter(load_file(file)), file)


def test_weights_in_another_precision_are_refused_in_a_sentence(folder: Path) -> None:
    change(folder, lambda tensors: {name: tensor.half() for name, tensor in tensors.items()})
    with pytest.raises(
        UserError, match=r"judge: .* is in float16, but this judge is defined in float32; give"
    ) as caught:
        load(weights=str(folder))
    assert "\n" not in str(caught.value)


def test_published_precision_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_judge, "DTYPE", torch.bfloat16)
    change(folder, lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})
    scorer = load(weights=str(folder))
    assert {parameter.dtype for parameter in scorer.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in scorer.buffers()} == {torch.float32}
    scores = scorer.score([image("small")], ["a cat"], [{"vqa_list": small.ATOMS["many"]}])
    assert scores.dtype == torch.float32 and scores.isfinite().all()


def test_a_key_too_few_or_a_file_too_few_is_refused(folder: Path) -> None:
    gone = "model.visual.merger.norm.weight"
    change(folder, lambda tensors: {name: tensor for name, tensor in tensors.items() if name != gone})
    with pytest.raises(UserError, match=f"'{gone}' is missing"):
        load(weights=str(folder))
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors: no such file"):
        load(weights=str(folder))


def test_words_that_are_read_may_be_those_that_are_written(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    change(folder, lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"})
    network = load(weights=str(folder)).judge.network
    assert network.lm_head.weight is network.model.language_model.embed_tokens.weight


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # Numbers in the files of Qwen3-VL-8B-Instruct, and of those that 4B and 2B were fine-tuned from.
        ("geneval2", 8_767_123_696),
        ("unifiedreward/2.0-qwen3vl-4b", 4_437_815_808),
        ("unifiedreward/2.0-qwen3vl-2b", 2_127_532_032),
    ],
)
def test_at_full_size_a_judge_is_the_published_one(name: str, count: int, published: Hub) -> None:
    asked = len(published.requests)
    with layouts.first(), torch.device("meta"):
        scorer = load(name, device="meta", random_weights=True)
    assert len(published.requests) == asked
    assert sum(parameter.numel() for parameter in scorer.parameters()) == count
    assert {parameter.dtype for parameter in scorer.parameters()} == {torch.bfloat16}
    numbers = [scorer.judge.tokenizer.token_to_id(word) for word in ("<|image_pad|>", "<|im_end|>", "<|vision_start|>")]
    assert numbers == [151655, 151645, 151652]


def test_random_weights_need_no_files(real_scorers: Hub) -> None:
    real_scorers.requests.clear()
    scorer = load(random_weights=True)
    assert not any("safetensors" in path and "index" not in path for path in real_scorers.requests)
    assert scorer.score([image("small")], ["a cat"], [{"vqa_list": small.ATOMS["many"]}]).isfinite().all()


# ---- GenEval 2 -------------------------------------------------------------------------------------------------------


@compares("geneval2")
def test_both_sides_have_the_same_weights(name: str) -> None:
    assert scorers.verified()[name].removeprefix("GenEval2 ") in (UPSTREAM / "make_geneval2.py").read_text()
    assert GENEVAL2["weights_sha256"] == seeded.sha256(small.weights(GENEVAL2["layout"]))


@pytest.mark.parametrize("name", list(GENEVAL2["credits"]))
def test_credits_are_the_originals(name: str, real_scorers: Hub) -> None:
    """GenEval 2's own functions around the same network, in their own transformers."""
    scorer, keys = load(), list(small.ATOMS)
    meta = [{"vqa_list": small.ATOMS[key]} for key in keys]
    with torch.inference_mode():
        said = scorer.assess(scorer.prepare([image(name)] * len(keys)), keys, meta)
    for i, key in enumerate(keys):
        atoms = said.details[i]["atoms"]
        assert [atom["credit"] for atom in atoms] == pytest.approx(GENEVAL2["credits"][name][key], abs=1e-5)
        assert [atom["answer"] for atom in atoms] == GENEVAL2["predicted"][name][key]
        ours = [said.columns[column][i].item() for column in ("geneval2/am", "geneval2/gm")]
        assert ours == pytest.approx([100 * mean for mean in GENEVAL2["means"][name][key]], abs=1e-3, rel=1e-4)


def test_a_blank_is_credited_to_every_count(judge: Judge) -> None:
    from evaluate.scorers.geneval2 import spellings

    counts = [judge.first_tokens(spellings("How many cats?", answer)) for answer in ("three", "seven")]
    (blank,) = judge.first_tokens([" "])
    assert all(tokens[5] == blank for tokens in counts)
    assert spellings("How many cats?", "twelve")[4:] == ("other", " other")
    assert spellings("Is it red?", "three") == ("Yes", "yes", " yes", " Yes")


def test_an_image_and_a_prompt_give_one_score_each_in_any_order(real_scorers: Hub) -> None:
    scorer, names = load(), ["small", "square", "wide"]
    images, meta = [image(name) for name in names], [{"vqa_list": atoms} for atoms in small.ATOMS.values()]
    scores = scorer.score(images, names, meta)
    assert scorer.columns == ("geneval2/am", "geneval2/gm")
    assert scores.shape == (3,) and scores.dtype == torch.float32
    assert torch.equal(scorer.score(images[::-1], names, meta[::-1]), scores.flip(0))
    alike = torch.stack([image("square")] * 2)
    assert torch.equal(scorer.score(alike, names[:2], meta[:2]), scorer.score(list(alike), names[:2], meta[:2]))
    with pytest.raises(ValueError, match="one prompt per image"):
        scorer.score(images, names[:2], meta)
    assert len(scorer.weights_sha256) == 64


def test_the_reason_is_the_weakest_atoms(real_scorers: Hub) -> None:
    scorer = load()
    said = scorer.assess(
        scorer.prepare([image("square")]), [""], [{"vqa_list": small.ATOMS["many"], "skills": ["x"] * 5}]
    )
    (details,) = said.details
    weakest = min(details["atoms"], key=lambda atom: atom["credit"])
    assert details["reason"].startswith(f"{weakest['question']} {weakest['expected']}: {weakest['credit']:.2f} (")
    assert details["reason"].count(";") == 2
    assert {atom["skill"] for atom in details["atoms"]} == {"x"}
    json.dumps(said.details)


def test_its_credits_pass_a_gradient(real_scorers: Hub) -> None:
    images = (image("small").float() / 255)[None].requires_grad_()
    scorer = load()
    assert scorer.differentiable
    scorer.score(images, [""], [{"vqa_list": small.ATOMS["many"]}]).sum().backward()
    assert images.grad.norm() > 0


@pytest.mark.parametrize("bad", [[], "Is it?", [["Is it?"]], [["How many?", 3]], {"a": 1}, 7])
def test_atoms_that_are_none_are_refused_in_a_sentence(real_scorers: Hub, bad: Any) -> None:
    with pytest.raises(UserError, match=r"vqa_list must be a list of \[question, answer\] of texts") as caught:
        load().score([image("small")], [""], [{"vqa_list": bad}])
    assert "\n" not in str(caught.value)


def test_a_suite_without_atoms_is_refused_before_anything_is_scored(real_scorers: Hub, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a cat\n")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "images" / "0.png")
    with pytest.raises(
        UserError, match="geneval2 needs to know 'vqa_list' of every prompt, which prompt 1 does not say"
    ):
        run_on(tmp_path / "mine.txt", tmp_path, "geneval2")
    with pytest.raises(UserError, match="which texts alone do not say"):
        load().score([image("small")], ["a cat"])


# ---- records ---------------------------------------------------------------------------------------------------------


def run_on(prompts: Path, folder: Path, metric: str) -> Records:
    """The records of images that lie in `folder/images` under the prompts' numbers."""
    settings = Settings(
        model="theirs", suite=suites.load(str(prompts)), metrics=(metric,), images=folder / "images", output=folder,
    )  # fmt: skip
    path = run.run(settings, show=False)
    assert path
    return Records.load(path)


def test_an_image_of_a_pixel_is_an_error_in_the_record(real_scorers: Hub, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i, edge in enumerate((64, 1, 64)):
        Image.new("RGB", (edge, edge), (200, 10 * i, 30)).save(tmp_path / "images" / f"{i}.png")
    rows = [{"prompt": f"cat {i}", "vqa_list": small.ATOMS["many"]} for i in range(3)]
    (tmp_path / "mine.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    frame = run_on(tmp_path / "mine.jsonl", tmp_path, "geneval2").frame
    for column in ("score.geneval2/am", "score.geneval2/gm"):
        assert frame[column].notna().tolist() == [True, False, True]
    assert "ValueError: an image of 1 x 1 is smaller than the 32 pixels" in frame["error"][1]
    assert frame["error"].isna().tolist() == [True, False, True]


# ---- UnifiedReward ---------------------------------------------------------------------------------------------------

#: What the authors show of an answer.
ANSWER = "Alignment Score (1-5): 2.694700002670288\nCoherence Score (1-5): 2.371500015258789\nStyle Score (1-5): 2.8\n"


def test_the_question_is_the_authors() -> None:
    """sha256 of what point_score_ACS_image_generation.py at ff6f520 makes of a caption."""
    text = unifiedreward.QUESTION.replace("{}", "a red cat {x}")
    digest = "85e6708e8a301b6d24382b5de42d28c6b3c0f5038ebb6042bc4f906be53657e8"
    assert hashlib.sha256(text.encode()).hexdigest() == digest


def test_three_scores_are_read_off_an_answer() -> None:
    read = {"alignment": 2.694700002670288, "coherence": 2.371500015258789, "style": 2.8}
    assert unifiedreward.parse(ANSWER) == read
    assert unifiedreward.parse(f"Here it is.\n\n{ANSWER}\nDone.") == read


@pytest.mark.parametrize(
    ("answer", "aspect"),
    [
        ("", "alignment"),
        ("The image looks fine.", "alignment"),
        (ANSWER.replace("2.3715", "two"), "coherence"),
        (ANSWER.replace("Style", "Stile"), "style"),
        (ANSWER.replace("2.8", "7"), "style"),
        (ANSWER.replace("2.8", "0.5"), "style"),
        (ANSWER.replace("2.8", "nan"), "style"),
        (ANSWER.replace("2.8\n", "2.8 of 5"), "style"),
        (ANSWER[:40], "coherence"),
    ],
)
def test_an_answer_that_cannot_be_read_is_no_number(answer: str, aspect: str) -> None:
    with pytest.raises(ValueError, match=f"gives no {aspect} score of 1 to 5"):
        unifiedreward.parse(answer)


def test_answers_become_three_columns_or_an_error(
    real_scorers: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def write(self: Judge, patches: Patches, texts: list[str], *, longest: int) -> Iterator[str]:
        asked.extend(texts)
        return ["I cannot say." if "cat 1]" in text else ANSWER for text in texts]

    monkeypatch.setattr(Judge, "write", write)
    (tmp_path / "images").mkdir()
    for i in range(3):
        Image.new("RGB", (64, 64), (200, 10 * i, 30)).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "mine.txt").write_text("cat 0\ncat 1\ncat 2\n")
    name = "unifiedreward/2.0-qwen3vl-8b"
    frame = run_on(tmp_path / "mine.txt", tmp_path, name).frame
    assert frame[f"score.{name}/style"].tolist() == pytest.approx([2.8, math.nan, 2.8], nan_ok=True)
    assert frame[f"score.{name}/alignment"].notna().tolist() == [True, False, True]
    assert "gives no alignment score of 1 to 5: 'I cannot say.'" in frame["error"][1]
    assert asked[0].endswith("Text Caption: [cat 0]")


@pytest.mark.parametrize("size", list(unifiedreward.REVISIONS))
def test_a_random_judge_writes_what_cannot_be_read(
    size: str, real_scorers: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unifiedreward, "LONGEST", 8)
    scorer = load(f"unifiedreward/2.0-qwen3vl-{size}")
    assert not scorer.differentiable
    assert scorer.prepare == Patched(jpeg=95)
    assert scorer.columns == tuple(f"{scorer.protocol}/{aspect}" for aspect in ("alignment", "coherence", "style"))
    said = scorer.assess(scorer.prepare([image("small")]), ["a cat"], ())
    assert all(column.isnan().all() for column in said.columns.values())
    assert said.details
    assert said.details[0]
    assert "the judge's answer gives no alignment score" in said.details[0]["reason"]

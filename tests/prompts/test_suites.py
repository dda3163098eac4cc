"""Prompt suites: what is asked is exactly what the file says, or one sentence says why not."""

import csv
import hashlib
import http.server
import json
import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from prompts import suites
from prompts.io.errors import UserError
from prompts.shapes import captions
from prompts.shapes.grammar import FAMILIES
from prompts.suites import _recipe, geneval

#: What a careless reader would alter, drop or run together.
ODD = [
    '"A B" at the start', 'a sign says "OPEN"', " edge blanks ", "=SUM(A1:A2)", "../../etc/passwd", "one, two; three",
    "same", "same",
    "a vertical\x0btab and a line\u2028separator", "naïve café 🎨", "#hash", "{braces}", "NULL",
]  # fmt: skip


def write(path: Path, texts: list[str]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        match path.suffix:
            case ".txt":
                file.writelines(f"{text}\n" for text in texts)
            case ".tsv":
                file.writelines(f"{text}\tgroup {i}\n" for i, text in enumerate(["Prompt", *texts]))
            case ".csv":
                csv.writer(file).writerows([["Prompt"], *([text] for text in texts)])
            case ".json":
                json.dump(texts, file)
            case ".jsonl":
                file.writelines(json.dumps({"prompt": text, "style": "photo"}) + "\n" for text in texts)
    return path


@pytest.mark.parametrize("name", suites.names())
def test_a_suite_says_what_it_is(name: str) -> None:
    card = suites.card(name)
    assert card.n > 0
    assert card.source
    assert card.licence


@pytest.mark.parametrize("path", sorted(suites.HERE.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_suite_of_files_is_pinned(path: Path) -> None:
    recipe = _recipe.read(path)
    assert bool(recipe.hub) != bool(recipe.url)
    assert re.search(r"\b[0-9a-f]{40}\b", recipe.hub.revision if recipe.hub else str(recipe.url))
    assert recipe.files
    assert all(re.fullmatch("[0-9a-f]{64}|[0-9a-f]{40}", file.digest) for file in recipe.files)


def test_the_shapes_suite_is_held_out_and_the_same_every_time() -> None:
    suite = suites.load("shapes")
    assert len(suite.prompts) == suites.card("shapes").n == 1024
    assert len({prompt.id for prompt in suite.prompts}) == len({prompt.text for prompt in suite.prompts}) == 1024
    assert suite.prompts[41].id == "shapes/0042"
    seen = {caption for family in FAMILIES for split in ("train", "validation") for caption in captions(split, family)}
    assert not seen & {prompt.text for prompt in suite.prompts}
    assert {prompt.group["family"] for prompt in suite.prompts} == set(FAMILIES)
    assert suite.sha256 == suites.load("shapes").sha256


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".json", ".jsonl", ".txt"])
def test_texts_are_kept_as_they_are(tmp_path: Path, suffix: str) -> None:
    suite = suites.load(str(write(tmp_path / f"mine{suffix}", ODD)))
    assert [prompt.text for prompt in suite.prompts] == ODD
    assert [prompt.id for prompt in suite.prompts] == [f"mine/{i:04d}" for i in range(1, len(ODD) + 1)]


def test_the_hash_is_of_what_is_asked(tmp_path: Path) -> None:
    hashes = {suites.load(str(write(tmp_path / f"mine{suffix}", ODD))).sha256 for suffix in (".csv", ".json", ".txt")}
    assert len(hashes) == 1, "a format is no part of the question"
    assert suites.load(str(write(tmp_path / "mine.txt", ODD[::-1]))).sha256 not in hashes


def test_other_columns_are_groups(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("\ufeffStyle,PROMPT,Level\r\nphoto,a dog,3\r\n", encoding="utf-8")
    (prompt,) = suites.load(str(path)).prompts
    assert (prompt.text, prompt.group) == ("a dog", {"style": "photo", "level": "3"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", b"Prompt\tStyle\na\tb\nc\n", "line 3: 1 fields, but the first line names 2"),
        ("a.csv", b'prompt,style\n"a\nb",c\nd\n', "line 4: 1 fields"),
        ("a.csv", b'prompt\n"a" b\n', "line 2: .*fix its quoting"),
        ("a.csv", b"words,style\na,b\n", "no column 'prompt' among 'words', 'style'"),
        ("a.tsv", b"Prompt\na\n \n", "line 3: an empty prompt"),
        ("a.json", b'["a",\n"b"', "line 2: not valid JSON"),
        ("a.json", b'{"a": 1}', "a JSON dict, not a list"),
        ("a.json", b'["a", 3]', "entry 2: a int; give a text or an object"),
        ("a.json", b'[{"prompt": "a"}, {"prompt": null}]', "entry 2: 'prompt' is missing"),
        ("a.jsonl", b'"a"\n{"prompt": ["b"]}\n', "line 2: 'prompt' is not a text"),
        ("a.jsonl", b'"a"\n"b\n', "line 2: not valid JSON"),
        ("a.txt", b"", "holds no prompt"),
        ("a.tsv", b"Prompt\n", "holds no prompt"),
        ("a.csv", b"", "holds no prompt"),
        ("a.txt", b"caf\xe9\n", "not UTF-8 text .byte 3."),
        ("a.xlsx", b"PK", "not a kind of prompt file; give .tsv"),
    ],
)
def test_what_cannot_be_read_is_named_in_a_sentence(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        suites.load(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_half_of_a_character_is_refused_where_it_stands(tmp_path: Path) -> None:
    """A text that was cut within an emoji."""
    (tmp_path / "theirs.jsonl").write_text('{"prompt": "a cat"}\n{"prompt": "a smile \\ud83d"}\n')
    with pytest.raises(UserError, match=r"theirs\.jsonl: half of a character behind '.*a smile '"):
        suites.load(str(tmp_path / "theirs.jsonl"))


def test_a_missing_file_and_an_unknown_name() -> None:
    with pytest.raises(UserError, match=r"none\.txt: cannot be read"):
        suites.load("none.txt")
    with pytest.raises(UserError, match="did you mean 'parti'"):
        suites.load("partyprompts")
    with pytest.raises(UserError, match="has no file"):
        suites.load("shapes", path=Path("shapes.txt"))


COCO = {
    "images": [],
    "annotations": [
        {"image_id": 9, "id": 4, "caption": "nine, later"},
        {"image_id": 2, "id": 8, "caption": "two"},
        {"image_id": 9, "id": 3, "caption": "nine, first "},
        {"image_id": 5, "id": 1, "caption": "five"},
    ],
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of suites of our own, and of their files."""
    monkeypatch.setattr(suites, "HERE", tmp_path)
    return tmp_path


def declare(home: Path, name: str, files: dict[str, bytes], *, own: bool = True, **fields: object) -> None:
    """Write the suite's YAML, and its files into `home` unless somebody else has them."""
    listed = [{"name": file, "sha256": hashlib.sha256(content).hexdigest()} for file, content in files.items()]
    (home / f"{name}.yaml").write_text(yaml.safe_dump({"source": "s", "licence": "l", "files": listed} | fields))
    for file, content in files.items() if own else ():
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        (home / file).write_bytes(content)


TABLE = b'Prompt\tCategory\tNote\n"A" first\tArts\t-\n"A" first\tFood\t-\n'


def test_a_named_suite_from_a_local_copy(home: Path) -> None:
    declare(home, "two", {"sub/two.tsv": TABLE}, n=2, text="Prompt", groups={"category": "Category"})
    for path in (home / "sub" / "two.tsv", home / "sub", home):
        suite = suites.load("two", path=path)
        assert [prompt.text for prompt in suite.prompts] == ['"A" first'] * 2
        assert [prompt.group for prompt in suite.prompts] == [{"category": "Arts"}, {"category": "Food"}]


def test_another_file_of_that_name_is_refused(home: Path) -> None:
    declare(home, "two", {"two.tsv": TABLE}, n=2, text="Prompt")
    (home / "two.tsv").write_bytes(TABLE + b"one more\t\t\n")
    with pytest.raises(UserError, match=r"its sha256 is .* but two.tsv of suite 'two' has"):
        suites.load("two", path=home / "two.tsv")
    with pytest.raises(UserError, match=r"no.tsv: cannot be read"):
        suites.load("two", path=home / "no.tsv")


def test_a_file_may_be_pinned_by_gits_own_id(home: Path) -> None:
    declare(home, "two", {"two.tsv": TABLE}, n=2, text="Prompt")
    git = hashlib.sha1(b"blob %d\0" % len(TABLE) + TABLE).hexdigest()  # as `git hash-object` says
    recipe = yaml.safe_load((home / "two.yaml").read_text())
    (home / "two.yaml").write_text(yaml.safe_dump(recipe | {"files": [{"name": "two.tsv", "git_blob": git}]}))
    assert len(suites.load("two", path=home).prompts) == 2
    (home / "two.tsv").write_bytes(TABLE.replace(b"Arts", b"Fads"))
    with pytest.raises(UserError, match=rf"its git blob id is .* but two.tsv of suite 'two' has {git[:12]}"):
        suites.load("two", path=home)
    (home / "two.yaml").write_text(yaml.safe_dump(recipe | {"files": [{"name": "two.tsv"}]}))
    with pytest.raises(UserError, match="give either sha256 or git_blob"):
        suites.card("two")


def test_texts_that_come_again_are_left_out_where_a_suite_says_so(home: Path) -> None:
    declare(home, "five", {"five.txt": b"b\na\nb\nc\na\n"}, n=3, unique=True, per_prompt=5)
    suite = suites.load("five", path=home)
    assert [prompt.text for prompt in suite.prompts] == ["b", "a", "c"]
    assert suite.per_prompt == suites.card("five").per_prompt == 5


def test_suites_tell_scorers_what_they_need(home: Path) -> None:
    rows = [{"prompt": "a cat", "atom_count": 3, "vqa_list": [["Is it?", "Yes"]], "skills": ["object"]}]
    recipe = _recipe.read(Path(suites.__file__).parent / "geneval2.yaml")
    fields = recipe.model_dump(include={"text", "groups", "meta", "per_prompt"})
    declare(home, "atoms", {"a.jsonl": json.dumps(rows[0]).encode()}, n=1, **fields)
    (prompt,) = suites.load("atoms", path=home).prompts
    assert (prompt.text, prompt.group) == ("a cat", {"atom_count": "3"})
    assert prompt.meta == {"vqa_list": [["Is it?", "Yes"]], "skills": ["object"]}


def test_a_copy_of_a_benchmarks_own_file_tells_scorers_the_same(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(geneval.FILE.read_bytes())
    mine, shipped = suites.load(str(path)), suites.load("geneval")
    assert [prompt.meta for prompt in mine.prompts] == [prompt.meta for prompt in shipped.prompts]
    assert mine.prompts[0].group == {"tag": "single_object"}
    path.write_text('{"prompt": "a cat", "tag": "animal"}')
    assert not suites.load(str(path)).prompts[0].meta


def test_a_table_of_questions_is_a_format(home: Path) -> None:
    head = "item_id,text,proposition_id,dependency,tuple,question_natural_language"
    declare(home, "tree", {"t.csv": f"{head}\na,cats,1,0,entity (c),Cats?\n".encode()}, n=1, format="dpg")
    (prompt,) = suites.load("tree", path=home).prompts
    assert prompt.meta["questions"][0]["question"] == "Cats?"
    assert suites.card("tree").per_prompt == 1


def test_a_suite_that_misstates_its_size_is_refused(home: Path) -> None:
    declare(home, "two", {"two.tsv": TABLE}, n=3, text="Prompt")
    with pytest.raises(UserError, match="n is 3, but its files hold 2"):
        suites.load("two", path=home)
    (home / "two.yaml").write_text("n: 2")
    with pytest.raises(UserError, match=r"two.yaml: 'source' is missing"):
        suites.card("two")


def test_the_first_caption_of_each_image(home: Path) -> None:
    declare(home, "all", {"captions.json": json.dumps(COCO).encode()}, n=3, format="coco")
    declare(home, "some", {"captions.json": json.dumps(COCO).encode()}, n=2, format="coco", every=2)
    assert [prompt.text for prompt in suites.load("all", path=home).prompts] == ["two", "five", "nine, first "]
    assert [prompt.text for prompt in suites.load("some", path=home).prompts] == ["two", "nine, first "]
    declare(home, "bad", {"captions.json": b'{"annotations": [{"id": 1}]}'}, n=1, format="coco")
    with pytest.raises(UserError, match=r"no COCO captions .KeyError: 'image_id'."):
        suites.load("bad", path=home)


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, bytes]]]:
    """An http server on loopback: its address, and what it answers by path."""
    answers: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            content = answers.get(self.path)
            self.send_response(200 if content is not None else 404)
            self.send_header("Content-Length", str(len(content or b"")))
            self.send_header("ETag", f'"{hashlib.sha256(content or b"").hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(answers.get(self.path, b""))

        def log_message(self, *_: object) -> None:
            pass

    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http_server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{http_server.server_port}", answers
    http_server.shutdown()
    thread.join()
    http_server.server_close()


def test_a_file_behind_a_url_is_fetched_once(
    home: Path, server: tuple[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(home / "cache"))
    address, answers = server
    declare(home, "two", {"sub/two.tsv": TABLE}, own=False, n=2, text="Prompt", groups={}, url=address)
    with pytest.raises(UserError, match=r"/sub/two.tsv: cannot be fetched .HTTP Error 404"):
        suites.load("two")
    answers["/sub/two.tsv"] = TABLE
    assert len(suites.load("two").prompts) == 2
    answers.clear()
    assert len(suites.load("two").prompts) == 2
    (kept,) = (home / "cache").rglob("two.tsv")
    kept.write_bytes(b"torn")
    answers["/sub/two.tsv"] = TABLE
    assert len(suites.load("two").prompts) == 2, "what is kept is not taken where it is damaged"


def test_a_file_of_the_hub_comes_through_its_client(tmp_path: Path, server: tuple[str, dict[str, bytes]]) -> None:
    address, answers = server
    recipe = _recipe.read(suites.HERE / "hpsv2.yaml")
    assert recipe.hub
    for file in recipe.files:
        answers[f"/datasets/{recipe.hub.repository}/resolve/{recipe.hub.revision}/{file.name}"] = b'["a", "b"]'
    code = "from prompts import suites; print(len(suites.load('hpsv2').prompts))"
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}

    def ask() -> str:
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        ).stderr

    # What came is not the real file, and is known not to be.
    assert "UserError: " in ask()
    assert "but benchmark/anime.json of suite 'hpsv2' has 6b38a479cc6f" in ask()
    answers.clear()
    environment["HF_HOME"] = str(tmp_path / "empty")
    assert "datasets/zhwang/HPDv2: benchmark/anime.json cannot be fetched" in ask().splitlines()[-1]


def test_texts_without_a_word_are_not_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "theirs.txt").write_text("🐈\n🚀\n")
    matches = suites.overlap(["🐈", "🐟"], suites.load(str(tmp_path / "theirs.txt")), near=0.8)
    assert [(match.prompt, match.text, match.exact) for match in matches] == [("🐈", "🐈", True)]


def test_overlap_finds_the_same_words_and_nearly_the_same(tmp_path: Path) -> None:
    held_out = [
        "A red  Cube on a blue sphere near the old wooden table by the sea",
        "a dog",
        "A dog.",
        "something else",
    ]
    suite = suites.load(str(write(tmp_path / "held.txt", held_out)))
    found = suites.overlap(
        ["  a DOG ", "a red cube on a blue sphere near the old wooden table by the sea, there", "a cat"], suite
    )
    assert [(match.id, match.exact) for match in found] == [
        ("held/0002", True),
        ("held/0003", False),
        ("held/0001", False),
    ]
    assert [match.similarity for match in found[:2]] == [1, 1]
    assert found[2].similarity == pytest.approx(15 / 18)
    swapped = "a blue cube on a red sphere near the old wooden table by the sea"
    assert not suites.overlap([swapped], suite), "the order of words counts"


@pytest.mark.parametrize("near", [0.3, 0.5, 0.7, 0.8, 1.0])
def test_overlap_misses_nothing(tmp_path: Path, near: float) -> None:
    rng = random.Random(0)
    texts = [" ".join(rng.choices("abcd", k=rng.randint(1, 10))) for _ in range(400)]
    suite = suites.load(str(write(tmp_path / "held.txt", texts[:200])))

    def pairs(text: str) -> set[tuple[str, str]]:
        words = ["", *text.split(), ""]
        return set(pairwise(words))

    expected = set()
    for given in set(texts[200:]):
        for prompt in suite.prompts:
            a, b = pairs(given), pairs(prompt.text)
            if len(a & b) / len(a | b) >= near:
                expected.add((given, prompt.id, given == prompt.text))
    found = suites.overlap(texts[200:], suite, near=near)
    assert {(match.prompt, match.id, match.exact) for match in found} == expected
    assert len(found) == len(expected) > 0


def test_the_commands(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from evaluate.cli import app

    listed = CliRunner().invoke(app, ["suites"], env={"COLUMNS": "200"})
    assert listed.exit_code == 0
    assert all(name in listed.output for name in suites.names())
    assert "Apache-2.0" in listed.output
    held_out = suites.load("shapes").prompts[0].text
    leaky, clean = write(tmp_path / "leaky.txt", [held_out.upper(), "a dog"]), write(tmp_path / "clean.txt", ["a dog"])
    found = CliRunner().invoke(app, ["overlap", str(leaky), "--suite", "shapes"])
    assert found.exit_code == 1
    assert "2 distinct prompts: 1 are in shapes, 0 more nearly" in found.output
    assert CliRunner().invoke(app, ["overlap", str(clean), "--suite", "shapes"]).exit_code == 0
    (tmp_path / "trained.jsonl").write_text(json.dumps({"caption": held_out, "other": "a dog"}) + "\n")
    for trained, code in ((f"{tmp_path}/trained.jsonl:caption", 1), (f"{tmp_path}/trained.jsonl:other", 0)):
        assert CliRunner().invoke(app, ["overlap", trained, "--suite", "shapes"]).exit_code == code

"""Where prompts come from: files and datasets of the hub, in the layouts in which they are published."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hub import Hub, commit

from align.config.train import TRAIN
from align.presets.load import presets
from prompts import readers as data
from prompts.io.errors import UserError
from prompts.readers import MAX_WORDS, dataset_id, read_prompts

LAION = "ChristophSchuhmann/improved_aesthetics_6.25plus"
TEXTS = ["a cat, 3 °C", "null", "", "007", 'a "quoted" word', "a cat, 3 °C"]
KEPT = [text for text in TEXTS if text]


def frame(texts: list[str]) -> pd.DataFrame:
    """Columns as LAION's metadata has them."""
    addresses = [f"https://example.org/{i}.jpg" for i in range(len(texts))]
    return pd.DataFrame({"URL": addresses, "TEXT": texts, "WIDTH": 512, "AESTHETIC_SCORE": 6.5})


@pytest.fixture
def hub(published: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub, and a cache of its own."""
    import datasets

    monkeypatch.setattr(published, "root", tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    data._open.cache_clear()
    yield published
    data._open.cache_clear()


def publish(hub: Hub, texts: list[str] = TEXTS, *, name: str = LAION, revision: str = "main") -> Path:
    folder = hub.folder(f"datasets/{name}", revision)
    (folder / "data").mkdir(exist_ok=True)
    frame(texts).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return folder


def refusal(source: str, *words: str) -> None:
    with pytest.raises(UserError) as error:
        read_prompts(source)
    said = str(error.value)
    assert "\n" not in said
    for word in words:
        assert word in said


# ---- files -----------------------------------------------------------------------------------------------------------


def write(path: Path, texts: list[str]) -> Path:
    table = frame(texts)
    if path.suffix == ".parquet":
        table.to_parquet(path, row_group_size=2)
    elif path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".tsv":
        lines = ["\t".join(map(str, row)) for row in [list(table.columns), *table.to_numpy().tolist()]]
        path.write_text("".join(f"{line}\n" for line in lines))
    else:
        path.write_text(table.to_json(orient="records", lines=path.suffix == ".jsonl"))
    return path


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv", "json", "jsonl"])
def test_a_column_of_a_file(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"some[1] prompts.{suffix}", TEXTS)
    prompts = read_prompts(f"{path}:TEXT")
    assert list(prompts) == KEPT
    assert len(prompts) == len(KEPT)
    assert prompts[1] == "null"
    refusal(str(path), "name its column", "URL, TEXT, WIDTH")
    refusal(f"{path}:TXET", "no column 'TXET'", "'TEXT'")
    refusal(f"{path}:WIDTH", "int64, not text")


def test_a_row_too_long_is_named(tmp_path: Path) -> None:
    texts = ["fine", "", "word " * (MAX_WORDS + 1), "w " * MAX_WORDS]
    path = write(tmp_path / "prompts.parquet", texts)
    refusal(f"{path}:TEXT", "row 3", f"{MAX_WORDS + 1:,} words")
    assert len(read_prompts(f"{write(path, texts[:2] + texts[3:])}:TEXT")) == 2


def test_a_file_is_read_anew_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one\n")
    assert list(read_prompts(str(path))) == ["one"]
    path.write_text("one\ntwo\n")
    assert list(read_prompts(str(path))) == ["one", "two"]


@pytest.mark.parametrize(
    ("suffix", "content"), [("parquet", b"PAR1 torn"), ("json", b'[{"TEXT": '), ("csv", b"TEXT\na\n\xff\n")]
)
def test_a_torn_file(tmp_path: Path, suffix: str, content: bytes) -> None:
    (tmp_path / f"prompts.{suffix}").write_bytes(content)
    refusal(f"{tmp_path}/prompts.{suffix}:TEXT", f"prompts.{suffix}: ")


def test_hash_and_distinct_texts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.parquet"
    hashes = set()
    for rows in (1, 2, 100):  # however the file is cut
        frame(TEXTS).to_parquet(path, row_group_size=rows)
        prompts = read_prompts(f"{path}:TEXT")
        hashes.add(prompts.sha256())
        rows_of, first = prompts.distinct()
        assert rows_of.tolist() == [0, 1, 2, 3, 0]
        assert first.tolist() == [0, 1, 2, 3]
    assert len(hashes) == 1
    for other in (TEXTS[::-1], ["a cat, 3 °Cn", *TEXTS[1:]], ["a cat, 3 °", "Cnull", *TEXTS[2:]]):
        assert read_prompts(f"{write(path, other)}:TEXT").sha256() not in hashes


# ---- the hub ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (f"{LAION}:TEXT", (LAION, "TEXT", None)),
        (f"{LAION}:TEXT@0123abc", (LAION, "TEXT", "0123abc")),
        ("o/n:a column@refs/pr/1", ("o/n", "a column", "refs/pr/1")),
        ("./file.txt:TEXT", None),
        ("a/b/c:TEXT", None),
        ("o/n", None),
    ],
)
def test_dataset_ids(source: str, expected: Any) -> None:
    assert dataset_id(source) == expected


def test_a_dataset_of_the_hub(hub: Hub) -> None:
    publish(hub)
    publish(hub, ["an older one"], revision="v1")
    assert list(read_prompts(f"{LAION}:TEXT")) == KEPT
    assert list(read_prompts(f"{LAION}:TEXT@v1")) == ["an older one"]
    assert list(read_prompts(f"{LAION}:TEXT@{commit('v1')}")) == ["an older one"]


def test_captions_in_an_archive(hub: Hub) -> None:
    """PixArt-alpha's: a compressed archive of text files."""
    folder = hub.folder("datasets/PixArt-alpha/SAM-LLaVA-Captions10M", "main")
    with tarfile.open(folder / "SA1B_caption.tar.gz", "w:gz") as archive:
        for i in range(3):
            text = f"the image shows {i} cats".encode()
            member = tarfile.TarInfo(f"sa_{i}.txt")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    prompts = read_prompts(presets(TRAIN)["pixart-di"]["prompts"])
    assert list(prompts) == [f"the image shows {i} cats" for i in range(3)]


def test_what_the_hub_refuses(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    refusal("nobody/nothing:TEXT", "datasets/nobody/nothing", "no such repository", "hf auth login")
    publish(hub)
    refusal(f"{LAION}:TEXT@{'0' * 40}", "no revision 000", "moved")
    refusal(f"{LAION}:TXET", "no column 'TXET'", "'TEXT'")
    folder = publish(hub, name="o/tests") / "data"
    (folder / "train-00000-of-00001.parquet").rename(folder / "test-00000-of-00001.parquet")
    refusal("o/tests:TEXT", "no split train", "test")
    publish(hub, name="o/gated")
    hub.gated.add("datasets/o/gated")
    refusal("o/gated:TEXT", "gated", "https://huggingface.co/datasets/o/gated")
    hub.folder("datasets/o/scripted", "main").joinpath("scripted.py").write_text("raise SystemExit(7)\n")
    refusal("o/scripted:TEXT", "a program of its own", "refused")


def test_a_copy_of_another_revision_is_not_taken(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(hub)
    publish(hub, ["an older one"], revision="v1")
    assert list(read_prompts(f"{LAION}:TEXT")) == KEPT
    data._open.cache_clear()
    monkeypatch.setattr(hub, "root", hub.root / "away")
    assert list(read_prompts(f"{LAION}:TEXT")) == KEPT  # as `datasets` has it
    refusal(f"{LAION}:TEXT@{commit('v1')}", "no local copy of revision")
    refusal(f"{LAION}:TEXT@v1", "no such repository")


def test_no_token_is_told(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    publish(hub)

    def broken(*_: Any, **__: Any) -> None:
        raise OSError("Bearer hf_secretsecretsecret was not liked by https://me:hf_secretsecretsecret@hub")

    monkeypatch.setattr("datasets.load_dataset", broken)
    with pytest.raises(UserError) as error:
        read_prompts(f"{LAION}:TEXT")
    assert "secret" not in str(error.value)


def test_every_preset_reads_prompts() -> None:
    found = {name: content["prompts"] for name, content in presets(TRAIN).items()}
    assert found
    for name, source in found.items():
        assert source.startswith("shapes:") or dataset_id(source), name


@pytest.mark.slow
def test_prompts_are_not_in_memory(tmp_path: Path, quick_programs: None) -> None:
    """Half a million of them take no memory of the process's own worth naming."""
    import subprocess
    import sys

    path = tmp_path / "prompts.txt"
    with path.open("w") as file:
        file.writelines(f"the image with the number {i}, and so on, and so on, and so on\n" for i in range(500_000))
    code = (
        "import sys, datasets, pandas\nfrom prompts.readers import read_prompts\n"
        "own = lambda: next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('RssAnon'))\n"
        "read_prompts('shapes:test')\nif sys.argv[2] == 'first': read_prompts(sys.argv[1]); sys.exit()\n"
        "before = own(); prompts = read_prompts(sys.argv[1]); prompts[499_999]; print(own() - before)\n"
    )
    for turn in ("first", "second"):
        done = subprocess.run([sys.executable, "-c", code, str(path), turn], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < path.stat().st_size / 2

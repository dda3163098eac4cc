"""Folders that are there whole or not at all."""

from pathlib import Path

import pytest

from prompts.io.files import replace_folder


def test_a_folder_takes_another_ones_place_or_leaves_it(tmp_path: Path) -> None:
    draft, target = tmp_path / "draft", tmp_path / "target"
    for folder in (draft, target):
        folder.mkdir()
        (folder / "text").write_text(folder.name)
    replace_folder(draft, target)
    assert (target / "text").read_text() == "draft"
    with pytest.raises(FileNotFoundError):  # there is no draft any more
        replace_folder(draft, target)
    assert (target / "text").read_text() == "draft"
    assert list(tmp_path.iterdir()) == [target]

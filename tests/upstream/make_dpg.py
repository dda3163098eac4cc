"""Writes `dpg.json`, with `tox run -e upstream-dpg -- FOLDER`: what DPG-Bench's own functions make of random trees.

FOLDER: a clone of github.com/TencentQQGYLab/ELLA at 3c228f1. Its `compute_dpg_bench.py` is run as published, with
random answers in its judge's place.
"""

import hashlib
import json
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import dpg  # noqa: E402

EDGE = 8


class Answers:
    """In mPLUG's place: knows a crop by its colour."""

    def vqa(self, image: Any, question: str) -> str:
        return dpg.answer(image.getpixel((0, 0))[0], question)


def score(module: ModuleType, known: dict[str, Any], item: str, folder: Path) -> list[float] | None:
    """The four images' scores as the script writes them down, None where it fails."""
    arguments = SimpleNamespace(pic_num=dpg.CROPS, res_path=str(folder / f"{item}.txt"))
    Image.fromarray(dpg.grid(EDGE)).save(folder / f"{item}.png")
    try:
        module.compute_dpg_one_sample(arguments, known, str(folder / f"{item}.png"), Answers(), EDGE)
    except Exception:  # as its main() has it
        return None
    line = Path(arguments.res_path).read_text().strip()
    return [float(number) for number in line.split(", ")[1:-1]]


def main(folder: Path) -> None:
    file = folder / "dpg_bench" / "compute_dpg_bench.py"
    module = ModuleType("compute_dpg_bench")
    exec(compile(file.read_text(encoding="utf-8"), file, "exec"), module.__dict__)
    with tempfile.TemporaryDirectory() as temporary:
        table = Path(temporary) / "table.csv"
        table.write_text(dpg.table(), encoding="utf-8")
        known = module.prepare_dpg_data(SimpleNamespace(csv=str(table)))
        items = list(dict.fromkeys(row["item_id"] for row in dpg.rows()))
        scores = {item: score(module, known, item, Path(temporary)) for item in items}
    content = {
        "made_by": "tests/upstream/make_dpg.py",
        "script_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in ("pandas", "numpy", "pillow", "torch", "accelerate")},
        "table_sha256": hashlib.sha256(dpg.table().encode()).hexdigest(),
        "scores": scores,
    }
    (HERE / "dpg.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

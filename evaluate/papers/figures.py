"""What the papers print: every figure of their tables, and what is known of each column.

`leaderboards/paper` holds every figure that the papers' text still shows, one line per cell (`Figure`), and what is
known of each column (`Column`): the suite and the metrics of ours that come nearest, and why the two are not known to
agree, where they are not.
"""

from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from evaluate.results.csv_io import read_csv
from prompts.io.errors import UserError

#: In an installed package, and in a checkout.
_SHIPPED, _CHECKOUT = Path(__file__).parents[1] / "paper", Path(__file__).parents[2] / "leaderboards" / "paper"
HERE = _SHIPPED if _SHIPPED.is_dir() else _CHECKOUT

PAPERS = {"di-star": "DI*", "di-plus-plus": "DI++"}
TABLES = {
    "di-star/1": "leading models of 1024 px on Parti and COCO",
    "di-star/2": "ablation of divergence, guidance and reward scale on Parti",
    "di-star/3": "HPSv2.1 by style",
    "di-plus-plus/1": "HPSv2.0 by style; nearly all of its figures are lost in the text",
    "di-plus-plus/2": "four scores of models of 512 px and more on COCO",
}
#: What `Column.ours` names besides metrics and the two settings `steps` and `parameters`: seconds for ten images.
SECONDS = "seconds"


class Figure(NamedTuple):
    """One cell of a paper's table.

    line: the row's number in its part, from 1. row, metric, value: as printed. model: our recipe's name, empty where
    there is none. protocol: our metric, where it is known to be the paper's. note: what is damaged in the text, and
    where the papers contradict it.
    """

    table: str
    part: str
    line: int
    row: str
    metric: str
    value: str
    model: str
    protocol: str
    note: str


class Column(NamedTuple):
    """What is known of a column: our suite, the group of its prompts, and our metrics.

    suite_sha256: the suite's hash, where its prompts are the paper's. why: what keeps ours and the paper's from being
    subtracted; empty where nothing does.
    """

    table: str
    part: str
    metric: str
    suite: str
    suite_sha256: str
    group: str
    ours: tuple[str, ...]
    why: str

    @property
    def is_setting(self) -> bool:
        """Whether it says what a model is, not what was measured."""
        return not self.suite and self.ours != (SECONDS,)


def label(name: str) -> str:
    """`di-star/1` -> `DI* Table 1`, as `about.rows` of a recipe has it."""
    paper, _, number = name.partition("/")
    return f"{PAPERS[paper]} Table {number}"


def read_figures(name: str) -> list[Figure]:
    """Every cell of the table. Raises UserError for an unknown name."""
    if name not in TABLES:
        nearest = get_close_matches(name, TABLES, 1, 0)[0]
        raise UserError(f"no table {name!r}; did you mean {nearest!r}? There are {', '.join(TABLES)}")
    lines = read_csv(HERE / f"{name.replace('/', '-')}.csv")
    return [Figure(**line | {"line": int(line["line"])}) for line in lines]  # type: ignore[arg-type]


def read_columns(name: str) -> list[Column]:
    """What is known of the table's columns, in their order."""
    lines = (line for line in read_csv(HERE / "columns.csv") if line["table"] == name)
    return [Column(**line | {"ours": tuple(line["ours"].split())}) for line in lines]  # type: ignore[arg-type]

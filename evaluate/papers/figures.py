"""What papers and benchmarks print: every figure of their tables, and what is known of each column.

`leaderboards/paper` holds every figure that was read, one line per cell (`Figure`); where each part of a table is from
(`Source`); and what is known of each column (`Column`): the suite and the metrics of ours that come nearest, and why
the two are not known to agree, where they are not. A column may name a suite or a metric that is not here; then nothing
of ours stands in it.
"""

from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from evaluate.results.csv_io import read_csv
from prompts.io.errors import UserError

#: In an installed package, and in a checkout.
_SHIPPED, _CHECKOUT = Path(__file__).parents[1] / "paper", Path(__file__).parents[2] / "leaderboards" / "paper"
HERE = _SHIPPED if _SHIPPED.is_dir() else _CHECKOUT


class Table(NamedTuple):
    """label: how the table is cited. about: what it shows."""

    label: str
    about: str


TABLES = {
    "di-star/1": Table("DI* Table 1", "leading models of 1024 px on Parti and COCO"),
    "di-star/2": Table("DI* Table 2", "ablation of divergence, guidance and reward scale on Parti"),
    "di-star/3": Table("DI* Table 3", "HPSv2.1 by style"),
    "di-plus-plus/1": Table("DI++ Table 1", "HPSv2.0 by style; nearly all of its figures are lost in the text"),
    "di-plus-plus/2": Table("DI++ Table 2", "four scores of models of 512 px and more on COCO"),
    "didr/1": Table("DIDR", "one-step SDXL and Z-Image on four preference scores"),
    "rtdmd/1": Table("RTDMD Table 1", "SD3 medium in 4 steps"),
    "rtdmd/2": Table("RTDMD Table 2", "FLUX.2 klein 4B in 4 steps, beside FLUX.2 9B and Z-Image"),
    "tdm-r1/1": Table("TDM-R1 on SD3.5-M", "GenEval, on which it trains"),
    "tdm-r1/2": Table("TDM-R1 on Z-Image", "HPSv3 and GenEval"),
    "dmd2/1": Table("DMD2 Table 1", "SDXL in 1 and 4 steps: FID, patch FID and CLIP score on COCO"),
    "sana-sprint/2": Table("SANA-Sprint Table 2", "models of 1, 2 and 4 steps: FID, CLIP score and GenEval"),
    "known/geneval": Table("GenEval of known models", "by task, from three sources"),
    "known/hpsv2": Table("HPSv2 of known models", "versions 2.0 and 2.1 by style"),
    "known/hpsv3": Table("HPSv3 of known models", "its authors' benchmark"),
    "known/dpg": Table("DPG-Bench of known models", "overall"),
    "known/vqascore": Table("VQAScore of known models", "GenAI-Bench, overall"),
    "known/mjhq": Table("FID on MJHQ-30K of known models", "from two sources, which differ"),
    "known/cmmd": Table("CMMD of known models", "COCO-30k"),
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


class Source(NamedTuple):
    """Where a part of a table was read. protocol: what the source says of how it measured, and what it does not say."""

    table: str
    part: str
    source: str
    protocol: str


class Column(NamedTuple):
    """What is known of a column: our suite, the group of its prompts, and our metrics.

    suite_sha256: the suite's hash, where its prompts are the paper's. ours: metrics, here or to come, the nearest
    first; one may be a column of another (`geneval2/gm` of `geneval2`). why: what keeps ours and the paper's
    from being subtracted; empty where nothing does.
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


def read_sources(name: str) -> dict[str, Source]:
    """Where each part of the table was read."""
    lines = (line for line in read_csv(HERE / "sources.csv") if line["table"] == name)
    return {line["part"]: Source(**line) for line in lines}

"""Records: what a run measured, one row per image, with what made them.

One Parquet file, between the runner and all that reads it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evaluate import distribution
from evaluate.stats import Mean, clustered_mean, macro_values
from prompts.io.errors import UserError
from prompts.io.files import replace, text_sha256

#: Where a file keeps `meta`, as JSON: in the metadata of its schema.
KEY = b"onestep"
#: What is read of every file; beside these come `prompt`, `group.NAME`, `score.PROTOCOL` and `details.PROTOCOL`.
COLUMNS = ("id", "seed", "image_sha256", "error")
FIELDS = ("suite", "suite_sha256", "model", "n_expected", "protocols", "complete")


def file_name(suite: str, suite_sha256: str, command: str) -> str:
    """What `evaluate run` calls the records of a command on a suite."""
    return f"records-{suite}-{text_sha256(command + suite_sha256)[:8]}.parquet"


@dataclass(frozen=True, eq=False)
class Records:
    """frame: one row per image. `id` of its prompt, `prompt`, `group.NAME`, `seed`, `image_sha256`, `error` (None where
    all went well), `score.PROTOCOL`, NaN where there is none, and `details.PROTOCOL`, JSON, of scorers that say more.

    meta: `suite`, `suite_sha256`, `model`, `n_expected` rows, `protocols` (name -> sha256 of the weights, None where
    there are none), `macro` (of protocols that are a mean of groups' means, name -> the group), and whether the run
    that wrote them was `complete`.
    """

    frame: pd.DataFrame
    meta: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> "Records":
        """Of a file, or of a folder with one `records*.parquet`: a run's, or the --output of the only run.

        Raises UserError for what is neither, or torn.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        file = find(path)
        try:
            with pq.ParquetFile(file) as parquet:
                table = parquet.read()
            meta = json.loads((table.schema.metadata or {}).get(KEY, b"{}"))
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{file}: torn or no Parquet file ({reason}); write it again with 'evaluate run', which continues where"
                " it stopped"
            ) from None
        for kind, names, present in (("field", FIELDS, meta), ("column", COLUMNS, table.column_names)):
            if lacking := [name for name in names if name not in present]:
                raise UserError(
                    f"{file}: no {kind} {lacking[0]!r}, so these are no records; give a file that 'evaluate run' wrote"
                )
        if lacking := [name for name in meta["protocols"] if f"score.{name}" not in table.column_names]:
            raise UserError(
                f"{file}: no column 'score.{lacking[0]}', though its protocols name it; write it again with 'evaluate"
                " run'"
            )
        frame = table.to_pandas()
        if (twice := frame.duplicated(["id", "seed"])).any():
            row = frame[twice].iloc[0]
            raise UserError(
                f"{file}: id {row['id']!r} with seed {row['seed']} is there twice; write it again with 'evaluate run'"
            )
        return cls(frame, meta)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pandas(self.frame, preserve_index=False)
        metadata = {**(table.schema.metadata or {}), KEY: json.dumps(self.meta).encode()}
        replace(path, lambda draft: pq.write_table(table.replace_schema_metadata(metadata), draft))

    @property
    def missing(self) -> str | None:
        """What keeps these records from being complete, in words; None where nothing does."""
        n, expected = len(self.frame), self.meta["n_expected"]
        if n != expected:
            return f"{n:,} of {expected:,} records are there"
        if failed := int(self.frame["error"].notna().sum()):
            return f"{failed:,} of {n:,} records have errors"
        for protocol in self.meta["protocols"]:
            if absent := int((~np.isfinite(self.scores(protocol))).sum()):
                return f"{absent:,} of {n:,} records have no score {protocol}"
        for metric, estimate in self.meta.get("distribution", {}).items():
            if not np.isfinite(estimate["value"]):
                return f"{metric} has no value: {estimate.get('note', '')}"
        return None if self.meta["complete"] else "the run that wrote them did not finish"

    def lower_is_better(self, metric: str) -> bool:
        """Whether lower is better of a distribution metric that the run measured; the rest are scores."""
        said: bool | None = self.meta["distribution"][metric].get("lower_is_better")
        return distribution.lower_is_better(metric) if said is None else said

    @property
    def complete(self) -> bool:
        """Whether every record that was asked for is there, without an error and with every score."""
        return self.missing is None

    def scores(self, protocol: str) -> np.ndarray:
        """One protocol's scores `[N]`, float64, NaN where there is none."""
        scores: np.ndarray = self.frame[f"score.{protocol}"].to_numpy(float)
        return scores

    def mean(self, protocol: str) -> Mean:
        """What the run's score is under a protocol, with its standard error, clustered by prompt."""
        scores = self.scores(protocol)
        if group := self.meta.get("macro", {}).get(protocol):
            scores = macro_values(scores, self.frame[f"group.{group}"].astype(str).to_numpy())
        return clustered_mean(scores, self.frame["id"].to_numpy())

    def by_prompt(self) -> pd.DataFrame:
        """Mean scores of each prompt over its images that have one: index `id`, sorted; one column per protocol."""
        columns = {f"score.{name}": name for name in self.meta["protocols"]}
        return self.frame.groupby("id", sort=True)[list(columns)].mean().rename(columns=columns)

    def values(self, protocol: str, scores: pd.Series) -> np.ndarray:
        """What to take means and errors of: scores of prompts (index `id`, as `by_prompt` has them), or, under a
        protocol that is a mean of groups' means, their `macro_values`.
        """
        plain = scores.to_numpy(float)
        group = self.meta.get("macro", {}).get(protocol)
        if not group:
            return plain
        groups = self.frame.drop_duplicates("id").set_index("id")[f"group.{group}"].astype(str)
        return macro_values(plain, groups.loc[scores.index].to_numpy())


def find(path: Path) -> Path:
    """The records file that `path` is, or that alone is in that folder.

    Raises UserError where there is none, or a choice.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder; give a records file, or the folder of a run")
    files = sorted(path.glob("records*.parquet")) or sorted(path.glob("runs/*/records*.parquet"))
    if len(files) != 1:
        remedy = "give one of them" if files else "give the folder or the file that 'evaluate run' names at its end"
        raise UserError(f"{path}: {len(files) or 'no'} files records*.parquet there; {remedy}")
    return files[0]

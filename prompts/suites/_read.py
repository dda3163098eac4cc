"""Reads prompts out of files. Text is data: nothing in it is a formula, a path or markup, and nothing is stripped.

.tsv    tab-separated without quoting (IANA text/tab-separated-values): a quotation mark is a quotation mark
.csv    comma-separated with RFC 4180 quoting
.json   a list of texts, or of objects
.jsonl  a text or an object a line
.txt    one prompt per line; blank lines are none

Tables name their columns in the first line. The prompt is the column (or key) `prompt`, `text` or `caption`, whatever
its case, or the only one; of the others, texts and numbers become groups. A row that has lists or objects says more
than groups do, so that all of it is meta as well.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from prompts.io.errors import UserError

SUFFIXES = (".tsv", ".csv", ".json", ".jsonl", ".txt")
TEXT_COLUMNS = ("prompt", "text", "caption")
SCALAR = str | int | float


class Row(NamedTuple):
    """A prompt's text, its groups, and what scorers are told of it."""

    text: str
    group: Mapping[str, str]
    meta: Mapping[str, Any] = {}


def table_rows(
    path: Path,
    *,
    text: str | None = None,
    groups: Mapping[str, str] | None = None,
    meta: Mapping[str, str] | None = None,
) -> list[Row]:
    """The prompts of a file.

    text: the prompt's column, found by the rule above where it is None. groups, meta: name -> column; by default every
    other text or number is a group under its own name in lower case, and a row with lists or objects is all meta.
    """
    rows: list[Row] = []
    for place, fields in _records(path):
        column = text or _text_column(path, place, fields)
        if groups is None:
            group = {k.lower(): str(v) for k, v in fields.items() if k != column and isinstance(v, SCALAR)}
        else:
            group = {name: _field(path, place, fields, source) for name, source in groups.items()}
        prompt = _field(path, place, fields, column)
        if not prompt.strip():
            raise UserError(f"{path}, {place}: an empty prompt; write one or remove the line")
        if meta is None:
            others = {k: v for k, v in fields.items() if k != column}
            told = others if any(isinstance(v, list | dict) for v in others.values()) else {}
        else:
            told = {name: fields[source] for name, source in meta.items() if source in fields}
        rows.append(Row(prompt, group, told))
    if not rows:
        raise UserError(f"{path}: holds no prompt; write at least one")
    return rows


def coco_rows(path: Path) -> list[Row]:
    """One caption an image of COCO Captions' annotations: the one of lowest id, images in the order of their ids."""
    content = _json(path, _decode(path), "the file")
    try:
        first: dict[int, tuple[int, str]] = {}
        for row in content["annotations"]:
            image, candidate = int(row["image_id"]), (int(row["id"]), str(row["caption"]))
            first[image] = min(first.get(image, candidate), candidate)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: no COCO captions ({type(error).__name__}: {error}); give annotations with image_id, id, caption"
        ) from None
    return [Row(first[image][1], {}) for image in sorted(first)]


#: Columns of DPG-Bench's table.
DPG = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")


def dpg_rows(path: Path) -> list[Row]:
    """The prompts of DPG-Bench's table, which has a row a question; questions as meta, in their order.

    As its official script has it, a question that comes twice is what it is last, in its first place, and an item that
    comes again after others begins anew. The first question of the file is marked as not asked, which that script
    skips by mistake.
    """
    items: dict[str, tuple[str, dict[int, dict[str, Any]]]] = {}
    before = None
    for number, (place, fields) in enumerate(_records(path)):
        item, text, proposition, dependency, told, question = (_field(path, place, fields, name) for name in DPG)
        try:
            key, parents = int(proposition), [int(parent) for parent in dependency.split(",")]
        except ValueError:
            raise UserError(
                f"{path}, {place}: proposition_id {proposition!r} and dependency {dependency!r} are not whole numbers;"
                " fetch the table again"
            ) from None
        if item != before:
            items[item] = (text, {})
        items[item][1][key] = {
            "id": key,
            "question": question,
            "parents": [parent for parent in parents if parent],
            "category": told.split("(")[0].strip(),
            **({} if number else {"asked": False}),
        }
        before = item
    if not items:
        raise UserError(f"{path}: holds no prompt; fetch the table again")
    return [Row(text, {}, {"questions": list(questions.values())}) for text, questions in items.values()]


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each record's place, for people, and its fields."""
    content = _decode(path)
    match path.suffix:
        case ".txt":
            for number, line in enumerate(_lines(content), 1):
                if line.strip():
                    yield f"line {number}", {"prompt": line}
        case ".tsv":
            lines = _lines(content)
            header = lines[0].split("\t") if lines else []
            for number, line in enumerate(lines[1:], 2):
                yield f"line {number}", _row(path, number, header, line.split("\t"))
        case ".csv":
            reader = csv.reader(io.StringIO(content, newline=""), strict=True)
            try:
                header = next(reader, [])
                for row in reader:
                    yield f"line {reader.line_num}", _row(path, reader.line_num, header, row)
            except csv.Error as error:
                raise UserError(f"{path}, line {reader.line_num}: {error}; fix its quoting") from None
        case ".json":
            records = _json(path, content, "the file")
            if not isinstance(records, list):
                raise UserError(f"{path}: a JSON {type(records).__name__}, not a list; give a list of prompts")
            for number, record in enumerate(records, 1):
                yield f"entry {number}", _object(path, f"entry {number}", record)
        case ".jsonl":
            for number, line in enumerate(_lines(content), 1):
                yield f"line {number}", _object(path, f"line {number}", _json(path, line, f"line {number}"))
        case _:
            raise UserError(f"{path}: not a kind of prompt file; give {', '.join(SUFFIXES)}")


def _decode(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None


def _lines(content: str) -> list[str]:
    """Lines as editors count them: str.splitlines would also break at characters that belong to a prompt."""
    lines = content.replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _json(path: Path, content: str, place: str) -> Any:
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}" if place == "the file" else place
        raise UserError(f"{path}, {at}: not valid JSON ({error.msg.lower()}); fix it") from None


def _row(path: Path, number: int, header: list[str], fields: list[str]) -> dict[str, str]:
    if len(fields) != len(header):
        raise UserError(
            f"{path}, line {number}: {len(fields)} fields, but the first line names {len(header)}; fix the line"
        )
    return dict(zip(header, fields, strict=True))


def _object(path: Path, place: str, record: Any) -> dict[str, Any]:
    fields = {"prompt": record} if isinstance(record, str) else record
    if not isinstance(fields, dict):
        raise UserError(f"{path}, {place}: a {type(record).__name__}; give a text or an object with a prompt")
    return fields


def _text_column(path: Path, place: str, fields: Mapping[str, Any]) -> str:
    by_name = {name.lower(): name for name in reversed(list(fields))}
    for wanted in TEXT_COLUMNS:
        if wanted in by_name:
            return by_name[wanted]
    if len(fields) == 1:
        return next(iter(fields))
    raise UserError(f"{path}, {place}: no column 'prompt' among {', '.join(map(repr, fields))}; name one so")


def _field(path: Path, place: str, fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, SCALAR):
        raise UserError(
            f"{path}, {place}: {name!r} is {'missing' if value is None else 'not a text'}; write a text there"
        )
    return str(value)

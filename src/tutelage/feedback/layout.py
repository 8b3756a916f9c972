"""Exported rows as files: JSON lines, Parquet, or the folder of a Hugging Face data set with its card."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import yaml

from tutelage.core.errors import DataError
from tutelage.feedback.export import Exported, jsonl
from tutelage.feedback.rows import CONSUMERS

if TYPE_CHECKING:
    import pyarrow

Format = Literal["jsonl", "parquet", "zip"]
"""`zip` holds the Hugging Face folder."""
MEDIA: Mapping[Format, str] = {
    "jsonl": "application/x-ndjson",
    "parquet": "application/vnd.apache.parquet",
    "zip": "application/zip",
}
AS_TEXT = ("answers", "says")
"""Columns whose keys differ from row to row: a table holds them as JSON text."""
NUMBERS = {"score_chosen": "double", "score_rejected": "double", "candidate": "int64"}
"""Columns that are numbers, also where none was given."""


def packed(made: Exported, form: Format) -> bytes:
    """An export as one file. Raises DataError for a format there is none of."""
    match form:
        case "jsonl":
            return jsonl(made.rows)
        case "parquet":
            return parquet(made.rows)
        case "zip":
            held = io.BytesIO()
            with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, body in folder(made).items():
                    archive.writestr(zipfile.ZipInfo(name), body, zipfile.ZIP_DEFLATED)
            return held.getvalue()
    raise DataError(f"there is no format {form!r}", key="format", todo=f"One of: {', '.join(get_args(Format))}")


def table(rows: Sequence[Mapping[str, Any]]) -> pyarrow.Table:
    """Rows as an Arrow table; a column that is empty throughout is text."""
    import pyarrow as arrow

    plain = [
        {name: json.dumps(value, ensure_ascii=False) if name in AS_TEXT else value for name, value in row.items()}
        for row in rows
    ]
    found = arrow.Table.from_pylist(plain)
    known = {name: arrow.type_for_alias(kind) for name, kind in NUMBERS.items()}
    kinds = [(each.name, known.get(each.name) or _solid(each.type)) for each in found.schema]
    return found.cast(arrow.schema(kinds))


def _solid(kind: pyarrow.DataType) -> pyarrow.DataType:
    """A type without `null` in it: readers of several files could not join them."""
    import pyarrow as arrow

    if arrow.types.is_null(kind):
        return arrow.string()
    if arrow.types.is_list(kind):
        return arrow.list_(_solid(kind.value_type))
    if arrow.types.is_struct(kind):
        return arrow.struct([(each.name, _solid(each.type)) for each in kind])
    return kind


def parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as one Parquet file."""
    from pyarrow import parquet as files

    held = io.BytesIO()
    files.write_table(table(rows), held, compression="zstd")
    return held.getvalue()


def folder(made: Exported) -> dict[str, bytes]:
    """Path -> content of a data set as Hugging Face lays it out: `datasets.load_dataset(folder)` reads it."""
    splits: dict[str, list[Mapping[str, Any]]] = {}
    for row in made.rows:
        splits.setdefault(str(row.get("tags", row)["split"]), []).append(row)
    whole = table(made.rows)
    files = {f"data/{name}-00000-of-00001.parquet": _part(rows, whole) for name, rows in sorted(splits.items())}
    sizes = {name: (len(rows), len(files[f"data/{name}-00000-of-00001.parquet"])) for name, rows in splits.items()}
    found = {"README.md": card(made, whole, sizes).encode(), **files}
    if made.consumer == "annotations":
        found["form.json"] = json.dumps(made.form, indent=2, ensure_ascii=False).encode() + b"\n"
    return found


def _part(rows: Sequence[Mapping[str, Any]], whole: pyarrow.Table) -> bytes:
    """One split, with the columns that all splits have."""
    import pyarrow as arrow
    from pyarrow import parquet as files

    plain = table(rows).to_pylist()
    held = io.BytesIO()
    files.write_table(arrow.Table.from_pylist(plain, schema=whole.schema), held, compression="zstd")
    return held.getvalue()


def card(made: Exported, whole: pyarrow.Table, sizes: Mapping[str, tuple[int, int]]) -> str:
    """README.md: the head that Hugging Face reads, and what a reader must know."""
    parts = [{"name": name, "num_examples": rows, "num_bytes": size} for name, (rows, size) in sorted(sizes.items())]
    total = sum(size for _, size in sizes.values())
    kinds = ["human-feedback", *made.people.split("+")]
    head = {
        "license": "other",
        "license_name": "-and-".join(made.licences),
        "tags": kinds,
        "configs": [{
            "config_name": "default",
            "data_files": [{"split": name, "path": f"data/{name}-*.parquet"} for name in sorted(sizes)],
        }],
        "dataset_info": {
            "features": [{"name": each.name, **_feature(each.type)} for each in whole.schema],
            "splits": parts, "download_size": total, "dataset_size": total,
        },
    }  # fmt: skip
    lines = ["---", yaml.safe_dump(head, sort_keys=False, allow_unicode=True).strip(), "---", ""]
    lines += [f"# {made.project}, for {made.consumer}", ""]
    if made.simulated:
        lines += ["**Simulated people stand behind rows of this set (`simulated` is true).** They tell nothing of what",
                  "people prefer.", ""]  # fmt: skip
    lines += [f"Made for {made.consumer}: {CONSUMERS[made.consumer]}.", ""]
    lines += [f"- rows: {len(made.rows)}, from {made.annotators} {made.people} people, named by pseudonym"]
    lines += [f"- licence classes of the texts: {', '.join(made.licences)}"]
    if made.accepted:
        lines += [f"- internal classes that were accepted by name: {', '.join(made.accepted)}"]
    lines += [f"- left out, {reason}: {count}" for reason, count in made.dropped.items()]
    if made.consumer in ("reward", "dpo"):
        lines += ["- `votes`: people who prefer the chosen one, who tie both, who prefer the rejected one",
                  "- `weight`: one item's pairs weigh one over the number of its other responses"]  # fmt: skip
    if made.consumer == "reward":
        lines += ["- `margin`: difference of the mean scores (0 to 1) where both were scored and it is positive, else",
                  "  how much better people said it is (0 to 1), else the share for less that against"]  # fmt: skip
    if made.consumer == "consensus":
        lines += ["- `says`: choice or step -> probability; of a ranking log-worths with standard errors and the",
                  "  probability that one candidate (`0>1`) is better; `n` people were heard"]  # fmt: skip
    lines += ["", "`annotations` are the ids of the answers a row was made of; they lead back into the store.", ""]
    return "\n".join(lines)


def _feature(kind: pyarrow.DataType) -> dict[str, Any]:
    """A type as the head of a card writes it."""
    import pyarrow as arrow

    if arrow.types.is_list(kind):
        inner = kind.value_type
        if arrow.types.is_struct(inner):
            return {"list": _feature(inner)["struct"]}
        return {"sequence": _feature(inner).get("dtype") or _feature(inner)}
    if arrow.types.is_struct(kind):
        return {"struct": [{"name": each.name, **_feature(each.type)} for each in kind]}
    return {"dtype": {"double": "float64"}.get(str(kind), str(kind))}

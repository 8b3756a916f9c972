"""Writes docs/formats.md: the JSON schema of every file format, exported from the models that read and write them.

python tools/formats.py            writes the document
python tools/formats.py --check    ends with 1 when the document is stale
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from tutelage.adapt.gate import GateVerdict, ReleasePolicy
from tutelage.core.artifact import Manifest
from tutelage.core.events import Event
from tutelage.core.records import Example, Preference
from tutelage.corpus.read import Source
from tutelage.evaluate.compare import Compared
from tutelage.evaluate.item import Item as ItemRow
from tutelage.evaluate.suite import Result
from tutelage.feedback.wire import Answer, Item, NewProject
from tutelage.generate.endpoint import Endpoint
from tutelage.guard.bundle import Bundle
from tutelage.guard.scan import ScanLine
from tutelage.guard.written import PolicyFile, Taxonomy
from tutelage.judge.certificate import Certificate
from tutelage.plan import Plan
from tutelage.recipe import LIFE, WatchConfig, stage_of
from tutelage.web.state import Settings

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "formats.md"

HEAD = """# File formats

Written by `python tools/formats.py` from the models that read and write these files; a test fails when this page is
stale. Each schema is JSON Schema (draft 2020-12). Unknown keys are refused everywhere, so that a misspelt one is never
lost. JSON lines hold one object a line, UTF-8.
"""

FORMATS: tuple[tuple[str, str, Any], ...] = (
    ("Manifest", "`artifacts/KIND/ID/manifest.json`. ID is the sha256 of its canonical JSON without `made`.", Manifest),
    (
        "Sources",
        "`prepare.sources` of a recipe: where data comes from, and how rows become records.",
        Source,
    ),
    (
        "Examples: dialogues, labels, suite items, findings",
        "`dialogues.jsonl`, `labels.jsonl`, `items.jsonl`, `findings.jsonl`, `near.jsonl`, and a suite of one's own. "
        "What a row is for stands in `tags`: a dialogue has `family`, `split`; a label `direction`, `categories` "
        "(category -> 0 to 1), `cluster`, `split`; an item `id`, `suite`, `kind`, `cell`, `cluster`, `slices`; a "
        "finding is a label with `attack`, `rule`, `goal`, `target`. All have `source` and `licence`.",
        Example,
    ),
    (
        "Suites",
        "A row of a suite of one's own (`tutelage evaluate REF --suite FILE.jsonl`). What is asked and what is right "
        "must be there, all else is filled in; the same keys may stand under `tags`, as in `items.jsonl`.",
        ItemRow,
    ),
    ("Comparisons and preferences", "`comparisons.jsonl`, `preferences.jsonl`.", Preference),
    (
        "Projects",
        "What a labelling effort asks (`POST /api/feedback/projects`): questions, guideline, and a tree of tags.",
        NewProject,
    ),
    ("Tasks", "What the feedback API hands to a person.", Item),
    ("Answers", "What a person gives back, one row each (`POST /api/answers`).", Answer),
    ("Results", "`results.jsonl` of evaluations and red teams.", Result),
    ("Comparison", "`tutelage compare --json`, which adds `report`, the page's path.", Compared),
    (
        "Endpoints",
        "`endpoints.yaml` of a root: `https://host/v1`, or with `#model`, and below it how it is asked.",
        dict[str, Endpoint],
    ),
    ("Policy", "`policy.yaml`.", PolicyFile),
    ("Taxonomy", "`taxonomy.yaml`, beside the policy.", Taxonomy),
    (
        "Certificates",
        "In `classifier.json`: from which score a guard may act, and how often it would be wrong.",
        Certificate,
    ),
    ("Scan output", "A line of `tutelage guard scan`.", ScanLine),
    ("Bundle", "`bundle.json`.", Bundle),
    ("Release policy", "`release.policy` of a recipe: what a candidate must show.", ReleasePolicy),
    ("Verdict of the gate", "`verdict.json`.", GateVerdict),
    ("Events", "`events/STAGE.jsonl`, and stderr of commands with `--json`.", Event),
    ("Plan", "`plan.json`, and (without `stages`) `plans/DIGEST.json`.", Plan),
    ("Service settings", "`service.yaml`.", Settings),
)


def plain(schema: Any) -> Any:
    """A schema without the titles that only repeat its keys."""
    if isinstance(schema, Mapping):
        return {key: plain(value) for key, value in schema.items() if not (key == "title" and isinstance(value, str))}
    return [plain(each) for each in schema] if isinstance(schema, list) else schema


def laid_out(value: Any, depth: int = 0, used: int = 0) -> str:
    """JSON on one line where it fits behind `used` characters, else a key a line."""
    line = json.dumps(value, ensure_ascii=False)
    if depth + used + len(line) <= 118 or not isinstance(value, dict | list) or not value:
        return line
    inner, outer = " " * (depth + 1), " " * depth
    if isinstance(value, list):
        parts = [inner + laid_out(each, depth + 1) for each in value]
        return "[\n" + ",\n".join(parts) + f"\n{outer}]"
    parts = [f"{inner}{json.dumps(key)}: {laid_out(each, depth + 1, len(key) + 4)}" for key, each in value.items()]
    return "{\n" + ",\n".join(parts) + f"\n{outer}}}"


def block(schema: Any) -> str:
    """A schema as a block."""
    return f"```json\n{laid_out(plain(schema))}\n```"


def recipe() -> str:
    """The recipe: a section per stage with its inputs and keys, and what stands beside the sections."""
    parts = [
        "## Recipe\n\n`recipe.yaml`. A top-level key is a stage, or `stage@name` for a second one; beside them stand "
        "`budget` (a length of time: `90s`, `10m`, `1.5h`), `watch`, and `simulated` (`refuse`, the default, or "
        "`allow`: whether stages may learn from simulated people's words). A section holds its stage's inputs (the "
        "name of a section, or a reference such as `model:3fa9`) and keys.\n\n### watch\n\n"
        + block(WatchConfig.model_json_schema())
    ]
    for name in LIFE:
        found = stage_of(name)
        rows = [
            f"| `{key}` | {' or '.join(spec.kinds)}{', several' if spec.many else ''} | "
            f"{', '.join(spec.default) if isinstance(spec.default, tuple) else spec.default} | "
            f"{'may be left out' if spec.optional else 'needed'} |"
            for key, spec in found.inputs.items()
        ]
        table = "\n".join(["| input | kind | from | |", "|---|---|---|---|", *rows]) + "\n\n" if rows else ""
        parts.append(f"### {name}\n\nMakes: {found.makes}.\n\n{table}{block(found.config.model_json_schema())}")
    return "\n\n".join(parts)


def document() -> str:
    """The whole page."""
    parts = [HEAD, recipe()]
    for title, line, model in FORMATS:
        parts.append(f"## {title}\n\n{line}\n\n{block(TypeAdapter(model).json_schema())}")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def main() -> int:
    """Write the page, or (`--check`) say whether it is stale."""
    text = document()
    if "--check" in sys.argv:
        stale = not DOCUMENT.is_file() or DOCUMENT.read_text(encoding="utf-8") != text
        print(f"{DOCUMENT}: {'stale: run python tools/formats.py' if stale else 'up to date'}")
        return int(stale)
    DOCUMENT.write_text(text, encoding="utf-8")
    print(f"{DOCUMENT}: {len(text.splitlines())} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m bench list` names the benches, `python -m bench NAME [--quick] [--json] [--record]` runs one."""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import side
from bench.environments import HOME, python_of

NAMES = (
    *("pretrain", "step", "finetune", "reward", "dpo", "grpo"),
    *("generate", "decode", "evaluate", "plan", "annotate", "consensus", "guards", "gateway"),
)
RESULTS = HOME / "bench" / "results.md"


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when every target is met (or none is set), 1 when one is missed, 2 for wrong usage."""
    parser = argparse.ArgumentParser("python -m bench", description=__doc__)
    parser.add_argument("name", choices=["list", *NAMES], metavar="NAME", help=f"list, {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="A B A B with less work, within 4 minutes")
    parser.add_argument("--json", action="store_true", help="the result as one line of JSON, the last one")
    parser.add_argument("--record", action="store_true", help="write the result into bench/results.md")
    parser.add_argument("--root", type=Path, default=Path("life"), help="the finished life that `plan` reads")
    parser.add_argument("--float32", action="store_true", help="hold both sides to float32")
    asked = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the side under way ends, too
    if asked.name == "list":
        for name in NAMES:
            print(f"{name:10} {_first_line(name)}")
        return 0
    bench = importlib.import_module(f"bench.{asked.name}")
    environment = getattr(bench, "ENVIRONMENT", None)
    peer_python = python_of(environment) if environment else None
    with tempfile.TemporaryDirectory() as work:
        parts = bench.measure(side.Settings(asked.quick, Path(work), asked.root.resolve(), asked.float32))
    machine = {**side.machine(peer_python), "quick": asked.quick, "float32": asked.float32}
    found = side.result(asked.name, parts, machine)
    if asked.record:
        RESULTS.write_text(recorded(RESULTS.read_text("utf-8") if RESULTS.is_file() else "", found), "utf-8")
    print(json.dumps(found) if asked.json else table(found))
    return 0 if found["met"] in (True, None) else 1


def _first_line(name: str) -> str:
    """What a bench is, from its file, which may need packages that are not here."""
    text = (HOME / "bench" / f"{name}.py").read_text("utf-8").split('"""')[1].strip()
    return text.partition("\n")[0].partition(": ")[2]


# ------------------------------------------------------------------------------------------------------------ as text


def table(found: Mapping[str, Any]) -> str:
    """A result as a table of Markdown."""
    lines = ["| part | unit | ours | peer | ratio | target | met |", "|---|---|---|---|---|---|---|"]
    for part in found["parts"]:
        sign = "<=" if part["better"] == "lower" else ">="
        cells = [part["name"], part["unit"], *(_number(part[key]) for key in ("ours", "peer", "ratio"))]
        cells += ["" if part["target"] is None else f"{sign} {_number(part['target'])}"]
        cells += [{True: "yes", False: "no", None: ""}[part["met"]]]
        lines.append(f"| {' | '.join(cells)} |")
    machine = found["machine"]
    versions = "; ".join(
        f"{name}: {', '.join(f'{package} {version}' for package, version in each.items())}"
        for name, each in machine["versions"].items()
    )
    told = [machine["date"], machine["hardware"], f"{machine['threads']} threads"]
    if "peer" in machine["versions"]:
        told.append("quick, two runs a side" if machine["quick"] else "three runs a side")
    if machine["float32"]:
        told.append("both sides held to float32")
    return "\n".join([*lines, "", f"{', '.join(told)}; {versions}."])


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


HEAD = """# What the benches measured

`python -m bench NAME --record` writes the tables between the marks, each with its date, hardware and versions. What
stands beside them is written by hand and stays.
"""


def recorded(text: str, found: Mapping[str, Any]) -> str:
    """The results page with this bench's table in its place; a new section at the end where there was none."""
    begin, end = f"<!-- bench: {found['name']} -->", f"<!-- end of bench: {found['name']} -->"
    block = f"{begin}\n{table(found)}\n{end}"
    text = text or HEAD
    if begin in text and end in text:
        before, _, rest = text.partition(begin)
        return before + block + rest.partition(end)[2]
    return f"{text.rstrip()}\n\n## {found['name']}\n\n{block}\n"


if __name__ == "__main__":
    sys.exit(main())

"""The harness: who runs when, what of the runs is kept, and what the last line says. No figure is taken here."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as command
from bench import side
from bench.side import Part, Runs, Settings

SIDE = """
import json, sys
from pathlib import Path

def run(options):
    log = Path(options["log"])
    log.write_text((log.read_text() if log.is_file() else "") + options["who"])
    tried = "chosen" not in options
    return {"value": options["value"], "chosen": options.get("chosen", 7), "tried": tried, "threads": threads()}

def threads():
    import os
    return os.environ["OMP_NUM_THREADS"], os.environ["HF_HUB_OFFLINE"]

if __name__ == "__main__":
    from bench import side
    side.main(run, run)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bench whose sides write down their turns."""
    (tmp_path / "turns.py").write_text(SIDE)
    whole = side.environment

    def environment(which: str) -> dict[str, str]:
        found = whole(which)
        return found | {"PYTHONPATH": f"{tmp_path}:{found['PYTHONPATH']}"}

    monkeypatch.setattr(side, "environment", environment)
    return "turns"


@pytest.mark.parametrize(("quick", "turns"), [(True, "ABAB"), (False, "ABABAB")])
def test_the_sides_take_turns(module: str, tmp_path: Path, quick: bool, turns: str) -> None:
    log = tmp_path / "log"
    ours, peer = ({"log": str(log), "who": who, "value": value} for who, value in (("A", 3.0), ("B", 2.0)))
    held = b"x" * (200 << 20)  # what this process holds is no part of what its children took
    runs = side.alternate(
        module, Settings(quick, tmp_path), Path(sys.executable), ours, peer, keep=("chosen",), say=lambda _: None
    )
    assert log.read_text() == turns
    assert [each["tried"] for each in runs.ours] == [True, *[False] * (len(turns) // 2 - 1)]
    assert all(each["threads"] == ["2", "1"] and 1 < each["peak"] < 150 for each in (*runs.ours, *runs.peer))
    assert held[0]
    assert (part := runs.part("work", "things/s", "value", target=1.3)).ratio == 1.5 and part.met


def test_a_side_that_fails_says_why(module: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="KeyError: 'who'"):
        side.run(Path(sys.executable), module, "ours", {"log": str(tmp_path / "log")})


def test_medians_need_every_run() -> None:
    assert side.median([{"x": 1.0}, {"x": 9.0}, {"x": 2.0}], "x") == 2.0
    assert side.median([{"x": 1.0}, {"x": 2.0}], "x") == 1.5
    assert side.median([{"x": 1.0}, {}], "x") is None
    assert side.median([], "x") is None


def test_memory_leaves_out_the_run_that_tried() -> None:
    runs = Runs([{"peak": 900.0}, {"peak": 100.0}], [{"peak": 800.0}, {"peak": 200.0}])
    assert (runs.memory("memory").ours, runs.memory("memory").peer) == (100.0, 200.0)


@pytest.mark.parametrize(
    ("ours", "peer", "name"),
    [
        (["float32"], ["float32"], "work"),
        (["bfloat16"], ["bfloat16"], "work, both in bfloat16"),
        (["float32"], ["bfloat16"], "work, ours in float32, peer in bfloat16"),
        (["bfloat16"], [None], "work, ours in bfloat16, peer in float32"),
        (["bfloat16", "float32"], ["float32"] * 2, "work, ours in bfloat16 and float32, peer in float32"),
    ],
)
def test_a_part_names_the_precision_of_both_sides(ours: list[str], peer: list[str | None], name: str) -> None:
    """A side that names none computes in float32."""
    runs = Runs(*([{"precision": kind} if kind else {} for kind in side] for side in (ours, peer)))
    assert runs.part("work", "things/s", "value").name == name


@pytest.mark.parametrize(
    ("better", "ours", "peer", "holds", "target", "met"),
    [
        ("higher", 13.0, 10.0, "ratio", 1.3, True),
        ("higher", 12.9, 10.0, "ratio", 1.3, False),
        ("lower", 5.0, 10.0, "ratio", 0.5, True),
        ("lower", 5.1, 10.0, "ratio", 0.5, False),
        ("higher", 0.7, 0.9, "ours", 0.7, True),
        ("lower", 0.3, None, "ours", 0.25, False),
        ("lower", None, 10.0, "ratio", 0.5, False),
        ("higher", 1.0, None, "ratio", 0.5, False),
        ("higher", 1.0, 2.0, "ratio", None, None),
    ],
)
def test_a_target_is_met_or_missed(
    better: Any, ours: float | None, peer: float | None, holds: Any, target: float | None, met: bool | None
) -> None:
    assert Part("part", "unit", better, ours, peer, target, holds).met is met


HIT, MISSED = Part("a", "u", "higher", 2.0, 1.0, 1.5), Part("b", "u", "higher", 1.0, 1.0, 1.5)
SHOWN = Part("c", "u", "lower", 1.0, 1.0)


@pytest.mark.parametrize(
    ("parts", "met"), [([HIT, SHOWN], True), ([HIT, MISSED], False), ([MISSED, HIT], False), ([SHOWN], None)]
)
def test_met_only_if_every_part_is(parts: list[Part], met: bool | None) -> None:
    assert side.result("name", parts, {})["met"] is met


KEYS = ["name", "unit", "better", "ours", "peer", "ratio", "target", "met"]


def test_the_last_line_has_its_keys(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from bench import plan

    monkeypatch.setattr(plan, "measure", lambda settings: [HIT, MISSED, SHOWN])
    assert command.main(["plan", "--json", "--quick"]) == 1
    found: Mapping[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(found) == [*KEYS, "parts", "machine"]
    assert all(list(part) == KEYS for part in found["parts"])
    assert (found["name"], found["ours"], found["ratio"], found["met"]) == ("plan", 2.0, 2.0, False)
    assert set(found["machine"]) == {"date", "hardware", "threads", "versions", "quick", "float32"}
    assert str(Path.home()) not in json.dumps(found["machine"]) and side.platform.node() not in json.dumps(
        found["machine"]
    )


def test_a_record_replaces_the_table_and_keeps_what_was_written() -> None:
    machine = {
        "date": "2026-11-26",
        "hardware": "2 cores",
        "threads": 2,
        "versions": {},
        "quick": False,
        "float32": False,
    }
    once = command.recorded("", side.result("step", [MISSED], machine))
    noted = once + "\nMissed, because.\n"
    both = command.recorded(noted, side.result("dpo", [HIT], machine))
    again = command.recorded(both, side.result("step", [HIT], machine))
    assert again.count("<!-- bench: step -->") == again.count("<!-- bench: dpo -->") == 1
    assert "Missed, because." in again and "| b | u |" in both and "| b | u |" not in again


def test_the_list_names_every_bench(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(command.NAMES)
    assert all(len(line.split()) > 4 for line in lines)

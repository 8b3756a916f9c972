"""An endpoint that judges is asked as one under test is: within its budget, nothing twice, and what it does wrong is
`unknown` with its reason."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from endpoints import PROGRAM, gated

from tutelage.core.artifact import Root
from tutelage.core.errors import Stopped
from tutelage.core.records import Example
from tutelage.evaluate.further import Examination
from tutelage.evaluate.run import evaluate_reference
from tutelage.evaluate.suite import Suite
from tutelage.evaluate.ways import Asking


def talk(count: int, people: int = 12) -> list[Suite]:
    """Open-ended questions, and answers of others that people judged."""
    found = []
    for place in range(count + people):
        tags: dict[str, Any] = {"id": f"q{place}", "suite": "asked", "kind": "judged"}
        if place >= count:
            tags |= {"answer": "it is", "human": 0.6 + 0.2 * (place % 2) + 0.02 * (place % 3)}
        found.append(Example.ask(f"Is it so, number {place}?").model_copy(update={"tags": tags}))
    return [Suite("asked", found)]


def judging(there: Any, wrong: str, root: Root, count: int = 20, **settings: Any) -> dict[str, Any]:
    """A scripted model under test, judged by the endpoint, whose settings stand where those of any endpoint stand."""
    ref = f"{there[0]}/{wrong}/v1#judge"
    root.path.mkdir(parents=True, exist_ok=True)
    settings = {"retries": 0, "timeout": 0.3, "concurrency": 2, **settings}
    (root.path / "endpoints.yaml").write_text(json.dumps({ref: settings}))
    config = Examination(how=Asking(judge=f"prompted:{ref}"))
    return evaluate_reference("fake:say yes", talk(count), config, root=root)


def test_an_endpoint_that_judges_is_asked_as_one_under_test(there: Any, tmp_path: Path) -> None:
    there[1].clear()
    price, root = {"input": 10.0, "output": 100.0}, Root(tmp_path)
    with pytest.raises(Stopped, match=r"the budget of 0\.03 holds no further request"):
        judging(there, "good", root, price=price, budget=0.03, concurrency=1)
    paid = sum(there[1].values())
    assert 5 <= paid < 32
    found = judging(there, "good", root, price=price, budget=1.0)
    bill = found["judge_endpoint"]
    assert bill["kept"] == paid and bill["kept"] + bill["requests"] == 32 == sum(there[1].values())
    assert bill["cost"] == pytest.approx(32 * 0.002) and bill["models"] == ["m-2026"]
    assert [row.value for row in found["results"]] == [0.75, 1.0] * 10
    score = next(cell for cell in found["cells"] if cell["metric"] == "score")
    assert score["low"] < score["value"] < score["high"] < 0.95, "people gave less than the judge"
    assert judging(there, "good", root, price=price)["judge_endpoint"]["requests"] == 0
    again = judging(there, "good", root, price=price, fresh=True)["judge_endpoint"]
    assert (again["requests"], again["kept"]) == (32, 0)
    assert not [each for each in threading.enumerate() if each.name.startswith("remote")], "its threads have ended"


def test_a_judge_that_hangs_or_is_down_is_unknown_with_its_reason(there: Any, tmp_path: Path) -> None:
    found = judging(there, "one-hangs", Root(tmp_path / "one"))
    lost = [row for row in found["results"] if row.outcome == "unknown"]
    assert [row.item for row in lost] == ["q0"] and "no answer within 0.3 s" in lost[0].reason
    assert lost[0].output == "yes" and sum(row.value is not None for row in found["results"]) == 19
    found = judging(there, "errors", Root(tmp_path / "down"))
    assert {row.outcome for row in found["results"]} == {"unknown"}
    assert "the judge rubric has no opinion: error" in found["results"][0].reason
    assert "requests in a row failed, the last: status 500: out of memory" in found["results"][-1].reason
    assert not gated(found["results"]).promote


def test_other_forms_and_more_answers_are_judged_too(there: Any, tmp_path: Path) -> None:
    ref, root = f"{there[0]}/good/v1#judge", Root(tmp_path)
    config = Examination.model_validate(
        {
            "how": {"judge": f"prompted:{ref}"},
            "robustness": {"items": 4, "families": ["casing"]},
            "reliability": {"items": 3, "repeats": 2},
        }
    )
    found = evaluate_reference("fake:say yes", talk(6), config, root=root)
    assert found["perturbed"] and all(row.value is not None for row in found["perturbed"])
    drawn = next(each for each in found["reliability"]["consistency"] if each["suite"] == "asked")
    assert drawn["coverage"] == 1.0 and drawn["majority"]["value"] is not None


def test_killed_while_it_judges_nothing_is_judged_twice(there: Any, tmp_path: Path) -> None:
    suite, root = tmp_path / "own.jsonl", tmp_path / "life"
    rows = [item.model_dump(mode="json") for item in talk(40)[0].items]
    suite.write_text("\n".join(json.dumps({k: v for k, v in row.items() if v not in (None, [])}) for row in rows))
    root.mkdir()
    ref = f"{there[0]}/slow/v1#judge"
    (root / "endpoints.yaml").write_text(json.dumps({ref: {"concurrency": 2}}))
    there[1].clear()
    command = [sys.executable, "-c", PROGRAM, "evaluate", "fake:say yes", "--judge", f"prompted:{ref}"]
    command += ["--suite", str(suite), "--root", str(root)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while sum(there[1].values()) < 20 and first.poll() is None:
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    assert first.wait(20) == -signal.SIGKILL
    assert 20 <= sum(there[1].values()) < 52
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(there[1]) == 52 and sum(there[1].values()) <= 54, "only what was under way is asked again"
    assert "the judge: asked" in done.stdout and "kept from before" in done.stdout and "n=40" in done.stdout

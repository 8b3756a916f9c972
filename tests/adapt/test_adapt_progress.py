"""Stopped at any moment, a release and a turn of the wheel end as if nothing had happened, and do nothing twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql

sys.path.insert(0, str(Path(__file__).parent))
import struck

from tutelage.adapt.progress import Progress
from tutelage.core.artifact import Artifact, Root
from tutelage.core.errors import DataError
from tutelage.store import engine, releases, schema


class Stroke(BaseException):
    """An end that nothing catches."""


def fall() -> None:
    raise Stroke


def killed(kind: str, root: Root, point: str) -> int:
    """Run in a process of its own; it kills itself at a point."""
    command = [sys.executable, struck.__file__, kind, str(root.path), point]
    return subprocess.run(command, capture_output=True, timeout=120, check=False).returncode


def trail(root: Root) -> list[tuple[str, str, str]]:
    """What happened to releases: which one (by its number), its new state, who did it."""
    with engine.open(root) as store:
        number = {each.id: at for at, each in enumerate(releases.every(store))}
        return [(str(number[each.release]), each.after, each.actor) for each in releases.history(store)]


def served(root: Root) -> str:
    with engine.open(root) as store:
        live = releases.current(store)
        return live.bundle if live else ""


# what is kept


def test_a_step_is_done_once_and_read_back(tmp_path: Path) -> None:
    calls = []

    def make() -> dict[str, tuple[int, ...]]:
        calls.append(1)
        return {"a": (1, 2)}

    for _ in range(2):
        assert Progress(tmp_path).once("step", dict[str, tuple[int, ...]], make) == {"a": (1, 2)}
    assert len(calls) == 1
    with pytest.raises(Stroke):
        Progress(tmp_path).once("other", str, fall)  # type: ignore[arg-type,return-value]
    assert [each.name for each in tmp_path.iterdir()] == ["step.json"], "what was cut short is not kept"
    with pytest.raises(DataError, match="cannot be read") as error:
        Progress(tmp_path).once("step", list[int], list)
    assert error.value.file == tmp_path / "step.json" and "Remove the file" in str(error.value.todo)


# the release


@pytest.fixture
def offered(tmp_path: Path) -> Root:
    """A root that serves one bundle and is given a better one, whose figures are half a point higher."""
    root = Root(tmp_path / "root").create()
    struck.write_policy(root, struck.USEFUL)
    bare = "0" * 64
    old, new = (
        struck.seal(root, "bundle", {"bundle.json": json.dumps({"model": bare, "name": name})})
        for name in ("old", "new")
    )
    first = struck.rows(root, {bare: 0.0, old.id: 0.5})
    assert struck.release(root, [old.ref, *(each.ref for each in first.values())]).metrics["promoted"]
    second = struck.rows(root, {bare: 0.0, old.id: 0.5, new.id: 1.0})
    (root.path / struck.GIVEN).write_text(json.dumps([new.ref, *(each.ref for each in second.values())]))
    return root


def verdict(made: Artifact) -> tuple[str, dict[str, Any]]:
    told = json.loads(made.file("verdict.json").read_text())
    return told["against"], {each["id"]: each["figure"]["value"] for each in told["checks"]}


def test_a_release_that_was_stopped_is_promoted_once_and_judged_against_what_it_replaced(offered: Root) -> None:
    for point in struck.RELEASE.values():
        with pytest.raises(Stroke), struck.struck(point, fall):
            struck.release(offered)
    made = struck.release(offered)
    assert verdict(made) == ("the release now served", {"over_blocking": 0.0, "useful": 0.5}), "not against itself"
    first = [("0", "draft", "system"), ("0", "live", "life")]
    assert trail(offered) == [*first, ("1", "draft", "system"), ("1", "live", "life"), ("0", "retired", "life")]


def test_what_was_rolled_back_meanwhile_is_not_promoted_again(offered: Root) -> None:
    with pytest.raises(Stroke), struck.struck(struck.RELEASE["all is written but the seal"], fall):
        struck.release(offered)
    with engine.open(offered) as store:
        back = releases.rollback(store, actor="lea", reason="a person said so")
    assert struck.release(offered).metrics["promoted"]
    assert served(offered) == back.bundle


def test_a_killed_process_leaves_a_release_that_goes_on(offered: Root) -> None:
    assert killed("release", offered, "it is promoted, nothing is sealed") == -signal.SIGKILL
    new = served(offered)
    assert not [each for each in offered.list("release") if each.manifest.inputs["bundle"] == new]
    assert killed("release", offered, "") == 0
    (made,) = (each for each in offered.list("release") if each.manifest.inputs["bundle"] == new)
    assert verdict(made)[1]["useful"] == 0.5
    assert Counter(after for _, after, _ in trail(offered)) == {"draft": 2, "live": 2, "retired": 1}


# the turn of the wheel


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return struck.begun(tmp_path_factory.mktemp("begun"))


@pytest.fixture(scope="module")
def whole(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> Root:
    """The turn that nobody stopped."""
    root = struck.copy(begun, tmp_path_factory.mktemp("whole") / "root")
    assert struck.turn(root).metrics["promoted"], "or the rehearsal would rehearse nothing"
    return root


def story(root: Root) -> Any:
    """cycle.json with its bundles named: their ids follow from those of the reviews, which are random."""
    (made,) = root.list("cycle")
    text = made.file("cycle.json").read_text()
    told = json.loads(text)
    for name, each in told["candidates"].items():
        text = text.replace(each["bundle"], name)
    return json.loads(text), made.metrics


def counts(root: Root) -> dict[str, int]:
    """Rows of the store that a second attempt could double."""
    tables = ("draw", "task", "slot", "annotation", "drift", "release", "release_event", "person", "sample_policy")
    with engine.open(root) as store, store.read() as connection:
        found = {
            name: connection.execute(
                sql.select(sql.func.count()).select_from(schema.metadata.tables[name])
            ).scalar_one()
            for name in tables
        }
        states = connection.execute(sql.select(schema.slot.c.state)).scalars()
        return {**found, **Counter(f"slot {state}" for state in states)}


def sent(root: Root) -> Counter[str]:
    """How often each conversation of the world was sent."""
    with engine.open(root) as store, store.read() as connection:
        return Counter(connection.execute(sql.select(schema.request.c.conversation_id)).scalars())


def assert_equal(root: Root, whole: Root, kills_in_sending: int) -> None:
    assert story(root) == story(whole)
    assert counts(root) == counts(whole)
    assert trail(root) == trail(whole)
    often, once = sent(root), sent(whole)
    assert set(often) == set(once) and set(once.values()) == {1}
    doubled = sum(often.values()) - len(often)
    assert doubled <= 17 * kills_in_sending, "only what was under way is sent again, and what was struck itself"
    served_now = json.loads(root.list("cycle")[0].file("cycle.json").read_text())["candidates"]["retrained"]["bundle"]
    assert served(root) == served_now
    assert [each.name for each in root.work.iterdir() if each.is_dir()] == [], "nothing is left behind"


QUICK = (
    "the first week is being sent",
    "one reviewer has answered some",
    "guards are trained, no candidate is kept",
    "the better one is promoted",
    "the fresh week is being sent",
    "the rehearsal has gone back",
)


def test_a_turn_that_is_stopped_again_and_again_tells_the_same_story(begun: Path, whole: Root, tmp_path: Path) -> None:
    root = struck.copy(begun, tmp_path / "root")
    for name in QUICK:
        with pytest.raises(Stroke), struck.struck(struck.CYCLE[name], fall):
            struck.turn(root)
            pytest.fail(f"it never came to this: {name}")
    struck.turn(root)
    assert_equal(root, whole, 2)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_turn_that_is_killed_at_every_step_tells_the_same_story(begun: Path, whole: Root, tmp_path: Path) -> None:
    root = struck.copy(begun, tmp_path / "root")
    for name in struck.CYCLE:
        assert killed("cycle", root, name) == -signal.SIGKILL, name
    assert killed("cycle", root, "") == 0
    assert_equal(root, whole, 3)

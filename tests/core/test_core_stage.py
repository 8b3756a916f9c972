"""Stages and artifacts: skipped when made, sealed whole, refused when broken."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tutelage.core import events
from tutelage.core.artifact import Artifact, Root
from tutelage.core.config import Config
from tutelage.core.errors import Busy, ConfigError, CorruptArtifact, NoSpace, NotFound, TutelageError, UsageError
from tutelage.core.events import Event, Reporter
from tutelage.core.stage import Input, run_stage, stage
from tutelage.plan import LifeClock, Plan


class Count(Config):
    upto: int = 3
    """How far to count."""
    place: str = ""
    """Where; changes nothing."""

    OUTSIDE_KEY = frozenset({"place"})


RUNS: list[int] = []


@stage(makes="numbers", config=Count)
def count(config, inputs, out, context):
    """Count."""
    RUNS.append(config.upto)
    (out / "numbers.txt").write_text("\n".join(map(str, range(config.upto))))
    context.licence("cc0")
    context.used(["row-2", "row-1", "row-2"])
    return {"count": config.upto}


class Total(Config):
    pass


@stage(makes="total", config=Total, inputs={"numbers": Input(kind="numbers", default="count", many=True)})
def total(config, inputs, out, context):
    """Add up."""
    lines = [line for each in inputs.numbers for line in each.file("numbers.txt").read_text().split()]
    (out / "total.json").write_text(json.dumps(sum(map(int, lines))))
    return {}


@stage(makes="total", config=Total)
def wheel(config, inputs, out, context):
    """Count inside itself."""
    run_stage(count, context.root, config={"upto": 2}, say=context.say)
    context.say.progress(1, 1)
    return {"groups": {"right": 2}}


@pytest.fixture
def root(tmp_path: Path) -> Root:
    RUNS.clear()
    return Root(tmp_path / "life").create()


def test_equal_settings_run_once_and_leave_a_whole_artifact(root: Root) -> None:
    first, again = count(root, upto=4), count(root, upto=4, place="elsewhere")
    assert first.ref == again.ref and RUNS == [4]
    first.verify()
    manifest = first.manifest
    assert manifest.id == first.id and manifest.metrics == {"count": 4} and manifest.licences == ["cc0"]
    assert manifest.config == {"upto": 4} and "rows.parquet" in manifest.files
    assert not list(root.work.glob(f"{first.id}*")) and not (root.work / "out").exists()
    assert count(root, upto=5).id != first.id


def test_lineage_and_licences_travel(root: Root) -> None:
    parts = [count(root, upto=2), count(root, upto=3)]
    made = total(root, numbers=parts)
    assert made.manifest.parents() == [part.ref for part in parts]
    assert made.manifest.licences == ["cc0"]
    assert root.find(f"total:{made.id[:8]}").id == made.id


def test_the_id_leaves_out_when_and_where(root: Root, tmp_path: Path) -> None:
    one, other = count(root, upto=3), count(Root(tmp_path / "other").create(), upto=3)
    assert one.id == other.id
    assert set(one.manifest.made) == {"at", "seconds", "host", "code"}


def test_work_that_an_earlier_start_began_is_marked(root: Root) -> None:
    @stage(makes="kept", config=Total)
    def kept(config, inputs, out, context):
        file = context.work / "checkpoint"
        (out / "result").write_text("1")
        if not file.exists():
            file.write_text("half way")
            raise TutelageError("killed")
        return {}

    with pytest.raises(TutelageError, match="killed"):
        kept(root)
    assert kept(root).manifest.made["resumed"] is True
    assert "resumed" not in total(root, numbers=[count(root, upto=3)]).manifest.made


def test_a_wrong_input_is_named(root: Root) -> None:
    with pytest.raises(UsageError, match=r"total\.numbers.*kind total, wanted numbers"):
        total(root, numbers=[total(root, numbers=[count(root)])])
    with pytest.raises(NotFound, match=r"total\.numbers.*an input is missing"):
        total(root)
    with pytest.raises(NotFound, match="no artifact 'numbers:abcd1234'"):
        total(root, numbers=["numbers:abcd1234"])


def test_a_changed_file_is_found_and_named(root: Root) -> None:
    made = count(root, upto=3)
    file = made.path / "numbers.txt"
    file.chmod(0o600)
    file.write_text("1\n2\n9")
    with pytest.raises(CorruptArtifact, match=r"numbers\.txt.*differs from what was sealed\. Remove the folder"):
        total(root, numbers=[made])
    with pytest.raises(CorruptArtifact, match="does not match its id"):
        altered = Artifact(made.path)
        manifest = json.loads((made.path / "manifest.json").read_text())
        manifest["metrics"]["count"] = 99
        (made.path / "manifest.json").chmod(0o600)
        (made.path / "manifest.json").write_text(json.dumps(manifest))
        altered.verify()


def test_an_undefined_figure_is_refused(root: Root) -> None:
    @stage(makes="nothing", config=Total)
    def nothing(config, inputs, out, context):
        return {"loss": {"last": float("nan")}}

    with pytest.raises(TutelageError, match=r"metrics\.loss\.last is nan"):
        nothing(root)
    assert root.list("nothing") == []


def test_a_full_disk_is_one_clear_error_and_loses_nothing(root: Root) -> None:
    made = count(root, upto=3)

    @stage(makes="big", config=Total)
    def big(config, inputs, out, context):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(NoSpace, match=r"the disk is full.*run the same command again"):
        big(root)
    made.verify()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_really_full_device_is_said_so(root: Root) -> None:
    @stage(makes="big", config=Total)
    def big(config, inputs, out, context):
        with open("/dev/full", "w") as file:
            file.write("x" * 100_000)

    with pytest.raises(NoSpace):
        big(root)


def _hold(path: str, key: str, ready) -> None:
    with Root(path).lock(key):
        ready.set()
        time.sleep(30)


def test_two_runs_of_one_key_exclude_each_other_and_a_kill_frees_it(root: Root) -> None:
    fork = multiprocessing.get_context("spawn")
    ready = fork.Event()
    other = fork.Process(target=_hold, args=(str(root.path), "k" * 64, ready))
    other.start()
    try:
        assert ready.wait(20)
        with pytest.raises(Busy, match=rf"process {other.pid} is at work"), root.lock("k" * 64):
            pass
    finally:
        os.kill(other.pid, signal.SIGKILL)
        other.join()
    with root.lock("k" * 64):
        pass


def test_killed_between_files_it_starts_clean(root: Root, tmp_path: Path) -> None:
    program = tmp_path / "slow.py"
    program.write_text(
        textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from tutelage.core.config import Config
        from tutelage.core.stage import stage
        class Nothing(Config): pass
        @stage(makes="two", config=Nothing)
        def two(config, inputs, out, context):
            (out / "a").write_text("a")
            kept = context.work / "progress"
            before = int(kept.read_text()) if kept.exists() else 0
            kept.write_text(str(before + 1))
            print("half", flush=True)
            if len(sys.argv) > 2: time.sleep(60)
            (out / "b").write_text("b")
            return {"tries": before + 1}
        print(two(sys.argv[1]).ref)
        """)
    )
    victim = subprocess.Popen([sys.executable, program, root.path, "wait"], stdout=subprocess.PIPE, text=True)
    assert victim.stdout.readline() == "half\n"
    victim.kill()
    victim.wait()
    assert root.list("two") == []
    done = subprocess.run([sys.executable, program, root.path], capture_output=True, text=True, check=True)
    made = root.find(done.stdout.split()[-1])
    made.verify()
    assert made.metrics == {"tries": 2} and sorted(made.manifest.files) == ["a", "b"]


def test_progress_says_rate_and_eta(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Event] = []
    say = Reporter("pretrain", sinks=(heard.append,), every=0.0)
    clock = SimpleNamespace(time=time.time, monotonic=lambda: 0.0)
    monkeypatch.setattr(events, "time", clock)  # a real one goes on while a busy machine does something else
    for step in range(1, 6):
        clock.monotonic = lambda now=0.01 * step: now
        say.progress(step, 10, "steps", loss=1.0)
    last = heard[-1]
    assert last.rate == pytest.approx(100) and last.eta == pytest.approx(5 / 100)
    say.progress(10, 10, "steps")
    assert heard[-1].eta == 0


def test_a_stage_inside_another_says_so_and_neither_begins_nor_ends_it(root: Root) -> None:
    heard: list[Event] = []
    run_stage(wheel, root, say=Reporter("wheel@two", sinks=(heard.append,)))
    assert [(each.stage, each.part, each.kind) for each in heard] == [
        ("wheel@two", "", "start"),
        ("wheel@two", "count", "start"),
        ("wheel@two", "count", "done"),
        ("wheel@two", "", "progress"),
        ("wheel@two", "", "done"),
    ]
    assert heard[3].key == heard[0].key != heard[1].key
    assert len(heard[-1].figures) == 2 and 2 in heard[-1].figures.values(), "of groups alone, the first"
    assert all(" " in name for name in heard[-1].figures if name != "seconds"), "each by the name of its group too"
    clock = LifeClock(Plan.model_construct(stages=[], choices={}))
    for event in heard[:4]:
        clock(event)
    assert not clock.finished


def test_a_misspelt_setting_names_its_neighbour(root: Root) -> None:
    with pytest.raises(ConfigError, match=r"count\.upt.*unknown key\. Did you mean 'upto'"):
        run_stage(count, root, config={"upt": 3})

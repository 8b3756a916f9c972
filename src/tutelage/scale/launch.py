"""Several processes, one life: rank 0 runs the recipe, the others help in the stages that train a divided model.

Rank 0 does everything that one process does: it plans, holds the locks, writes logs, seals. Where it begins a stage of
SHARED it says so in the store that all ranks found at their start (torchrun's, or one that rank 0 holds), and the
others run the body of the same stage, up to the end of its training, on the same inputs. All need the same files, so
the root lies where every rank can read and write it.

    torchrun --nproc-per-node 2 -m tutelage run RECIPE        # on several machines also
    tutelage run RECIPE --ranks 2                             # on this one, with exit codes of its own
"""

from __future__ import annotations

import copy
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from tutelage.core import errors
from tutelage.core.artifact import Root
from tutelage.core.config import build
from tutelage.core.errors import TutelageError, UsageError
from tutelage.core.events import silent
from tutelage.core.stage import Body, Context, Inputs, Stage, never, open_inputs
from tutelage.plan import Examiner
from tutelage.recipe import Recipe, WatchConfig, stage_of

SHARED = ("pretrain", "finetune", "dpo")
"""The stages that several ranks train; rank 0 makes the others alone."""
GRACE = 20.0
"""Seconds that rank 0 has to end by itself, with an error of its own, when another rank has ended."""
GO_ON = "Run the same command to go on; where memory ran out, with fewer ranks"


# ------------------------------------------------------------------------------------------------ starting the ranks


def start(ranks: int, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run `tutelage ARGUMENTS` as so many processes on this machine; returns rank 0's exit code.

    When one rank ends, all do. Ctrl-C and SIGTERM go to rank 0, which writes a checkpoint and ends; so do the others.
    torchrun would do the same, but answers every failure with exit code 1 and a page of its own. Raises UsageError for
    more than two ranks a core: each wants a core and memory of its own.
    """
    cores = os.cpu_count() or 1
    most = max(4, 2 * cores)  # a few may always be tried out
    if ranks > most:
        todo = f"Give at most {most}; none is faster than one to a core"
        raise UsageError(f"{ranks} ranks are too many for {cores} cores", key="--ranks", todo=todo)
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(ranks)}
    common = {"TORCH_CPP_LOG_LEVEL": "ERROR", **environment, **meet}  # no page of torch's about each rank that ends
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tutelage", *arguments],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            start_new_session=True,  # a Ctrl-C of the terminal reaches rank 0 once, through us
        )
        for rank in range(ranks)
    ]
    leader, *others = processes

    def pass_on(number: int, frame: FrameType | None) -> None:
        leader.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while leader.poll() is None and not any(each.poll() for each in others):
            time.sleep(0.05)
        code = _ended(leader, GRACE)
        lost = next((rank for rank, each in enumerate(processes) if (each.poll() or 0) < 0), None)
        for each in others if code == 0 else ():
            _ended(each, GRACE)
    finally:
        for each in processes:
            if each.poll() is None:
                each.kill()
                each.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    if code is not None and code >= 0:
        return code
    which = "rank 0" if lost is None else f"rank {lost}"
    raise TutelageError(f"{which} was killed, and all ranks with it", todo=GO_ON)


def _ended(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


# --------------------------------------------------------------------------------------------------- one of the ranks


class Meeting:
    """What the ranks of one run have in common: a store of small messages, and who is who."""

    def __init__(self, store: Any, rank: int, ranks: int) -> None:
        self.store, self.rank, self.ranks = store, rank, ranks
        self.count = 0
        self._said = False

    def leads(self, recipe: Recipe) -> Recipe:
        """The recipe with those stages that the other ranks help in; the first of the others says that it is none."""
        sections = {
            name: section._replace(stage=(self._led if section.stage.name in SHARED else self._alone)(section.stage))
            for name, section in recipe.sections.items()
        }
        return recipe._replace(sections=sections)

    def _alone(self, stage: Stage) -> Stage:
        def body(config: Any, inputs: Inputs, out: Path, context: Context) -> Mapping[str, Any]:
            if not self._said:
                *most, last = SHARED
                context.say.note(
                    f"{self.ranks} ranks train {', '.join(most)} and {last}; the other stages are rank 0's"
                )
                self._said = True
            return stage.body(config, inputs, out, context)

        return _with(stage, body)

    def _led(self, stage: Stage) -> Stage:
        def body(config: Any, inputs: Inputs, out: Path, context: Context) -> Mapping[str, Any]:
            from tutelage.train.device import joined

            watch = dict(context.watch.settings) if context.watch else None
            task = {"stage": stage.name, "config": config.model_dump(mode="json"), "inputs": inputs.named()}
            self._say({**task, "key": context.key, "watch": watch})
            for rank in range(1, self.ranks):
                self._raise(self._wait(f"ready/{self.count}/{rank}", timedelta(minutes=10)))
            try:
                with joined(self.store, self.rank, self.ranks, f"group/{self.count}"):
                    return stage.body(config, inputs, out, context)
            except RuntimeError as error:
                self._explain(error)
                raise

        return _with(stage, body)

    def _say(self, message: Mapping[str, Any]) -> None:
        self.count += 1
        self.store.set(f"task/{self.count}", json.dumps(message))

    def _wait(self, name: str, longest: timedelta) -> dict[str, Any]:
        self.store.wait([name], longest)
        return dict(json.loads(self.store.get(name)))

    def _explain(self, error: RuntimeError) -> None:
        """Raise the error of the rank that ended, when a connection broke because of it."""
        end = time.monotonic() + 2
        while _broken(error) and time.monotonic() < end:
            if self.store.check(["failed"]):
                self._raise(json.loads(self.store.get("failed")))
            time.sleep(0.05)
        if _broken(error):
            raise TutelageError("another rank was killed, and all ranks with it", todo=GO_ON) from None

    def _raise(self, found: Mapping[str, Any]) -> None:
        """Raise another rank's error, as it described it; nothing where it had none."""
        if found:
            kind = getattr(errors, found["error"], TutelageError)
            error = kind.__new__(kind)
            where = {key: found.get(key) for key in ("file", "row", "key", "todo")}
            TutelageError.__init__(error, found["message"], **where)
            raise error from None

    def ends(self) -> None:
        """Tell the other ranks that there is nothing more to do."""
        self._say({})

    def helps(self, root: Root) -> None:
        """Do what rank 0 begins, until it ends."""
        while task := self._next():
            place = f"ready/{self.count}/{self.rank}"
            try:
                body = self._prepared(task, root)
                self.store.set(place, "{}")
                place = "failed"
                self._help(body)
            except TutelageError as error:  # rank 0 reports it
                self.store.set(place, json.dumps(error.as_dict()))
                raise SystemExit(error.exit_code) from None
            except RuntimeError as error:
                if _broken(error):  # rank 0 knows why
                    raise SystemExit(1) from None
                raise

    def _next(self) -> dict[str, Any]:
        self.count += 1
        try:
            return self._wait(f"task/{self.count}", timedelta(days=365))
        except RuntimeError:  # rank 0 held the store and has ended
            return {}

    def _prepared(self, task: Mapping[str, Any], root: Root) -> Callable[[Path], Any]:
        """The body of the stage that rank 0 begins, ready to run."""
        stage = stage_of(task["stage"])
        inputs = open_inputs(stage, root, task["inputs"])
        watch = None
        if task["watch"]:
            settings = dict(task["watch"])
            watch = Examiner(root.find(f"corpus:{settings.pop('corpus')}"), WatchConfig(**settings))
        context = Context(root, task["key"], silent(), never, watch)
        config = build(stage.config, task["config"])
        return lambda out: stage.body(config, inputs, out, context)

    def _help(self, body: Callable[[Path], Any]) -> None:
        from tutelage.train.device import joined
        from tutelage.train.parallel import Helped

        with (
            tempfile.TemporaryDirectory() as out,
            joined(self.store, self.rank, self.ranks, f"group/{self.count}"),
            suppress(Helped),
        ):
            body(Path(out))


def _with(stage: Stage, body: Body) -> Stage:
    """The same stage with another body."""
    found = copy.copy(stage)
    found.body = body
    return found


def meeting(root: Root) -> Meeting:
    """Meet the other ranks. Rank 0 comes back with the meeting; the others help until it ends, and end here."""
    from tutelage.train.device import meet

    found = Meeting(*meet())
    if found.rank == 0:
        return found
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # rank 0 decides when all end
    found.helps(root)
    raise SystemExit(0)


def _broken(error: RuntimeError) -> bool:
    """Whether this only says that another rank has ended."""
    return "peer" in str(error) or "onnection" in str(error)

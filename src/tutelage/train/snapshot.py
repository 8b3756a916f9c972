"""Training checkpoints that can always be loaded: written aside, fsynced, checksummed, renamed; no pickle.

A snapshot is a run's state at one step, copied in memory: what a rewind goes back to, and what a thread writes while
training goes on. A checkpoint is a folder `step-N` with `tensors.safetensors`, `state.json` and `checksums.json`, which
is written last.
A kill at any instant leaves the newest whole one and, beside it, at most a folder that is ignored and removed.

Where several ranks train, each writes what it holds into `tensors-RANK.safetensors`, and rank 0 the rest when all have;
`index.json` says per tensor its shape and (file, first row, row behind the last). Any number of ranks can go on from
there, each reading its rows. Ranks wait for each other's files and not in a collective: a thread writes.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from tutelage.core.artifact import atomic_write, disk_errors, sync_directory
from tutelage.core.errors import Stopped
from tutelage.core.events import Reporter
from tutelage.core.stage import never
from tutelage.train.batch import State
from tutelage.train.device import rank, ranks, shared
from tutelage.train.parallel import Part, Scattered, part_of

KEEP = 2
"""Checkpoints kept: the newest, and the one before in case the newest is damaged."""


def write(folder: Path, state: State, keep: int = KEEP, given_up: Callable[[], bool] = never) -> Path:
    """Write a checkpoint of `state["step"]` below `folder` and remove all but the newest `keep`.

    Raises NoSpace on a full disk, Stopped when another rank was waited for in vain; the checkpoints before are
    untouched.
    """
    target = folder / f"step-{state['step']:09d}"
    aside = folder / f".{target.name}"
    tensors: dict[str, Tensor | Part] = {}
    blobs = {"state.json": json.dumps(_split(state, "", tensors), sort_keys=True, allow_nan=True).encode()}
    with disk_errors(target), _or_nothing(aside):
        if ranks() == 1:
            shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True, exist_ok=True)
        written = [_write_tensors(aside, tensors)]
        if rank() > 0:
            return target
        if ranks() > 1:
            written += [_written(aside / f".part-{which}.json", given_up) for which in range(1, ranks())]
            blobs["index.json"] = json.dumps(_index(written), sort_keys=True).encode()
        sums = {each["file"]: each["sum"] for each in written}
        sums |= {name: hashlib.sha256(blob).hexdigest() for name, blob in blobs.items()}
        for name, blob in (*blobs.items(), ("checksums.json", json.dumps(sums).encode())):
            _write_through(aside / name, blob)
        sync_directory(aside)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(aside, target)
        sync_directory(folder)
    for old in found(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def _write_tensors(folder: Path, tensors: Mapping[str, Tensor | Part]) -> dict[str, Any]:
    """Write what this rank holds: {file, sum, parts {name: [first row, row behind the last, shape of the whole]}}."""
    name = "tensors.safetensors" if ranks() == 1 else f"tensors-{rank()}.safetensors"
    mine, parts = {}, {}
    for key, value in tensors.items():
        if isinstance(value, Part):
            mine[key] = value.tensor
            shape = [value.rows, *value.tensor.shape[1:]]
            parts[key] = [value.first, value.first + len(value.tensor), shape]
        elif rank() == 0:
            mine[key] = value
    blob = save({key: tensor.detach().cpu().contiguous() for key, tensor in mine.items()})
    _write_through(folder / name, blob)
    found = {"file": name, "sum": hashlib.sha256(blob).hexdigest(), "parts": parts}
    if rank() > 0:
        atomic_write(folder / f".part-{rank()}.json", json.dumps(found).encode())
    return found


def _written(file: Path, given_up: Callable[[], bool]) -> dict[str, Any]:
    """What another rank says it has written, once it has."""
    while not file.is_file():
        if given_up():
            raise Stopped("a checkpoint was not finished: another rank has ended")
        time.sleep(0.01)
    found: dict[str, Any] = json.loads(file.read_bytes())
    file.unlink()
    return found


def _index(written: list[dict[str, Any]]) -> dict[str, Any]:
    """Where the rows of every divided tensor lie: {name: {shape, parts [[file, first row, row behind the last]]}}."""
    found: dict[str, Any] = {}
    for each in written:
        for name, (first, stop, shape) in each["parts"].items():
            found.setdefault(name, {"shape": shape, "parts": []})["parts"].append([each["file"], first, stop])
    return found


def found(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first, whole or not."""
    return sorted(folder.glob("step-*"), reverse=True)


def latest(folder: Path, say: Reporter, check: Callable[[State], None] = lambda state: None) -> State | None:
    """The newest checkpoint that is whole; what is damaged, or refused by `check` with a ValueError, is said, removed
    and passed over."""
    damaged = False
    names = shared([path.name for path in found(folder)])[0]
    if rank() == 0:
        for aside in folder.glob(".step-*"):  # of a run that was killed
            shutil.rmtree(aside, ignore_errors=True)
    for name in names:
        path, state, fault = folder / name, {}, None
        try:
            state = read(path)
            check(state)
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, SafetensorError) as error:
            fault = str(error)
        if (fault := next(filter(None, shared(fault)), None)) is not None:
            say.note(f"the checkpoint {path.name} is damaged ({fault}); going back to the one before")
            if rank() == 0:
                shutil.rmtree(path, ignore_errors=True)
            damaged = True
            continue
        return state
    if damaged:
        say.note("no whole checkpoint is left: starting over")
    shared(None)
    return None


def read(path: Path) -> State:
    """Read one checkpoint; what several ranks wrote is checked here and read by rows where it is wanted.

    Raises ValueError when a file does not match its checksum; of several ranks each checks a share of the files.
    """
    sums = json.loads((path / "checksums.json").read_bytes())
    plain = path / "tensors.safetensors"
    tensors: dict[str, Any] = {}
    if plain.name in sums:
        tensors = load(_checked(plain, sums))
    else:
        for name in sorted(sums)[rank() :: ranks()]:
            _checked(path / name, sums)
        for key, entry in json.loads((path / "index.json").read_bytes()).items():
            parts = [(path / file, first, stop) for file, first, stop in entry["parts"]]
            tensors[key] = Scattered(key, entry["shape"], parts)
        with safe_open(path / "tensors-0.safetensors", framework="pt") as handle:
            whole = [key for key in handle.keys() if key not in tensors]  # noqa: SIM118 - not a mapping
            tensors |= {key: handle.get_tensor(key) for key in whole}
    state: State = json.loads(_checked(path / "state.json", sums))
    for key, tensor in tensors.items():
        *parents, last = key.split("\t")
        place = state
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = tensor
    return state


def _checked(path: Path, sums: Mapping[str, str]) -> bytes:
    blob = path.read_bytes()
    if hashlib.sha256(blob).hexdigest() != sums[path.name]:
        raise ValueError(f"{path.name} does not match its checksum")
    return blob


class Writer:
    """Writes checkpoints on a thread of its own, one at a time, while training goes on.

    What went wrong there (a full disk: NoSpace) is raised by the next `check`, `write` or `join`.

    Args:
        keep: checkpoints kept.
        sync: makes durable what a checkpoint refers to, before it.
    """

    def __init__(self, folder: Path, keep: int, sync: Callable[[], None]) -> None:
        self._folder, self._keep, self._sync = folder, keep, sync
        self._thread: threading.Thread | None = None
        self._failed: BaseException | None = None
        self._state: State | None = None
        self._given_up = threading.Event()

    def give_up(self) -> None:
        """Wait for no other rank any more: the run has ended."""
        self._given_up.set()

    @property
    def writing(self) -> State | None:
        """What is being written at this moment: not to be changed."""
        return self._state if self._thread and self._thread.is_alive() else None

    def write(self, state: State) -> None:
        """Begin to write a snapshot, once the one before is written."""
        self.join()
        self._state = state
        self._thread = threading.Thread(target=self._work, args=(state,), name="checkpoint")
        self._thread.start()

    def join(self) -> None:
        """Wait until nothing is being written."""
        self.wait()
        self.check()

    def wait(self) -> None:
        """`join` that raises nothing."""
        if self._thread:
            self._thread.join()

    def check(self) -> None:
        """Raise what went wrong in the thread, once."""
        error, self._failed = self._failed, None
        if error is not None:
            raise error

    def _work(self, state: State) -> None:
        try:
            with disk_errors(self._folder):
                self._sync()
            write(self._folder, state, self._keep, self._given_up.is_set)
        except BaseException as error:
            self._failed = error


class Places:
    """Where snapshots lie: at most two sets of tensors, the second while the first is being written."""

    def __init__(self) -> None:
        self._sets: list[State] = []

    @torch.no_grad()
    def copy(self, state: State, writing: State | None) -> State:
        """Copy groups of tensors by name into the set that is not `writing`; what is no tensor is taken as it is."""
        number = next((i for i, each in enumerate(self._sets) if not _same(each, writing)), len(self._sets))
        places = self._sets.pop(number) if number < len(self._sets) else {}
        copied: State = {}
        for group, tensors in state.items():
            copied[group] = {}
            for name, value in tensors.items():
                if isinstance(value, Tensor):
                    place = places[group][name] if places else torch.empty_like(value)
                    copied[group][name] = place.copy_(value)
                elif isinstance(value, Part):
                    place = places[group][name].tensor if places else torch.empty_like(value.tensor)
                    copied[group][name] = value._replace(tensor=place.copy_(value.tensor))
                else:
                    copied[group][name] = value
        self._sets.append(copied)
        return copied


def random_state() -> dict[str, Any]:
    """Every global random state of this process, as JSON values and tensors."""
    python = random.getstate()
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "python": [python[0], list(python[1]), python[2]],
        "numpy": [str(name), [int(key) for key in keys], int(position), int(has_gauss), float(gauss)],
    }
    if torch.cuda.is_available():
        state["cuda"] = [each.numpy().tobytes().hex() for each in torch.cuda.get_rng_state_all()]
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Go back to what `random_state` gave."""
    torch.set_rng_state(_bytes(state["torch"]))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([_bytes(each) for each in state["cuda"]])


def _same(places: State, writing: State | None) -> bool:
    return writing is not None and all(writing[group] is tensors for group, tensors in places.items())


@contextmanager
def _or_nothing(folder: Path) -> Iterator[None]:
    """Leave no half-written folder behind."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


def _split(state: Mapping[str, Any], prefix: str, tensors: dict[str, Tensor | Part]) -> dict[str, Any]:
    """The JSON part of a nested state; tensors go into `tensors`, their path joined by tabs."""
    plain: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, Tensor | Part):
            tensors[prefix + name] = part_of(value) if isinstance(value, Tensor) else value
        elif isinstance(value, Mapping):
            plain[name] = _split(value, f"{prefix}{name}\t", tensors)
        else:
            plain[name] = value
    return plain


def _write_through(path: Path, blob: bytes) -> None:
    with path.open("wb") as out:
        out.write(blob)
        out.flush()
        os.fsync(out.fileno())

"""Training checkpoints that can always be loaded: written aside, fsynced, checksummed, renamed; no pickle.

A snapshot is a run's state at one step, copied in memory: what a rewind goes back to, and what a thread writes while
training goes on. A checkpoint is a folder `step-N` with `tensors.safetensors`, `state.json` and `checksums.json`, which
is written last.
A kill at any instant leaves the newest whole one and, beside it, at most a folder that is ignored and removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tutelage.core.artifact import disk_errors, sync_directory
from tutelage.core.events import Reporter
from tutelage.train.batch import State

KEEP = 2
"""Checkpoints kept: the newest, and the one before in case the newest is damaged."""


def write(folder: Path, state: State, keep: int = KEEP) -> Path:
    """Write a checkpoint of `state["step"]` below `folder` and remove all but the newest `keep`.

    Raises NoSpace on a full disk; the checkpoints before are untouched.
    """
    target = folder / f"step-{state['step']:09d}"
    aside = folder / f".{target.name}"
    tensors: dict[str, Tensor] = {}
    plain = _split(state, "", tensors)
    with disk_errors(target), _or_nothing(aside):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        blobs = {
            "tensors.safetensors": save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}),
            "state.json": json.dumps(plain, sort_keys=True, allow_nan=True).encode(),
        }
        sums = {name: hashlib.sha256(blob).hexdigest() for name, blob in blobs.items()}
        for name, blob in (*blobs.items(), ("checksums.json", json.dumps(sums).encode())):
            _write_through(aside / name, blob)
        sync_directory(aside)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(aside, target)
        sync_directory(folder)
    for old in found(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def found(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first, whole or not."""
    return sorted(folder.glob("step-*"), reverse=True)


def latest(folder: Path, say: Reporter, check: Callable[[State], None] = lambda state: None) -> State | None:
    """The newest checkpoint that is whole; what is damaged, or refused by `check` with a ValueError, is said, removed
    and passed over."""
    damaged = False
    for path in found(folder):
        try:
            state = read(path)
            check(state)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            say.note(f"the checkpoint {path.name} is damaged ({error}); going back to the one before")
            shutil.rmtree(path, ignore_errors=True)
            damaged = True
            continue
        return state
    if damaged:
        say.note("no whole checkpoint is left: starting over")
    return None


def read(path: Path) -> State:
    """Read one checkpoint. Raises ValueError when a file does not match its checksum."""
    sums = json.loads((path / "checksums.json").read_bytes())
    blobs = {name: (path / name).read_bytes() for name in ("tensors.safetensors", "state.json")}
    for name, blob in blobs.items():
        if hashlib.sha256(blob).hexdigest() != sums[name]:
            raise ValueError(f"{name} does not match its checksum")
    state: State = json.loads(blobs["state.json"])
    for name, tensor in load(blobs["tensors.safetensors"]).items():
        *parents, last = name.split("\t")
        place = state
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = tensor
    return state


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
            write(self._folder, state, self._keep)
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


def _split(state: Mapping[str, Any], prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The JSON part of a nested state; tensors go into `tensors`, their path joined by tabs."""
    plain: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            tensors[prefix + name] = value
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

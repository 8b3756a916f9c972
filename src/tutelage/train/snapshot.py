"""Training checkpoints that can always be loaded: written aside, fsynced, checksummed, renamed; no pickle.

A checkpoint is a folder `step-N` with `tensors.safetensors`, `state.json` and `checksums.json`, which is written last.
A kill at any instant leaves the newest whole one and, beside it, at most a folder that is ignored and removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator, Mapping
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


def write(folder: Path, step: int, state: State, keep: int = KEEP) -> Path:
    """Write a checkpoint of `step` below `folder` and remove all but the newest `keep`.

    Raises NoSpace on a full disk; the checkpoints before are untouched.
    """
    target = folder / f"step-{step:09d}"
    aside = folder / f".{target.name}"
    tensors: dict[str, Tensor] = {}
    plain = _split(state, "", tensors)
    with disk_errors(target), _or_nothing(aside):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        blobs = {
            "tensors.safetensors": save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}),
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


def latest(folder: Path, say: Reporter) -> tuple[int, State] | None:
    """The newest checkpoint that is whole, as (step, state); what is damaged is said, removed and passed over."""
    damaged = False
    for path in found(folder):
        try:
            state = read(path)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            say.note(f"the checkpoint {path.name} is damaged ({error}); going back to the one before")
            shutil.rmtree(path, ignore_errors=True)
            damaged = True
            continue
        return int(path.name.removeprefix("step-")), state
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

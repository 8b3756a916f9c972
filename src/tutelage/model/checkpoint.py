"""Weights in and out, in Hugging Face's layout: `config.json`, safetensors (one file or shards), tokenizer files.

transformers, vLLM and llama.cpp load what `save` writes; `load` reads what they save. Nothing is pickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tutelage.core.artifact import Artifact, Manifest, Root, disk_errors, file_entries
from tutelage.core.errors import ConfigError, CorruptArtifact, MissingExtra, NotFound, UsageError
from tutelage.core.records import digest
from tutelage.corpus.catalog import Licence
from tutelage.model import foreign
from tutelage.model.heads import RewardModel
from tutelage.model.transformer import ARCHITECTURES, Decoder, DecoderConfig
from tutelage.tokens import tokenizer as tokenizers

Model = Decoder | RewardModel
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "added_tokens.json",
)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = 5_000_000_000
"""Bytes of a weights file before another one is begun, as in Hugging Face's files."""
ADAPTER = "adapter_config.json"
"""By which a folder in PEFT's layout is known."""


def save(
    model: Model,
    path: Path,
    tokenizer: Path | None = None,
    *,
    generation: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD,
) -> None:
    """Write a model into a folder, in Hugging Face's layout; the same weights give the same bytes.

    `tokenizer` is a folder whose tokenizer files are copied in; its special tokens then stand in
    `generation_config.json` (ends of an answer first), where `generation` may add or overrule. Weights of more than
    `shard_bytes` become several files and an index. Raises NoSpace.
    """
    decoder = model if isinstance(model, Decoder) else model.decoder
    settings: dict[str, Any] = {}
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        if isinstance(decoder, foreign.ForeignDecoder):
            tensors, config = {}, foreign.save(decoder, path, shard_bytes)
        else:
            tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in to_hf(decoder).items()}
            config = decoder.config.to_hf()
        if tokenizer is not None:
            for name in TOKENIZER_FILES:
                if (tokenizer / name).is_file():
                    shutil.copyfile(tokenizer / name, path / name)
            known = _fitting(tokenizer, decoder.config.vocab_size)
            settings = {"bos_token_id": known.bos, "eos_token_id": known.stops, "pad_token_id": known.pad}
            config |= settings | {"eos_token_id": known.eos}
        if isinstance(model, RewardModel):
            config |= decoder.config.to_hf("ForSequenceClassification") | {"id2label": {"0": "reward"}}
            config |= {"label2id": {"reward": 0}, "problem_type": "regression"}
            config |= {"likelihood": float(model.likelihood.detach())}
            tensors.pop("lm_head.weight", None)
            tensors["score.weight"] = model.head.weight.detach().to("cpu").contiguous()
        write_json(path / "config.json", config)
        if settings or generation:
            write_json(path / "generation_config.json", {**settings, **(generation or {})})
        if tensors:
            _write_tensors(tensors, path, shard_bytes)


def load(path: Path, device: torch.device | str = "cpu", head: str | None = None) -> Model:
    """Read a model from a folder in Hugging Face's layout, in fp32.

    Gives what was saved: a Decoder, or a RewardModel. `head="scalar"` puts a fresh scalar head on a plain model.
    An architecture that is not ours is opened through transformers, as `foreign.py` says. Raises NotFound, ConfigError
    (not a shape we know), CorruptArtifact (missing, extra, misshapen, unreadable or non-finite weights).
    """
    values = read_config(path)
    if values["model_type"] not in ARCHITECTURES:
        if head is not None:
            raise ConfigError(
                f"a reward model needs one of our architectures, not {values['model_type']!r}",
                file=path / "config.json",
                key="model_type",
                todo=f"There are: {', '.join(ARCHITECTURES)}",
            )
        return foreign.load(path).to(device)
    config = DecoderConfig.from_hf(values)
    scored = str((values.get("architectures") or [""])[0]).endswith("ForSequenceClassification")
    with torch.device("meta"):
        decoder = Decoder(config, seed=None)
    found = dict(_tensors(path))
    score = found.pop("score.weight", None)
    if scored and not config.tie_word_embeddings:  # such files leave the language head out
        found.setdefault("lm_head.weight", torch.zeros(config.vocab_size, config.hidden_size))
    decoder.load_state_dict(from_hf(found, decoder, path), assign=True)
    decoder.requires_grad_(True).to(device)
    if not scored and head is None:
        return decoder
    if head not in (None, "scalar"):
        raise UsageError(f"no head {head!r}, only 'scalar'")
    model = RewardModel(decoder, float(values.get("likelihood", 0.0)))
    if scored:
        if score is None or score.shape != model.head.weight.shape or not bool(score.isfinite().all()):
            raise CorruptArtifact("a reward model needs a score.weight with one row of finite numbers", file=path)
        with torch.no_grad():
            model.head.weight.copy_(score)
    return model


def load_decoder(path: Path, device: torch.device | str = "cpu") -> Decoder:
    """`load`, when a language model is expected; of a reward model its trunk."""
    model = load(path, device)
    return model if isinstance(model, Decoder) else model.decoder


def load_reward(path: Path, device: torch.device | str = "cpu") -> RewardModel:
    """`load`, when a scalar head is wanted: the stored one, or a fresh one on a plain model."""
    model = load(path, device, head="scalar")
    assert isinstance(model, RewardModel)
    return model


def read_object(file: Path, what: str) -> dict[str, Any]:
    """The JSON object in a file that tells of a `what`. Raises NotFound, CorruptArtifact."""
    if not file.is_file():
        raise NotFound(f"no {what} here", file=file)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptArtifact(f"not JSON: {error}", file=file) from None
    if not isinstance(values, dict):
        raise CorruptArtifact(f"the configuration of a {what} is a JSON object", file=file)
    return values


def read_config(path: Path) -> dict[str, Any]:
    """The content of `config.json` in a model folder."""
    file = path / "config.json"
    values = read_object(file, "model")
    kind = values.get("model_type")
    if not isinstance(kind, str) or (kind not in ARCHITECTURES and find_spec("transformers") is None):
        others = "others through transformers: .venv/bin/pip install -e '.[hf]'"
        raise ConfigError(
            f"the architecture {kind!r} is not supported",
            file=file,
            key="model_type",
            todo=f"Supported are {', '.join(ARCHITECTURES)}; {others}",
        )
    return values


def stop_ids(path: Path) -> list[int]:
    """The ids that end an answer, as `generation_config.json` or `config.json` names them; may be empty."""
    for name in ("generation_config.json", "config.json"):
        file = path / name
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
            if found is not None:
                return [found] if isinstance(found, int) else list(found)
    return []


def import_model(ref: str, root: Root | None, licence: Licence = "not-stated") -> Artifact:
    """Bring a Hugging Face directory or hub name under a root as a `model` artifact; the same files only once.

    `licence` is the class under which the weights were given. Raises UsageError for an unknown one, NotFound where
    there is no tokenizer, ConfigError for one with more tokens than the model.
    """
    if root is None:
        raise UsageError(f"importing {ref!r} needs a root", todo="Give --root")
    check_licence(licence)
    source = locate(ref)
    if (source / ADAPTER).is_file() and not (source / "config.json").is_file():
        raise UsageError("this is an adapter, no whole model", file=source, todo="Name its model with --base")
    decoder = load_decoder(source)
    _fitting(source, decoder.config.vocab_size)
    names = [*TOKENIZER_FILES, "config.json", "generation_config.json", WEIGHTS, INDEX, *_shards(source)]
    files = {name: entry.sha256 for name, entry in file_entries(source).items() if name in names}
    key = digest({"import": files} if licence == "not-stated" else {"import": files, "licence": licence})
    if (made := root.by_key(key)) is not None:
        return made
    folder = root.create().work / key / "out"
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        manifest = Manifest(
            kind="model",
            stage="import",
            version=1,
            config={"ref": ref if ref.startswith("hf:") else source.name},
            files=file_entries(folder),
            licences=[licence],
        )
        return root.seal(folder, manifest, key)


def _fitting(folder: Path, size: int) -> tokenizers.Tokenizer:
    """The tokenizer in a folder. ConfigError when it has more tokens than a model of so many."""
    found = tokenizers.load(folder)
    if found.size > size:
        message = f"the tokenizer has {found.size} tokens, the model only {size}"
        raise ConfigError(message, file=folder / "tokenizer.json", todo="Take both from the same model")
    return found


def check_licence(licence: str) -> None:
    """UsageError for what is no licence class."""
    if licence not in get_args(Licence):
        todo = f"One of: {', '.join(get_args(Licence))}"
        raise UsageError(f"{licence!r} is no licence class", key="licence", todo=todo)


def shape_of(path: Path) -> DecoderConfig:
    """The shape that a folder's `config.json` states; its weights need not be there. Raises NotFound, ConfigError."""
    values = read_config(path)
    return DecoderConfig.from_hf(values) if values["model_type"] in ARCHITECTURES else foreign.shape_of(path)


def locate(ref: str, files: Sequence[str] = ("*.json", "*.safetensors", "*.jinja")) -> Path:
    """The folder of `hf:org/name` (these files from the local hub cache, else downloaded) or of a directory."""
    name = ref.removeprefix("hf:")
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    if name == ref:
        raise NotFound("no such model folder", file=ref)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
    except ModuleNotFoundError:
        raise MissingExtra("huggingface_hub", "hf") from None
    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except HFValidationError as error:
        raise NotFound(f"{ref!r} is no name of a model: {error}") from None
    except RepositoryNotFoundError:
        raise NotFound(f"the hub has no model {name!r}, or not for you", todo="Check the name") from None
    except (HfHubHTTPError, OSError):
        problem = f"{ref!r} is not in this machine's cache, and the hub could not be reached"
        raise NotFound(problem, todo="Check the network, or give a local folder") from None


# ------------------------------------------------------------------------------- between our names and Hugging Face's


class Part(NamedTuple):
    """One of Hugging Face's tensors inside one of ours: how many rows, and whether its rows are rotated in pairs."""

    name: str
    rows: int
    rotary: bool = False


def parts(name: str, rows: int, config: DecoderConfig) -> list[Part]:
    """What our tensor `name` of so many rows is made of."""
    outer = name if name.startswith("lm_head") else f"model.{name}"
    if ".qkv_proj." in name:
        split = zip("qkv", config.qkv_sizes, (True, True, False), strict=True)
        return [Part(outer.replace("qkv_proj", f"{letter}_proj"), size, rotary) for letter, size, rotary in split]
    if ".gate_up_proj." in name:
        return [Part(outer.replace("gate_up", each), rows // 2) for each in ("gate", "up")]
    return [Part(outer, rows, rotary=name.endswith(("q_norm.weight", "k_norm.weight")))]


def to_hf(decoder: Decoder, paired: bool = False) -> dict[str, Tensor]:
    """The decoder's weights under Hugging Face's names, in its order of rotary dimensions; `paired`: in ours."""
    result, half = {}, decoder.config.head_dim // 2
    for name, tensor in decoder.state_dict().items():
        pieces = parts(name, len(tensor), decoder.config)
        for part, piece in zip(pieces, tensor.split([part.rows for part in pieces]), strict=True):
            result[part.name] = swap(piece, half, 2) if part.rotary and not paired else piece
    return result


def from_hf(tensors: Mapping[str, Tensor], decoder: Decoder, path: Path | None = None) -> dict[str, Tensor]:
    """The way back: a state in fp32 for `decoder` (which may be on the meta device). Raises CorruptArtifact."""
    left, state, half = dict(tensors), {}, decoder.config.head_dim // 2
    for name, like in decoder.state_dict().items():
        pieces = []
        for part in parts(name, len(like), decoder.config):
            tensor, shape = left.pop(part.name, None), (part.rows, *like.shape[1:])
            if tensor is None:
                raise CorruptArtifact(f"the tensor {part.name} is missing", file=path)
            if tensor.shape != shape:
                raise CorruptArtifact(f"the tensor {part.name} has shape {tuple(tensor.shape)}, not {shape}", file=path)
            if not bool(tensor.isfinite().all()):
                raise CorruptArtifact(f"the tensor {part.name} holds values that are not finite", file=path)
            pieces.append(swap(tensor.float(), 2, half) if part.rotary else tensor.float())
        state[name] = torch.cat(pieces)
    extra = sorted(name for name in left if not name.endswith("rotary_emb.inv_freq") and name != "lm_head.weight")
    if extra:
        raise CorruptArtifact(f"the tensor {extra[0]} does not belong to this model", file=path)
    return state


def swap(x: Tensor, outer: int, inner: int) -> Tensor:
    """Reorder the rows of every head: rotary pairs stand side by side with us, half a head apart in their files.

    (D / 2, 2) leads to their order, (2, D / 2) back.
    """
    return x.view(-1, outer, inner, *x.shape[1:]).transpose(1, 2).reshape(x.shape)


def _shards(path: Path) -> list[str]:
    if not (path / INDEX).is_file():
        return []
    try:
        return sorted(set(json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise CorruptArtifact(f"not an index of shards: {error}", file=path / INDEX) from None


def _write_tensors(tensors: Mapping[str, Tensor], path: Path, shard_bytes: int) -> None:
    """One file, or shards and their index; a tensor is never cut. What the folder held of another cut is removed."""
    shards: list[dict[str, Tensor]] = [{}]
    room = shard_bytes
    for name, tensor in sorted(tensors.items()):
        if shards[-1] and tensor.nbytes > room:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = tensor
        room -= tensor.nbytes
    names = [f"model-{place:05}-of-{len(shards):05}.safetensors" for place in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [WEIGHTS]
    for old in {INDEX, WEIGHTS, *_shards(path)} - set(names):
        (path / old).unlink(missing_ok=True)
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, path / name, metadata={"format": "pt"})
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        where = {each: name for name, shard in zip(names, shards, strict=True) for each in shard}
        write_json(path / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    names = [WEIGHTS] if (path / WEIGHTS).is_file() else _shards(path)
    if not names:
        raise NotFound("no safetensors weights here", file=path, todo="Convert older formats with transformers first")
    for name in names:
        file = path / name
        if not file.is_file() or Path(name).name != name:
            raise CorruptArtifact("the file is missing", file=file)
        yield from read_tensors(file)


def read_tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a safetensors file with its name. Raises CorruptArtifact."""
    try:
        with safe_open(file, framework="pt") as handle:
            for key in handle.keys():  # noqa: SIM118 - not a mapping
                yield key, handle.get_tensor(key)
    except SafetensorError as error:
        raise CorruptArtifact(f"not readable as safetensors: {error}", file=file) from None


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """A JSON object, its keys sorted."""
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")

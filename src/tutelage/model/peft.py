"""Adapters in and out in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`; and beside them
`base.json`, which says for which weights.

PEFT loads what `save_adapter` writes onto the model in transformers; `load_adapter` reads what PEFT saves. What is
more than plain LoRA on the matrices of the blocks (DoRA, whole modules, other ranks here and there) is refused by name.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tutelage.core import refs
from tutelage.core.artifact import Artifact, Manifest, Root, disk_errors, file_entries, file_hash
from tutelage.core.errors import ConfigError, CorruptArtifact, NotFound, UsageError
from tutelage.core.records import digest
from tutelage.corpus.catalog import Licence
from tutelage.model.checkpoint import (
    ADAPTER,
    check_licence,
    load_decoder,
    locate,
    read_object,
    read_tensors,
    save,
    swap,
    to_hf,
    write_json,
)
from tutelage.model.lora import TARGETS, Lora, adapt, adapters, below, merge
from tutelage.model.transformer import Decoder

TENSORS = "adapter_model.safetensors"
BASE = "base.json"
"""Beside the files that PEFT reads: which weights the adapter was made for, by name and digest."""
RIGHT = "Give the model that the adapter was made for"
FOLDER = "adapter"
"""Where an adapter lies inside the model that it was merged into."""
MORE = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "layers_to_transform",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
)
"""Keys of PEFT's configuration that, when set, make something other than `Lora` of an adapter."""


def save_adapter(decoder: Decoder, path: Path, base: str = "", score: Tensor | None = None) -> None:
    """Write the adapter of an adapted decoder into a folder; the same adapter gives the same bytes.

    `base` names the model it was made for; by the digest in `BASE` its weights are known again. `score` [1, width] is
    the head of a reward model, which PEFT keeps beside the adapter of a sequence classification. Raises UsageError
    without an adapter, NoSpace.
    """
    found = adapters(decoder)
    if not found:
        raise UsageError("this model has no adapter")
    half = decoder.config.head_dim // 2
    tensors = {name: swap(tensor, half, 2) if rotary else tensor for name, tensor, rotary in _named(decoder)}
    if score is not None:
        tensors["base_model.model.score.weight"] = score
    settings = next(iter(found.values())).settings
    config = {
        "alpha_pattern": {},
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": int(settings.alpha) if settings.alpha == int(settings.alpha) else settings.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None if score is None else ["score"],
        "peft_type": "LORA",
        "r": settings.rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": [name for name in TARGETS if name in settings.targets],
        "task_type": "CAUSAL_LM" if score is None else "SEQ_CLS",
        "use_dora": False,
        "use_rslora": settings.rslora,
    }
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / ADAPTER, config)
        plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in sorted(tensors.items())}
        save_file(plain, path / TENSORS, metadata={"format": "pt"})
        write_json(path / BASE, {"name": base, "sha256": weights_digest(decoder)})


def load_adapter(path: Path, base: Decoder) -> Decoder:
    """`base` with the adapter of a folder in PEFT's layout; `base` itself stays as it is.

    Raises NotFound, ConfigError (not plain LoRA, unknown targets), UsageError (it says that it was made for other
    weights), CorruptArtifact (missing, extra, misshapen, unreadable or non-finite tensors).
    """
    values = read_adapter(path)
    file = path / TENSORS
    if not file.is_file():
        todo = "Save it with PEFT's safe_serialization" if (path / "adapter_model.bin").is_file() else None
        raise NotFound("the adapter's tensors are missing", file=file, todo=todo)
    left = dict(read_tensors(file))
    if (made_for := base_of(path)) and made_for != weights_digest(base):
        named = values.get("base_model_name_or_path") or "another one"
        raise UsageError(f"this adapter was made for other weights, those of {named}", file=file, todo=RIGHT)
    adapted = adapt(base, _settings(values, left, path / ADAPTER))
    half = base.config.head_dim // 2
    for name, mine, rotary in _named(adapted):
        tensor = left.pop(name, None)
        if tensor is None:
            raise CorruptArtifact(f"the tensor {name} is missing", file=file)
        if tensor.shape != mine.shape:
            raise CorruptArtifact(
                f"the tensor {name} has shape {tuple(tensor.shape)}, this model needs {tuple(mine.shape)}",
                file=file,
                todo=RIGHT,
            )
        if not bool(tensor.isfinite().all()):
            raise CorruptArtifact(f"the tensor {name} holds values that are not finite", file=file)
        tensor = tensor.to(mine)
        with torch.no_grad():
            mine.copy_(swap(tensor, 2, half) if rotary else tensor)
    if left:
        raise CorruptArtifact(f"the tensor {min(left)} does not belong to this model", file=file, todo=RIGHT)
    return adapted


def weights_digest(decoder: Decoder) -> str:
    """sha256 (hex) of a decoder's weights under Hugging Face's names, whichever way they lie in files; of an adapted
    one, those of the model below it."""
    total = hashlib.sha256()
    for name, tensor in sorted(to_hf(below(decoder)).items()):
        total.update(f"{name}{tuple(tensor.shape)}".encode())
        total.update(tensor.detach().to("cpu", torch.float32).contiguous().view(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def base_of(path: Path) -> str:
    """The digest of the weights that the adapter in a folder was made for; empty where its maker wrote none."""
    return str(read_object(path / BASE, "base").get("sha256", "")) if (path / BASE).is_file() else ""


def read_adapter(path: Path) -> dict[str, Any]:
    """The content of `adapter_config.json`. Raises NotFound, CorruptArtifact, and ConfigError for more than LoRA."""
    file = path / ADAPTER
    values = read_object(file, "adapter")
    if values.get("peft_type") != "LORA":
        raise ConfigError(f"an adapter of type {values.get('peft_type')!r} is not LoRA", file=file, key="peft_type")
    todo = "Merge it with PEFT, and import the merged model"
    if values.get("bias", "none") != "none":
        raise ConfigError("an adapter with biases of its own is not supported", file=file, key="bias", todo=todo)
    for key in MORE:
        if values.get(key):
            raise ConfigError("this is more than plain LoRA and not supported", file=file, key=key, todo=todo)
    return values


def _settings(values: Mapping[str, Any], tensors: Mapping[str, Tensor], file: Path) -> Lora:
    rank, alpha, named = values.get("r"), values.get("lora_alpha"), values.get("target_modules")
    for key, value in (("r", rank), ("lora_alpha", alpha)):
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ConfigError(f"expected a number above 0, found {value!r}", file=file, key=key)
    if isinstance(named, str):  # a pattern, or `all-linear`: the tensors say which matrices it met
        named = sorted({name.split(".")[-3] for name in tensors if name.endswith("lora_A.weight")})
    if not isinstance(named, list) or not named:
        raise ConfigError("no target modules", file=file, key="target_modules")
    targets = {str(name).rpartition(".")[2] for name in named}
    if unknown := sorted(targets - set(TARGETS)):
        raise ConfigError(
            f"no matrix of a block is called {unknown[0]!r}",
            file=file,
            key="target_modules",
            todo=f"Adapters may be on: {', '.join(TARGETS)}",
        )
    return Lora(int(rank or 0), float(alpha or 0), tuple(sorted(targets)), bool(values.get("use_rslora")))


def _named(decoder: Decoder) -> Iterator[tuple[str, Tensor, bool]]:
    """PEFT's name of every A and B, our tensor, and whether its rows are rotated in pairs."""
    for name, layer in adapters(decoder).items():
        for pair in layer.pairs():
            outer = f"base_model.model.model.{name.rpartition('.')[0]}.{pair.target}"
            yield f"{outer}.lora_A.weight", pair.a, False
            yield f"{outer}.lora_B.weight", pair.b, pair.target in ("q_proj", "k_proj")


def import_adapter(ref: str, root: Root, base: str, licence: Licence = "not-stated") -> Artifact:
    """Bring an adapter (a folder or hub name) under a root as a `model` artifact: merged into `base`, which is its
    input. The adapter itself lies beside it in `adapter/`; the same files only once. Metric `base_known` says whether
    the adapter told which weights it was made for, so that these could be compared.

    Raises UsageError, and what `load_adapter` raises.
    """
    check_licence(licence)
    source = locate(ref)
    read_adapter(source)
    under = refs.resolve_artifact(base, root)
    if under.kind != "model":
        raise UsageError(f"{under.ref[:24]} is of kind {under.kind}, an adapter belongs to a model", key="--base")
    names = [name for name in (ADAPTER, TENSORS, BASE) if (source / name).is_file()]
    files = {name: file_hash(source / name) for name in names}
    key = digest({"import": files, "base": under.ref, "licence": licence})
    if (made := root.by_key(key)) is not None:
        return made
    adapted = load_adapter(source, load_decoder(under.path))
    folder = root.create().work / key / "out"
    tokenizer = under.path if (under.path / "tokenizer.json").is_file() else None
    with disk_errors(folder):
        save(merge(adapted), folder, tokenizer)
        (folder / FOLDER).mkdir(exist_ok=True)
        for name in names:
            shutil.copyfile(source / name, folder / FOLDER / name)
        if (under.path / "generation_config.json").is_file():
            shutil.copyfile(under.path / "generation_config.json", folder / "generation_config.json")
        manifest = Manifest(
            kind="model",
            stage="import",
            version=1,
            config={"ref": ref if ref.startswith("hf:") else source.name},
            inputs={"base": under.ref},
            files=file_entries(folder),
            metrics={"base_known": bool(base_of(source))},
            licences=sorted({licence, *under.manifest.licences}),
            simulated=under.manifest.simulated,
        )
        return root.seal(folder, manifest, key)

"""Published checkpoint formats to our models and back, strictly: every tensor is accounted for, every shape checked.

The state-spaces layout: config.json beside pytorch_model.bin (or model.safetensors with the same names). One file may
mix float16 and float32. `vocab_size` is unpadded, the embedding's rows are padded to `pad_vocab_size_multiple`.
"""
from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import torch

from mamba_mi.config import UserError
from mamba_mi.models import mamba1, mamba2

LAYERS = {"Mamba1": mamba1, "Mamba2": mamba2}
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
UNBUILT = {"d_intermediate": 0, "attn_layer_idx": [], "attn_cfg": {}}  # what other values would mean is not built


def read_config(folder: Path) -> tuple[ModuleType, object]:
    """The variant's module and its Config, from a folder's config.json."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: no config.json; a state-spaces checkpoint is a folder with config.json and "
                        f"{' or '.join(WEIGHTS)}")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not valid JSON ({e})") from None
    return parse_config(raw, str(path))


def parse_config(raw: Mapping, where: str = "config") -> tuple[ModuleType, object]:
    """The variant's module and its Config from a published config mapping; what is not built raises."""
    if not isinstance(raw, Mapping) or not {"d_model", "n_layer", "vocab_size"} <= set(raw):
        kind = f"model_type={raw['model_type']!r}" if isinstance(raw, Mapping) and "model_type" in raw else "no d_model"
        raise UserError(f"{where}: not a state-spaces config ({kind}); it needs d_model, n_layer, vocab_size and ssm_cfg")
    for key, plain in UNBUILT.items():
        if raw.get(key, plain) not in (plain, None):
            raise UserError(f"{where}: {key}={raw[key]!r} is not built (only {plain!r}): MLP and attention layers of "
                            "hybrid checkpoints cannot be loaded yet")
    if raw.get("rms_norm", True) is not True:
        raise UserError(f"{where}: rms_norm={raw['rms_norm']!r} is not built; published checkpoints use RMSNorm")
    if not isinstance(raw.get("ssm_cfg") or {}, Mapping):
        raise UserError(f"{where}: ssm_cfg={raw['ssm_cfg']!r} is not a mapping such as {{\"layer\": \"Mamba2\"}}")
    ssm = dict(raw.get("ssm_cfg") or {})
    layer = ssm.pop("layer", "Mamba1")
    if not isinstance(layer, str) or layer not in LAYERS:
        raise UserError(f"{where}: ssm_cfg.layer={layer!r} is not built; there are {', '.join(LAYERS)}")
    module = LAYERS[layer]
    if unknown := sorted(set(ssm) - module.SSM_KEYS):
        raise UserError(f"{where}: ssm_cfg has {', '.join(f'{k}={ssm[k]!r}' for k in unknown)}, not built for {layer}; "
                        f"known keys are {', '.join(sorted(module.SSM_KEYS))}")
    return module, _sized(module, raw, ssm, where)


def _sized(module, raw, ssm, where):
    sizes = {key: raw[key] for key in ("d_model", "n_layer", "vocab_size")}
    multiple, tied = raw.get("pad_vocab_size_multiple", 8), raw.get("tie_embeddings", True)
    if not isinstance(tied, bool):
        raise UserError(f"{where}: tie_embeddings={tied!r} is neither true nor false")
    _check_sizes(sizes | {"pad_vocab_size_multiple": multiple} | ssm, where)
    padded = -(-sizes["vocab_size"] // multiple) * multiple
    config = module.Config.of(sizes | {"padded_vocab": padded, "tie_embeddings": tied}, ssm)
    if module is mamba2 and (config.d_inner % config.headdim or config.heads % config.ngroups):
        raise UserError(f"{where}: inner width {config.d_inner} does not split into heads of {config.headdim} "
                        f"in {config.ngroups} groups")
    return config


def _check_sizes(sizes: Mapping, where: str) -> None:
    for key, value in sizes.items():
        if key == "dt_limit":
            if not _is_range(value):
                raise UserError(f"{where}: dt_limit={value!r} is not a range [low, high] with 0 <= low < high")
        elif (key, value) != ("dt_rank", "auto") and (type(value) is not int or value < 1):
            raise UserError(f"{where}: {key}={value!r} is not a size: it must be a whole number, at least 1")


def _is_range(value) -> bool:
    try:
        low, high = (float(x) for x in value)
    except (TypeError, ValueError):
        return False
    return 0 <= low < high


def weights_file(folder: Path) -> Path:
    """The folder's weights; safetensors first."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: no weights; expected {' or '.join(WEIGHTS)}, found "
                    f"{', '.join(sorted(p.name for p in folder.iterdir())) or 'nothing'}")


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors by their published names; never executes what a pickle asks for."""
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    with open(path, "rb") as f:
        is_zip = f.read(4) == b"PK\x03\x04"
    if not is_zip:
        raise UserError(f"{path}: truncated or not a torch checkpoint (a zip archive since torch 1.6); download it again")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as e:
        why = "Weights only load failed" in str(e)
        raise UserError(f"{path}: refused, it holds more than tensors (weights_only=True), and loading it could run code"
                        if why else f"{path}: not a torch checkpoint ({_first_line(e)})") from None
    except Exception as e:  # a damaged file leads the reader into errors of any kind
        raise UserError(f"{path}: truncated or not a torch checkpoint ({_first_line(e)}); download it again") from None
    if not isinstance(weights, dict) or not all(
            isinstance(name, str) and isinstance(x, torch.Tensor) for name, x in weights.items()):
        raise UserError(f"{path}: expected a mapping of names to tensors, found {type(weights).__name__}")
    return weights


def _read_safetensors(path):
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as e:
        raise UserError(f"{path}: truncated or not a safetensors file ({_first_line(e)}); download it again") from None


def fill(lm, weights: Mapping[str, torch.Tensor], where: Path, dtype: torch.dtype, device: str) -> None:
    """Give a model built on the meta device its weights; missing, unexpected and misshapen tensors raise, all named."""
    ours = {_their_name(name): x for name, x in lm.state_dict().items()}
    theirs = dict(weights)
    head = theirs.pop("lm_head.weight", None) if lm.config.tie_embeddings else None
    missing, unexpected = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
    if missing or unexpected:
        raise UserError(f"{where}: tensors do not fit a {lm.config.variant} of {lm.config.n_layer} layers: "
                        f"missing {_some(missing)}; unexpected {_some(unexpected)}")
    wrong = [f"{name} is {tuple(theirs[name].shape)}, config says {tuple(x.shape)}"
             for name, x in ours.items() if theirs[name].shape != x.shape]
    if wrong:
        raise UserError(f"{where}: {_some(wrong)}")
    if head is not None and not torch.equal(head, theirs["backbone.embedding.weight"]):
        raise UserError(f"{where}: lm_head.weight differs from the embedding, but the config ties them (tie_embeddings)")
    precise = torch.promote_types(dtype, torch.float32)
    # one tensor at a time, so that a large checkpoint is never held twice
    lm.load_state_dict({n: theirs.pop(_their_name(n)).to(device, precise if _is_precise(lm, n) else dtype, copy=True)
                        for n in lm.state_dict()}, assign=True)


def cast(lm, dtype: torch.dtype, device: str) -> None:
    """Move a model, its matrices in `dtype`; what is exponentiated or normalised stays in at least float32."""
    precise = torch.promote_types(dtype, torch.float32)
    for name, parameter in lm.named_parameters():
        parameter.data = parameter.data.to(device, precise if _is_precise(lm, name) else dtype)


def _is_precise(lm, name: str) -> bool:
    inner = name.split(".", 2)[2] if name.startswith("layers.") else name
    return inner in ("norm_f.weight", *lm.layers[0].float32_parameters)


def _their_name(name: str) -> str:
    if name == "lm_head.weight":
        return name
    parts = name.split(".", 2)
    if parts[0] == "layers" and not parts[2].startswith("norm."):
        name = f"layers.{parts[1]}.mixer.{parts[2].replace('gated_norm.', 'norm.')}"
    return f"backbone.{name}"


def _some(items, most: int = 4) -> str:
    return (", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")) or "none"


def _first_line(e: Exception) -> str:
    return (str(e).splitlines() or [""])[0][:160]


def fingerprint(path: Path) -> str:
    """sha256 of the weights' bytes."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def save(lm, folder: str | Path) -> None:
    """Write the model in the state-spaces layout, as config.json and model.safetensors, with its tokenizer.json."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {_their_name(n): x.detach().cpu().contiguous() for n, x in lm.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(published_config(lm.config), indent=1) + "\n")
    if lm.tokenizer is not None:
        lm.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))


def published_config(config) -> dict:
    """The config.json of the state-spaces layout, with every size written out."""
    sizes = asdict(config)
    layer = next(name for name, module in LAYERS.items() if isinstance(config, module.Config))
    ssm = {"layer": layer} | {k: sizes[k] for k in sizes if k in LAYERS[layer].SSM_KEYS and k != "dt_limit"}
    if config.variant == "mamba2" and config.dt_limit != mamba2.Config.dt_limit:
        ssm["dt_limit"] = list(config.dt_limit)
    return {"d_model": config.d_model, "d_intermediate": 0, "n_layer": config.n_layer, "vocab_size": config.vocab_size,
            "ssm_cfg": ssm, "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": True, "residual_in_fp32": True,
            "fused_add_norm": True, "pad_vocab_size_multiple": _multiple(config), "tie_embeddings": config.tie_embeddings}


def _multiple(config) -> int:
    return next(m for m in (16, 8, config.padded_vocab) if -(-config.vocab_size // m) * m == config.padded_vocab)

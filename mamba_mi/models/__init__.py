"""Models by name, folder or hub id: `lm = load("tiny")`, `load("path/to/folder")`, `load("state-spaces/mamba-130m-hf")`.

`load` keeps the last model, so the jobs of a sweep in one process share it; the old one is freed first.
"""
from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch

from mamba_mi import backends
from mamba_mi.config import UserError, did_you_mean, stream
from mamba_mi.models import checkpoints, hub, state_spaces, variants
from mamba_mi.models.checkpoints import save
from mamba_mi.models.lm import LM, Past
from mamba_mi.models.mixer import LayerNorm
from mamba_mi.models.tokenizer import load_tokenizer

__all__ = ["LM", "Past", "blank", "device_of", "dtype_of", "fresh", "load", "save", "sized", "with_site"]

EMBEDDED = variants.embedded()
RECIPES = variants.recipes()  # untrained: `blank` alone takes them
HUB = variants.published()
DTYPES = ("float32", "float64", "bfloat16", "float16")

_last: dict[tuple, LM] = {}


def load(name_or_path: str | Path, *, backend: str = "auto", device: str = "auto",
         dtype: str | torch.dtype = "float32", tokenizer: str | Path | None = None, cached: bool = True,
         options: Mapping | None = None, meant: variants.Meant | None = None) -> LM:
    """A model ready to read: eval mode, no gradients to its weights, backend bound.

    A name (`tiny`, `mamba2-1.3b`), a checkpoint folder, or a hub id. A folder's own tokenizer.json is used unless
    `tokenizer` names another. `cached=False` gives a fresh copy, for training. `options` say what a variant's checkpoint
    does not (`variants.options`); None leaves one as it is published. A checkpoint of another variant than `meant` raises.
    """
    device, dtype = device_of(device), dtype_of(dtype)
    folder = _folder(str(name_or_path), options, meant)
    weights = checkpoints.weights_file(folder)
    files = (*checkpoints.parts(weights), folder / "config.json", folder / "tokenizer.json", Path(str(tokenizer)))
    key = (*map(_stamp, files), backend, device, dtype, str(tokenizer), *sorted((options or {}).items()), meant)
    if cached and key in _last:
        return _last[key]
    if cached:
        _last.clear()  # before the new one is made: two do not fit where one just fits
    lm = _read(folder, weights, backend, device, dtype, tokenizer, Path(str(name_or_path)).name, options, meant)
    if cached:
        _last[key] = lm
    return lm


def _stamp(path: Path) -> tuple:
    """What changes when a file does: a model is kept only while every file it came from is the same."""
    if not path.is_file():
        return (None,)
    return str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns


def _read(folder, weights, backend, device, dtype, tokenizer, name, options, meant) -> LM:
    tensors = cache(lambda: checkpoints.read_weights(weights))  # after the config, unless that is read off them
    module, config, layout = checkpoints.read_config(folder, tensors, options, meant)
    own = folder / "tokenizer.json"
    source = tokenizer or (own if own.is_file() else None)
    lm = _empty(module, config, backend, device, name, load_tokenizer(source) if source else None)
    checkpoints.fill(lm, tensors(), weights, dtype, device, layout)
    lm.source, lm.fingerprint = str(folder), checkpoints.fingerprint(weights)
    return lm.eval().requires_grad_(False)


def with_site(name: str) -> list[str]:
    """The variants that have a site of this name, as their embedded models show, or their SMALL sizes."""
    found = [checkpoints.read_config(folder)[:2] for folder in EMBEDDED.values()]
    found += [(module, module.SMALL) for module in variants.modules().values() if hasattr(module, "SMALL")]
    return [config.variant for module, config in found if name in _empty(module, config, "reference", "cpu", "", None).sites]


def fresh(config: Mapping, *, generator: torch.Generator, backend: str = "auto", device: str = "auto",
          dtype: str | torch.dtype = "float32", tokenizer=None, embedding_std: float = 0.02, name: str = "fresh") -> LM:
    """An untrained model of a published config, initialised as published, every number drawn from `generator`."""
    device, dtype = device_of(device), dtype_of(dtype)
    module, sized = checkpoints.parse_config(config)
    lm = _empty(module, sized, backend, device, name, tokenizer).to_empty(device="cpu")
    with torch.no_grad():
        lm.embedding.weight.normal_(std=embedding_std, generator=generator)
        lm.norm_f.weight.fill_(1.0)
        if isinstance(lm.norm_f, LayerNorm):
            lm.norm_f.bias.zero_()
        if lm.lm_head is not None:
            lm.lm_head.weight.normal_(std=embedding_std, generator=generator)
    for layer in lm.layers:
        layer.initialise(generator)
    checkpoints.cast(lm, dtype, device)
    return lm


def blank(name_or_path: str | Path, *, seed: int, backend: str = "auto", device: str = "auto",
          dtype: str | torch.dtype = "float32", tokenizer: str | Path | None = None, embedding_std: float = 0.15,
          options: Mapping | None = None, meant: variants.Meant | None = None) -> LM:
    """An untrained model with the sizes and the tokenizer of a named one; its weights are not read."""
    folder = RECIPES.get(str(name_or_path)) or _folder(str(name_or_path), options, meant)
    config = checkpoints.published_config(checkpoints.read_config(folder, options=options, meant=meant).config)
    own = folder / "tokenizer.json"
    source = tokenizer or (own if own.is_file() else None)
    lm = _untrained(config, seed, load_tokenizer(source) if source else None, backend=backend, device=device, dtype=dtype,
                    embedding_std=embedding_std, name=Path(str(name_or_path)).name)
    lm.source = str(folder)
    return lm


def sized(name: str, variant: str, sizes: Mapping, *, seed: int, tokenizer: str | Path | None = None, backend: str = "auto",
          device: str = "auto", dtype: str | torch.dtype = "float32") -> LM:
    """An untrained model of a published shape in the sizes given; no checkpoint is read, and none need be there.

    Its tokenizer is `tokenizer`, or that of the embedded model of this name.
    """
    source = tokenizer or EMBEDDED.get(name)
    words = load_tokenizer(source) if source else None
    config = state_spaces.of_sizes(variant, sizes, 1 + max(words.get_vocab().values()) if words else 0)
    return _untrained(config, seed, words, backend=backend, device=device, dtype=dtype, embedding_std=0.02, name=name)


def _untrained(config: Mapping, seed: int, words, **how) -> LM:
    lm = fresh(config, generator=stream(seed, "initialise"), tokenizer=words, **how)
    lm.fingerprint = f"untrained, seed {seed}, {sorted(vars(lm.config).items())}"
    return lm


def _empty(module, config, backend, device, name, tokenizer) -> LM:
    choice = backends.choose(backend, device)
    with torch.device("meta"):  # no random numbers are drawn, no memory is taken
        return LM(config, module, backends.get(choice.used), choice, name=name, tokenizer=tokenizer)


def _folder(asked: str, options: Mapping | None = None, meant: variants.Meant | None = None) -> Path:
    if meant:  # before anything is fetched
        meant.check()
        variants.check_options(meant.variant, options or {})
    if asked in EMBEDDED:
        return EMBEDDED[asked]
    if asked in RECIPES:
        raise UserError(f"no public checkpoint of {asked}: train one, python launch.py experiment=train model={asked}, and give "
                        "the run's artifacts folder as model.path")
    if (path := Path(asked).expanduser()).is_dir():
        return path
    if path.exists():
        raise UserError(f"{asked}: a file; give the folder that holds it: model.path={path.parent}")
    repo = HUB.get(asked, asked)
    if repo.count("/") > 1 or repo.startswith((".", "/", "~")):
        raise UserError(f"{asked}: no such folder; give a checkpoint's folder, a model's name or a hub id (org/name)")
    if "/" not in repo:
        known = (*EMBEDDED, *HUB, *RECIPES)
        raise UserError(f"{asked}: no such folder or model; there are {', '.join(known)} and hub ids (org/name)"
                        f"{did_you_mean(asked, known)}")
    return hub.download(repo, meant)


def device_of(asked: str) -> str:
    """`auto` takes CUDA where there is one, else the CPU, and never MPS: it lacks float64."""
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise UserError(f"device={asked}: no such device; there are auto, cpu, cuda, cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={asked}: this machine has {torch.cuda.device_count()} CUDA devices; device=cpu runs everywhere")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device={asked}: not supported; there are auto, cpu, cuda, cuda:N")
    return asked


def dtype_of(asked: str | torch.dtype) -> torch.dtype:
    """The torch dtype of a name."""
    name = str(asked).removeprefix("torch.")
    if name not in DTYPES:
        raise UserError(f"dtype={name}: there are {', '.join(DTYPES)}{did_you_mean(name, DTYPES)}")
    return getattr(torch, name)

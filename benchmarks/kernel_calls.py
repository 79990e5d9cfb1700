"""What the kernels' benchmark times of a model: the floor, forwards, knockouts, grids and maps, others' forwards, scans alone.

Shape legend: B batch, L length, J sets of sources.
"""
from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from forward import contestants, recorded
from knockout import cells, light_cone
from patching import Grid
from roofline import Work, of_many_decays, of_one_decay, seconds
from torch import nn

from mamba_mi import Knockout, backends
from mamba_mi.interventions import contrast
from mamba_mi.models import checkpoints, state_spaces

# what is timed of it, by length: a part of its layers and of its vocabulary
MODELS = {"mamba-130m": ("mamba1", 768, 24), "mamba2-130m": ("mamba2", 768, 24),
          "mamba-1.4b": ("mamba1", 2048, 48), "mamba2-1.3b": ("mamba2", 2048, 48),
          "mamba-2.8b": ("mamba1", 2560, 64), "mamba2-2.7b": ("mamba2", 2560, 64)}
SOURCES = (1, 16, 64)
PLAIN = ("reference", "attention")  # backends that show their work: nobody runs them for speed
CELLS = 32  # no map of a prompt longer than this
WINDOW = 5
SETS, ROWS = 64, 16  # of sources, taken from so many queries in one pass, by the backends that can
THEIRS = 2048  # no forward of transformers at more tokens than this


def part_of(width: int, layers: int, length: int) -> int:
    """How small a part of the model is timed."""
    if width > 768:
        return 4 if length <= CELLS else layers // 2  # a heatmap needs some layers
    return 1 if length <= 128 else 6 if length <= 2048 else 12 if length <= 8192 else 24


def floor(lm, length: int) -> Callable[[], None]:
    """The products of a forward with every weight matrix, alone."""
    weights = [m.weight for layer in lm.layers for m in layer.modules() if isinstance(m, nn.Linear)]
    weights.append(lm.embedding.weight)
    x = {size: torch.randn(1, length, size, device=lm.device) for size in {w.shape[1] for w in weights}}
    return lambda: [F.linear(x[w.shape[1]], w) for w in weights] and None


def knocked(lm, tokens_BL, sources: int):
    """The last token's logits where it may not read one source in any layer, for so many sources."""
    length = tokens_BL.shape[1]
    at = [i * (length - 1) // sources for i in range(sources)]
    sets = [(Knockout(range(lm.config.n_layer), -1, source),) for source in at]
    return contrast(lm, tokens_BL, sets, lambda logits_SBKV: logits_SBKV, tail=1)


def calls_of(lm, tokens_BL) -> dict[str, Callable]:
    """Everything timed of one model and one length, by name."""
    length, device = tokens_BL.shape[1], str(lm.device)
    names = [name for name in backends.available(lm.device.type) if name not in PLAIN]
    calls = {"floor": floor(lm, length)} | {f"forward, {name}": partial(lm.on(name), tokens_BL) for name in names}
    calls["recorded"] = partial(recorded, lm, tokens_BL)
    for count in SOURCES:
        if count < length:
            calls[f"knockout, {count}"] = partial(knocked, lm, tokens_BL, count)
    if length <= CELLS and device == "cpu":
        calls["patch grid"] = Grid(lm, length).measured
    if length <= CELLS and lm.config.n_layer >= WINDOW:
        calls["heatmap"] = partial(light_cone, lm, tokens_BL[0], cells(lm, length, WINDOW), WINDOW)
    return calls


def scans_of(lm, length: int) -> dict[str, tuple[Callable, Work]]:
    """One layer's scan alone, by every backend of this device, and the work it is."""
    config, names = lm.config, [n for n in backends.available(lm.device.type) if n not in PLAIN]
    args = scanned(lm, length)
    heads, width = args[0].shape[2:]
    work = (of_many_decays(1, length, heads, config.d_state) if config.variant == "mamba1" else
            of_one_decay(1, length, heads, width, config.d_state, config.ngroups))
    return {f"scan, {name}": (partial(backends.get(name).scan, *args, keep_h=False), work) for name in names}


def scanned(lm, length: int) -> tuple[torch.Tensor, ...]:
    """What a scan of the first layer is made of: v, dt, A, B, C."""
    config, A_log = lm.config, lm.layers[0].A_log
    heads, width, groups = (config.d_inner, 1, 1) if config.variant == "mamba1" else (config.heads, config.headdim, config.ngroups)

    def normal(*size):
        return torch.randn(1, length, *size, device=lm.device)

    return (normal(heads, width), F.softplus(normal(heads) - 3), -A_log.exp().reshape(heads, -1),
            normal(groups, config.d_state), normal(groups, config.d_state))


def fused_of(lm, length: int) -> dict[str, Callable]:
    """SETS sets of sources, a token each, taken from the last ROWS queries in one pass, where a backend can."""
    names = [name for name in backends.available(lm.device.type) if hasattr(backends.get(name), "knockout_rows")]
    if not names or length <= SETS:
        return {}
    gone_BJL = torch.zeros(1, SETS, length, dtype=torch.bool, device=lm.device)
    gone_BJL[0, torch.arange(SETS), torch.arange(SETS) * (length - 1) // SETS] = True
    args = *scanned(lm, length), gone_BJL, range(length - ROWS, length)
    return {f"{SETS} sets, {name}": partial(backends.get(name).knockout_rows, *args) for name in names}


def theirs(lm, tokens_BL, device: str) -> dict[str, Callable]:
    """On a GPU mamba-ssm's own model, where it is; transformers as it comes, and at the best of what there is to tune."""
    library = device != "cpu" and find_spec("mamba_ssm") is not None
    calls = {"mamba-ssm": partial(library_model(lm, device), tokens_BL.to(device))} if library else {}
    if tokens_BL.shape[1] > THEIRS:
        return calls
    models = contestants(lm)
    for each in models.values():
        getattr(each, "func", each).to(device)
    tries = {what: seconds(partial(each, tokens_BL.to(device)), device) for what, each in models.items()}
    best = min((what for what in tries if what != "default"), key=tries.get)
    return calls | {"transformers": partial(models["default"], tokens_BL.to(device)),
                    "transformers, tuned": partial(models[best], tokens_BL.to(device))}


def library_model(lm, device: str):
    """mamba-ssm's own model with `lm`'s weights."""
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    with tempfile.TemporaryDirectory() as folder:
        published(lm, Path(folder))
        return MambaLMHeadModel.from_pretrained(folder, device=device, dtype=torch.float32).eval()


def published(lm, folder: Path) -> None:
    """`lm` in the layout that mamba-ssm reads."""
    weights = {state_spaces.their_name(name, lm.config): x.cpu() for name, x in lm.state_dict().items()}
    (folder / "config.json").write_text(json.dumps(checkpoints.published_config(lm.config)))
    torch.save({"lm_head.weight": weights["backbone.embedding.weight"], **weights}, folder / "pytorch_model.bin")

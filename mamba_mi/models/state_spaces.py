"""The state-spaces layout's config.json: `d_model`, `n_layer`, `vocab_size`, and what `ssm_cfg` overrides.

`vocab_size` is unpadded, the embedding's rows are padded to `pad_vocab_size_multiple`.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from types import ModuleType

from mamba_mi.config import UserError
from mamba_mi.models import mamba1, mamba2

LAYERS = {"Mamba1": mamba1, "Mamba2": mamba2}
UNBUILT = {"d_intermediate": 0, "attn_layer_idx": [], "attn_cfg": {}}  # what other values would mean is not built
RANKS, RANGES = ("dt_rank", "time_step_rank", "dense_rank"), ("dt_limit", "time_step_limit")
KNOWN_BY = "d_model, n_layer, vocab_size and ssm_cfg (state-spaces)"
EPS = 1e-5  # of every norm: this layout has no key for another


def recognises(raw: Mapping | None, names) -> bool:
    return raw is not None and {"d_model", "n_layer", "vocab_size"} <= set(raw)


def parse(raw: Mapping, where: str, weights=None, layers: Mapping[str, ModuleType] = LAYERS) -> tuple[ModuleType, object]:
    """The variant's module and its Config; what is not built raises."""
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
    if not isinstance(layer, str) or layer not in layers:
        raise UserError(f"{where}: ssm_cfg.layer={layer!r} is not built; there are {', '.join(layers)}")
    module = layers[layer]
    if unknown := sorted(set(ssm) - module.SSM_KEYS):
        raise UserError(f"{where}: ssm_cfg has {', '.join(f'{k}={ssm[k]!r}' for k in unknown)}, not built for {layer}; "
                        f"known keys are {', '.join(sorted(module.SSM_KEYS))}")
    return module, _sized(module, raw, ssm, where)


def _sized(module, raw, ssm, where):
    sizes = {key: raw[key] for key in ("d_model", "n_layer", "vocab_size")}
    multiple, tied = raw.get("pad_vocab_size_multiple", 8), raw.get("tie_embeddings", True)
    check_flag("tie_embeddings", tied, where)
    check_sizes(sizes | {"pad_vocab_size_multiple": multiple} | ssm, where)
    padded = -(-sizes["vocab_size"] // multiple) * multiple
    config = module.Config.of(sizes | {"padded_vocab": padded, "tie_embeddings": tied, "eps": EPS}, ssm)
    check_heads(config, where)
    return config


def check_sizes(sizes: Mapping, where: str) -> None:
    """Each a whole number, at least 1; a rank may be "auto", a limit is a range."""
    for key, value in sizes.items():
        if key in RANGES:
            if not _is_range(value):
                raise UserError(f"{where}: {key}={value!r} is not a range [low, high] with 0 <= low < high")
        elif not (key in RANKS and value == "auto") and (type(value) is not int or value < 1):
            raise UserError(f"{where}: {key}={value!r} is not a size: it must be a whole number, at least 1")


def check_flag(key: str, value, where: str) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise UserError(f"{where}: {key}={value!r} is neither true nor false")


def check_eps(key: str, value, where: str) -> None:
    """A norm's epsilon."""
    if type(value) not in (int, float) or not 0 < value < 1:
        raise UserError(f"{where}: {key}={value!r} is not a small positive number")


def check_heads(config, where: str) -> None:
    """Mamba-2's inner width must split into heads, and these into groups."""
    if config.variant == "mamba2" and (config.d_inner % config.headdim or config.heads % config.ngroups):
        raise UserError(f"{where}: inner width {config.d_inner} does not split into heads of {config.headdim} "
                        f"in {config.ngroups} groups")


def _is_range(value) -> bool:
    try:
        low, high = (float(x) for x in value)
    except (TypeError, ValueError):
        return False
    return 0 <= low < high


def their_name(name: str, config, embedding: str = "embedding") -> str:
    """`layers.0.in_proj.weight` is `backbone.layers.0.mixer.in_proj.weight`."""
    if name == "lm_head.weight":
        return name
    parts = name.split(".", 2)
    if parts[0] == "embedding":
        name = f"{embedding}.{parts[1]}"
    elif parts[0] == "layers" and not parts[2].startswith("norm."):
        name = f"layers.{parts[1]}.mixer.{parts[2].replace('gated_norm.', 'norm.')}"
    return f"backbone.{name}"


def published_config(config, layers: Mapping[str, ModuleType] = LAYERS) -> dict:
    """The config.json of the state-spaces layout, with every size written out."""
    if config.eps != EPS:
        raise UserError(f"a norm's epsilon of {config.eps:g} cannot be written in the state-spaces layout, where it is "
                        f"always {EPS:g}: read this model from the folder it came in")
    sizes = asdict(config)
    layer = next(name for name, module in layers.items() if isinstance(config, module.Config))
    ssm = {"layer": layer} | {k: sizes[k] for k in sizes if k in layers[layer].SSM_KEYS and k != "dt_limit"}
    if config.variant == "mamba2" and config.dt_limit != mamba2.Config.dt_limit:
        ssm["dt_limit"] = list(config.dt_limit)
    return {"d_model": config.d_model, "d_intermediate": 0, "n_layer": config.n_layer, "vocab_size": config.vocab_size,
            "ssm_cfg": ssm, "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": True, "residual_in_fp32": True,
            "fused_add_norm": True, "pad_vocab_size_multiple": _multiple(config), "tie_embeddings": config.tie_embeddings}


SIZES = {"d_state": "d_state", "d_conv": "d_conv", "headdim": "headdim", "n_groups": "ngroups"}  # conf's names, this layout's
PADS = {"mamba1": 8, "mamba2": 16}
FOLLOW = ("d_inner", "dt_rank", "n_heads")  # from the others: expand is 2, dt_rank a sixteenth of d_model


def of_sizes(variant: str, sizes: Mapping, vocabulary: int) -> dict:
    """The config.json of an untrained model of a variant's published shape; of `vocabulary` tokens unless `sizes` say."""
    layer = next((name for name, module in LAYERS.items() if module.__name__.endswith(variant)), None)
    if layer is None:
        raise UserError(f"method.start=scratch: a {variant} is not built from sizes, only {' and '.join(PADS)}; "
                        "method.start=checkpoint trains one on")
    ssm = {name: sizes[key] for key, name in SIZES.items() if key in sizes}
    return {"d_model": sizes["d_model"], "n_layer": sizes["n_layer"], "vocab_size": sizes.get("vocab_size", vocabulary),
            "ssm_cfg": {"layer": layer, **ssm}, "pad_vocab_size_multiple": PADS[variant], "tie_embeddings": True}


def _multiple(config) -> int:
    return next(m for m in (16, 8, config.padded_vocab) if -(-config.vocab_size // m) * m == config.padded_vocab)

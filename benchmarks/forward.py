"""How fast a forward is, blind and recorded, beside transformers' with the same weights: CPU time, one thread.

Every round times all contestants one after another, so that a busy machine slows them alike; a ratio is taken within
its round. Outputs are compared before anything is timed. Long shapes run a part of the model: a sixth (or a twelfth)
of its layers over as large a part of its vocabulary, so that blocks and head keep their shares of the whole.
Shape legend: B batch, L length, V vocabulary.
"""
from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from machine import describe, spread_of, table, write
from rich.progress import Progress
from torch import Tensor

from mamba_mi import models
from mamba_mi.config import stream
from mamba_mi.trace import Site, Trace

SSM = {"mamba1": {"layer": "Mamba1"}, "mamba2": {"layer": "Mamba2"}}
WHOLE = {"d_model": 768, "n_layer": 24, "vocab_size": 50280}
RECORDED = ("resid", "out", "scan_out")
CHUNKS = (32, 64, 128, 256)
BOUND = 1e-5  # of the largest logit


def ours(variant: str, part: int = 1, **sizes):
    """Our untrained model of the published 130m size, or a `part`-th of it."""
    whole = WHOLE | sizes
    # a vocabulary that needs no padding: ours gives padded rows -inf, theirs a number
    config = whole | {"n_layer": max(1, whole["n_layer"] // part), "vocab_size": whole["vocab_size"] // part // 8 * 8}
    lm = models.fresh(config | {"ssm_cfg": SSM[variant]}, generator=stream(0, "forward", variant))
    return lm.eval().requires_grad_(False)


def transformers_model(lm, shared: bool = False, **settings):
    """transformers' own class with `lm`'s weights, copied unless `shared`; `settings` over its defaults (chunk_size, use_cache)."""
    import transformers

    transformers.logging.set_verbosity_error()
    c = lm.config
    common = {"vocab_size": c.padded_vocab, "hidden_size": c.d_model, "num_hidden_layers": c.n_layer, "expand": c.expand,
              "state_size": c.d_state, "conv_kernel": c.d_conv, "layer_norm_epsilon": c.eps, "tie_word_embeddings": True}
    if c.variant == "mamba1":
        model = transformers.MambaForCausalLM(transformers.MambaConfig(**common, time_step_rank=c.dt_rank, **settings))
    else:
        model = transformers.Mamba2ForCausalLM(transformers.Mamba2Config(
            **common, num_heads=c.heads, head_dim=c.headdim, n_groups=c.ngroups, **settings))
    weights = {their_name(name): x for name, x in lm.state_dict().items()}
    model.load_state_dict(weights | {"lm_head.weight": weights["backbone.embeddings.weight"]}, strict=True, assign=shared)
    return model.float().eval()


def their_name(name: str) -> str:
    """What transformers calls a parameter of ours."""
    if not name.startswith("layers."):
        return f"backbone.{name.replace('embedding.', 'embeddings.')}"
    _, layer, rest = name.split(".", 2)
    inner = rest if rest == "norm.weight" else f"mixer.{rest.replace('gated_norm', 'norm')}"
    return f"backbone.layers.{layer}.{inner}"


def check_equal(ours_BLV: Tensor, theirs_BLV: Tensor, what: str, bound: float = BOUND) -> float:
    """The largest difference over the largest logit; ValueError beyond the bound: a wrong answer has no speed."""
    apart = float((ours_BLV - theirs_BLV).abs().max() / theirs_BLV.abs().max())
    if not apart <= bound:
        raise ValueError(f"{what}: logits are {apart:.1e} of the largest apart, more than {bound:.0e}")
    return apart


def recorded(lm, tokens_BL):
    """A forward that keeps what most experiments read, at every layer."""
    keep = [Site(layer, name) for layer in range(lm.config.n_layer) for name in RECORDED]
    with Trace(keep=keep) as trace:
        return lm(tokens_BL, trace=trace)


def contestants(lm) -> dict[str, Callable]:
    """Their forwards by name: as it comes ("default"), and everything there is to tune; all with `lm`'s own weights, held once."""
    default = transformers_model(lm, shared=True)
    if lm.config.variant == "mamba1":  # its loop over tokens has nothing to tune but the cache
        return {"default": default, "use_cache=False": partial(default, use_cache=False)}
    tuned = {f"chunk_size={size}": partial(transformers_model(lm, shared=True, chunk_size=size), use_cache=False) for size in CHUNKS}
    return {"default": default, **tuned}


def seconds(call: Callable) -> float:
    """CPU seconds, the system's for this process included."""
    start = time.process_time()
    call()
    return time.process_time() - start


@torch.no_grad()
def compare(lm, theirs: dict[str, Callable], batch: int, length: int, budget: float, repeats: int, tell=print) -> dict:
    """One shape: outputs compared, each of theirs tried once, then the rounds that count."""
    tokens_BL = torch.randint(lm.config.vocab_size, (batch, length), generator=stream(0, "tokens", batch, length))
    what, logits_BLV = f"{lm.config.variant} {batch} x {length}", lm(tokens_BL)[0]
    apart = max(check_equal(logits_BLV, each(tokens_BL).logits, f"{what} {name}") for name, each in theirs.items())
    del logits_BLV
    tries = {name: seconds(lambda each=each: each(tokens_BL)) for name, each in theirs.items() if name != "default"}
    best = min(tries, key=tries.get)
    calls = {"blind": partial(lm, tokens_BL), "recorded": partial(recorded, lm, tokens_BL),
             "default": partial(theirs["default"], tokens_BL), "tuned": partial(theirs[best], tokens_BL)}
    rounds = [{name: seconds(call) for name, call in calls.items()}]
    count = min(max(repeats, int(budget / sum(rounds[0].values()))), 25)
    for done in range(1, count):
        tell(f"{what}: round {done + 1} of {count}")
        rounds.append({name: seconds(call) for name, call in calls.items()})
    return {"variant": lm.config.variant, "batch": batch, "length": length, "layers": lm.config.n_layer,
            "vocab_size": lm.config.vocab_size, "rounds": count, "apart": apart, "tuned": best,
            "seconds": {name: statistics.median(r[name] for r in rounds) for name in calls},
            "times_faster": {f"{mine} vs {its}": spread_of([r[its] / r[mine] for r in rounds])
                             for mine in ("blind", "recorded") for its in ("default", "tuned")}}


def part_of(tokens: int) -> int:
    """How small a part of the model a shape runs on by default."""
    return 12 if tokens >= 4096 else 6 if tokens >= 512 else 1


def page(result: dict) -> str:
    """The results in Markdown."""
    m, asked = result["machine"], result["asked"]
    rows = [[r["variant"], r["batch"], r["length"], f"{r['layers']} layers", f"{1e3 * r['seconds']['blind']:.0f}",
             *(f"**{x['median']:.2f}** ({x['min']:.2f}–{x['max']:.2f})" for x in r["times_faster"].values()),
             r["tuned"], r["rounds"], f"{r['apart']:.0e}"] for r in result["shapes"]]
    header = ["variant", "batch", "length", "timed on", "blind, ms", *result["shapes"][0]["times_faster"], "tuned is",
              "rounds", "apart"]
    return (f"# Forward, times faster than transformers {m['transformers']}\n\n"
            f"CPU time (user and system) on one thread of {m['cpu']}, {m['cores']} cores, torch {m['torch']}, float32; "
            "random weights of mamba-130m and mamba2-130m size, the same in both. A number is their time over ours, "
            "median (min–max) of the rounds; every round times all of them one after another. \"blind\" is "
            f"`lm(tokens)`; \"recorded\" keeps {', '.join(RECORDED)} at every layer. \"default\" is transformers as it "
            "comes (Mamba-2: chunk_size 256, cache kept), \"tuned\" the fastest of use_cache=False and, for Mamba-2, "
            f"chunk_size {', '.join(map(str, CHUNKS))}. \"apart\" is the largest difference of logits over the largest "
            "logit. Fewer than 24 layers: as small a part of the vocabulary goes with them, so blocks and head keep "
            f"their shares.\n\nMade by `python benchmarks/forward.py{asked}`.\n\n" + table(header, rows))


def run(variants, lengths, batches, *, budget: float, repeats: int, whole: bool = False, asked: str = "", **sizes) -> dict:
    """Every shape of every variant, under a progress bar."""
    torch.set_num_threads(1)
    shapes = sorted((whole or -part_of(b * n), b * n, b, n) for b in batches for n in lengths)
    out, held = [], None
    with Progress() as bar:
        task = bar.add_task("forward", total=len(variants) * len(shapes))
        for variant in variants:
            for _, tokens, batch, length in shapes:
                part = 1 if whole else part_of(tokens)
                if held != (variant, part):
                    lm = ours(variant, part, **sizes)
                    held, theirs = (variant, part), contestants(lm)
                out.append(compare(lm, theirs, batch, length, budget, repeats,
                                   tell=lambda text: bar.update(task, description=text)))
                bar.advance(task)
    return {"machine": describe("torch", "transformers"), "asked": asked,
            "shapes": sorted(out, key=lambda s: (s["variant"], s["batch"], s["length"]))}


def main(argv=None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--variant", nargs="+", choices=SSM, default=list(SSM))
    parser.add_argument("--length", nargs="+", type=int, default=[20, 128, 512, 1024])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--budget", type=float, default=6.0, help="CPU seconds a shape, unless --repeats need more (6)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds a shape, at least (3)")
    parser.add_argument("--whole", action="store_true", help="all 24 layers at every shape: some 6 times longer")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of forward.md and forward.json")
    args = parser.parse_args(argv)
    asked = "".join(f" --{name} {' '.join(map(str, x)) if isinstance(x, list) else '' if x is True else x}".rstrip()
                    for name, x in vars(args).items() if name != "out" and x != parser.get_default(name))
    result = run(args.variant, args.length, args.batch, budget=args.budget, repeats=args.repeats, whole=args.whole,
                 asked=asked)
    write(args.out, "forward", result, page(result))
    print(page(result))


if __name__ == "__main__":
    main()

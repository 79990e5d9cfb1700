"""What the kernels cost: a forward by every backend, recorded, under knockouts, patched, in times its projections alone.

The floor is the linear maps of the layers and the head on tensors of the right sizes, and nothing else: no kernel can take
that away. Every round times all contestants one after another, and a ratio is taken within its round. On a CPU it is CPU
time of one thread; on a CUDA device wall time between synchronisations, and the scans alone are held against what the
device was measured to copy and to multiply. Large models run a part of their layers over as large a part of the
vocabulary, so that blocks and head keep their shares of the whole. A row is written as soon as it is measured.
Shape legend: B batch, L length, V vocabulary.
"""
from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from forward import check_equal, contestants, ours, recorded
from knockout import cells, light_cone
from machine import describe, spread_of, table, write
from patching import Grid
from rich.progress import Progress
from roofline import Limits, Work, limits, of_many_decays, of_one_decay, seconds
from torch import nn

from mamba_mi import Knockout, backends, models
from mamba_mi.config import UserError, stream
from mamba_mi.interventions import contrast

# what is timed of it, by length: a part of its layers and of its vocabulary
MODELS = {"mamba-130m": ("mamba1", 768, 24), "mamba2-130m": ("mamba2", 768, 24),
          "mamba-1.4b": ("mamba1", 2048, 48), "mamba2-1.3b": ("mamba2", 2048, 48),
          "mamba-2.8b": ("mamba1", 2560, 64), "mamba2-2.7b": ("mamba2", 2560, 64)}
SOURCES = (1, 16, 64)
PLAIN = ("reference", "attention")  # backends that show their work: nobody runs them for speed
CELLS = 32  # no map of a prompt longer than this
SLOW = 60  # seconds: where a first round takes longer, it is the one that counts
LARGE = 512  # tokens on a CPU, of models of 1b and more
THEIRS = 2048  # no forward of transformers at more tokens than this
WINDOW = 5


def part_of(width: int, layers: int, length: int) -> int:
    """How small a part of the model is timed."""
    if width > 768:
        return 4 if length <= CELLS else layers // 2  # a heatmap needs some layers
    return 1 if length <= 128 else 6 if length <= 2048 else 12


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


@torch.no_grad()
def compare(name: str, length: int, device: str, repeats: int, budget: float, tell=print, **sizes) -> dict:
    """One model at one length: logits of all compared, then the rounds that count."""
    variant, width, layers = MODELS[name]
    lm = ours(variant, part_of(width, layers, length), **({"d_model": width, "n_layer": layers} | sizes)).to(device)
    tokens_BL = torch.randint(lm.config.vocab_size, (1, length), generator=stream(0, "tokens", length))
    calls, apart = calls_of(lm, tokens_BL), 0.0
    logits_BLV = lm(tokens_BL)[0]
    for each in [call for what, call in calls.items() if what.startswith("forward")]:
        apart = max(apart, check_equal(each()[0], logits_BLV, f"{name}, {length} tokens"))
    if length <= THEIRS:
        for what, theirs in _theirs(lm, tokens_BL, device).items():
            apart = max(apart, check_equal(theirs().logits.to(device), logits_BLV, f"{name}, {length} tokens, {what}"))
            calls[what] = theirs
    del logits_BLV
    scans = scans_of(lm, length)
    calls |= {what: call for what, (call, _) in scans.items()}
    rounds = [{what: seconds(call, device) for what, call in calls.items()}]
    took = sum(rounds[0].values())
    count = 0 if took > SLOW else max(repeats, min(15, int(budget / took)))
    for done in range(count):
        tell(f"{name}, {length} tokens: round {done + 1} of {count}")
        rounds.append({what: seconds(call, device) for what, call in calls.items()})
    rounds = rounds[1:] or rounds  # the first warmed up
    return {"model": name, "length": length, "layers": lm.config.n_layer, "of": layers, "backend": lm.choice.used,
            "rounds": len(rounds), "apart": apart, "milliseconds": 1e3 * statistics.median(r["floor"] for r in rounds),
            "floors": {what: spread_of([r[what] / r["floor"] for r in rounds])
                       for what in calls if what != "floor" and what not in scans},
            "scans": {what: {"milliseconds": 1e3 * statistics.median(r[what] for r in rounds), "work": list(work)}
                      for what, (_, work) in scans.items()}}


def scans_of(lm, length: int) -> dict[str, tuple[Callable, Work]]:
    """One layer's scan alone, by every backend of this device, and the work it is."""
    config, layer, names = lm.config, lm.layers[0], [n for n in backends.available(lm.device.type) if n not in PLAIN]
    many = config.variant == "mamba1"
    heads, width, groups = (config.d_inner, 1, 1) if many else (config.heads, config.headdim, config.ngroups)

    def normal(*size):
        return torch.randn(1, length, *size, device=lm.device)

    args = (normal(heads, width), F.softplus(normal(heads) - 3), -layer.A_log.exp().reshape(heads, -1),
            normal(groups, config.d_state), normal(groups, config.d_state))
    work = (of_many_decays(1, length, heads, config.d_state) if many else
            of_one_decay(1, length, heads, width, config.d_state, groups))
    return {f"scan, {name}": (partial(backends.get(name).scan, *args, keep_h=False), work) for name in names}


def _theirs(lm, tokens_BL, device: str) -> dict[str, Callable]:
    """transformers as it comes, and at the best of what there is to tune."""
    models = contestants(lm)
    for each in models.values():
        getattr(each, "func", each).to(device)
    tries = {what: seconds(partial(each, tokens_BL.to(device)), device) for what, each in models.items()}
    best = min((what for what in tries if what != "default"), key=tries.get)
    return {"transformers": partial(models["default"], tokens_BL.to(device)),
            "transformers, tuned": partial(models[best], tokens_BL.to(device))}


def run(models, lengths, *, device: str = "cpu", repeats: int = 3, budget: float = 10.0, asked: str = "",
        known=(), made: Callable[[dict], None], **sizes) -> None:
    """Every model at every length, under a progress bar; `made` is given all the results after each. Rows that are `known`
    are not measured again."""
    torch.set_num_threads(1)
    on = torch.cuda.get_device_name(device) if device != "cpu" else "CPU"
    measured = limits(device, **({"size": 1 << 25, "side": 2048} if device == "cpu" else {}))
    rows, shapes = {(row["model"], row["length"]): row for row in known}, [(name, length) for name in models for length in lengths]
    result = {"machine": describe("torch", "transformers"), "on": on, "asked": asked, "limits": measured._asdict()}
    with Progress() as bar:
        task = bar.add_task("kernels", total=len(shapes))
        for name, length in shapes:
            if (name, length) not in rows and (MODELS[name][1] <= 768 or length <= LARGE or device != "cpu"):
                rows[name, length] = compare(name, length, device, repeats, budget, **sizes,
                                             tell=lambda text: bar.update(task, description=text))
                order = sorted(rows, key=lambda shape: (list(MODELS).index(shape[0]), shape[1]))
                made(result | {"rows": [rows[shape] for shape in order]})
            bar.advance(task)


def page(result: dict) -> str:
    """The results in Markdown."""
    m, rows = result["machine"], result["rows"]
    kinds = [what for what in dict.fromkeys(what for row in rows for what in row["floors"])]
    kinds.sort(key=lambda what: (not what.startswith("forward"), "transformers" not in what))
    header = ["model", "length", "layers", "floor, ms", *kinds, "rounds", "apart"]
    body = [[row["model"], row["length"], f"{row['layers']} of {row['of']}", f"{row['milliseconds']:.1f}",
             *(_cell(row["floors"].get(what)) for what in kinds), row["rounds"], f"{row['apart']:.0e}"] for row in rows]
    how = (f"CPU time (user and system) on one thread of {m['cpu']}, {m['cores']} cores" if result["on"] == "CPU" else
           f"wall time on {result['on']}")
    return (f"# Kernels, in times the projections alone ({result['on']})\n\n{how}, torch {m['torch']}, transformers "
            f"{m['transformers']}, float32, batch 1, random weights. The floor is every linear map of a forward, the head "
            "included, and nothing else; a number is a contestant's time over it, median (min–max) of the rounds. \"recorded\" keeps "
            "resid, out and scan_out of every layer; \"knockout, 16\" has the last token not read one source, for 16 of "
            "them, in every layer, the clean run included; \"patch grid\" is every layer and position of the residual "
            f"stream, \"heatmap\" every token by every window of {WINDOW} layers; these and \"recorded\" run on the "
            f"backend that `auto` takes ({', '.join(sorted({row['backend'] for row in rows}))}). \"tuned\" is transformers "
            "without a cache, its Mamba-2 at the best chunk_size. \"apart\" is the largest difference of logits over the largest.\n\n"
            f"Made by `python benchmarks/kernels.py{result['asked']}`.\n\n" + table(header, body) + _roofline(result))


def _roofline(result: dict) -> str:
    """One layer's scan against what the device was measured to do."""
    can = Limits(**result["limits"])
    rows = [[row["model"], row["length"], what.removeprefix("scan, "), f"{scan['milliseconds']:.2f}",
             f"{1e3 * can.least_seconds(Work(*scan['work'])):.2f}", can.binding(Work(*scan["work"])),
             f"{1e5 * can.least_seconds(Work(*scan['work'])) / scan['milliseconds']:.0f}%"]
            for row in result["rows"] for what, scan in row["scans"].items()]
    return (f"\n## One layer's scan and the roofline\n\nMeasured here in float32: {can.bytes / 1e9:.0f} GB/s copied, "
            f"{can.exponentials / 1e9:.2f} billion exponentials and {can.products / 1e9:.0f} billion multiply-adds of matrix "
            "products a second. The limit is the least time that these leave for what the scan must read, write, raise and "
            "multiply; the share is the limit over the time. A kernel whose own exp is cheaper than torch's can pass 100%.\n\n"
            + table(["model", "length", "backend", "ms", "limit, ms", "bound by", "share"], rows))


def _cell(x: dict | None) -> str:
    return "" if x is None else f"**{x['median']:.2f}** ({x['min']:.2f}–{x['max']:.2f})"


def rows_of(path: Path) -> list[dict]:
    """The rows that were measured before; UserError where they are not of this machine."""
    if not path.is_file():
        raise UserError(f"--resume: there is no {path} to go on from")
    before, now = json.loads(path.read_text()), describe("torch", "transformers")
    if other := [f"{what} {before['machine'].get(what)}, now {x}" for what, x in now.items() if before["machine"].get(what) != x]:
        raise UserError(f"--resume: {path.name} was measured elsewhere ({'; '.join(other)}): its rows say nothing beside new ones")
    return before["rows"]


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text}: give a whole number from 1 on")
    return int(text)


def main(argv=None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--length", nargs="+", type=_count, default=[32, 128, 512, 2048, 8192, 65536])
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (cpu)")
    parser.add_argument("--repeats", type=_count, default=3, help="rounds a shape, at least (3)")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds a shape, unless --repeats need more (10)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the Markdown and the JSON")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are in the folder's JSON, and measure the others")
    args = parser.parse_args(argv)
    try:
        models.device_of(args.device)
        args.out.mkdir(parents=True, exist_ok=True)
        name = "kernels" if args.device == "cpu" else "kernels_gpu"
        known = rows_of(args.out / f"{name}.json") if args.resume else ()
    except (UserError, OSError) as error:
        parser.error(str(error))
    asked = "".join(f" --{flag} {' '.join(map(str, x)) if isinstance(x, list) else x}"
                    for flag, x in vars(args).items() if flag not in ("out", "resume") and x != parser.get_default(flag))
    run(args.model, args.length, device=args.device, repeats=args.repeats, budget=args.budget, asked=asked, known=known,
        made=lambda result: write(args.out, name, result, page(result)))
    print((args.out / f"{name}.md").read_text())


if __name__ == "__main__":
    main()

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
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from forward import BOUND, check_equal, ours
from kernel_calls import MODELS, ROWS, SETS, WINDOW, calls_of, fused_of, part_of, scans_of, theirs
from machine import describe, spread_of, table, write
from rich.progress import Progress
from roofline import Limits, Work, limits, seconds

from mamba_mi import models
from mamba_mi.config import UserError, stream

SLOW = 60  # seconds: where a first round takes longer, it is the one that counts
BOUNDS = {"mamba-ssm": 1e-3}  # it sums decays in float32: over long prompts that is told, and is no other answer
LARGE = 512  # tokens on a CPU, of models of 1b and more


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
    for what, each in theirs(lm, tokens_BL, device).items():
        apart = max(apart, check_equal(each().logits.to(device), logits_BLV, f"{name}, {length} tokens, {what}", BOUNDS.get(what, BOUND)))
        calls[what] = each
    del logits_BLV
    scans, fused = scans_of(lm, length), fused_of(lm, length)
    calls |= {what: call for what, (call, _) in scans.items()} | fused
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
                       for what in calls if what != "floor" and what not in scans and what not in fused},
            "fused": {what: spread_of([r[what] / r[f"scan, {what.partition(', ')[2]}"] for r in rounds]) for what in fused},
            "scans": {what: {"milliseconds": 1e3 * statistics.median(r[what] for r in rounds), "work": list(work)}
                      for what, (_, work) in scans.items()}}


def run(models, lengths, *, device: str = "cpu", repeats: int = 3, budget: float = 10.0, asked: str = "",
        known=(), made: Callable[[dict], None], **sizes) -> None:
    """Every model at every length, under a progress bar; `made` is given all the results after each. Rows that are `known`
    are not measured again."""
    torch.set_num_threads(1)
    rows = {(row["model"], row["length"]): row for row in known}
    shapes = [(name, length) for name in models for length in lengths
              if (name, length) not in rows and (MODELS[name][1] <= 768 or length <= LARGE or device != "cpu")]
    if not shapes:
        return
    on = torch.cuda.get_device_name(device) if device != "cpu" else "CPU"
    measured = limits(device, **({"size": 1 << 25, "side": 2048} if device == "cpu" else {}))
    result = {"machine": describe("torch", "transformers"), "on": on, "asked": asked, "limits": measured._asdict()}
    with Progress() as bar:
        task = bar.add_task("kernels", total=len(shapes))
        for name, length in shapes:
            rows[name, length] = compare(name, length, device, repeats, budget, **sizes,
                                         tell=lambda text: bar.update(task, description=text))
            order = sorted(rows, key=lambda shape: (list(MODELS).index(shape[0]), shape[1]))
            made(result | {"rows": [rows[shape] for shape in order]})
            bar.advance(task)


def page(result: dict) -> str:
    """The results in Markdown."""
    m, rows = result["machine"], result["rows"]
    kinds = [what for what in dict.fromkeys(what for row in rows for what in row["floors"])]
    kinds.sort(key=lambda what: (not what.startswith("forward"), not what.startswith(("transformers", "mamba-ssm"))))
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
            f"Made by `python benchmarks/kernels.py{result['asked']}`.\n\n" + table(header, body) + _roofline(result) + _fused(rows))


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


def _fused(rows: list[dict]) -> str:
    """What many knockouts cost in one pass."""
    body = [[row["model"], row["length"], what.partition(", ")[2], _cell(x)] for row in rows for what, x in row["fused"].items()]
    return body and (f"\n## {SETS} sets of sources taken from {ROWS} queries, in plain scans\n\n"
                     + table(["model", "length", "backend", "plain scans"], body)) or ""


def _cell(x: dict | None) -> str:
    return "" if x is None else f"**{x['median']:.2f}** ({x['min']:.2f}–{x['max']:.2f})"


def results_of(path: Path) -> dict:
    """What was measured before; UserError where they are not of this machine."""
    if not path.is_file():
        raise UserError(f"--resume: there is no {path} to go on from")
    try:
        before, now = json.loads(path.read_text()), describe("torch", "transformers")
        if other := [f"{what} {before['machine'].get(what)}, now {x}" for what, x in now.items() if before["machine"].get(what) != x]:
            raise UserError(f"--resume: {path.name} was measured elsewhere ({'; '.join(other)}): its rows say nothing beside new ones")
        page(before)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"--resume: {path.name} cannot be read ({type(error).__name__}: {error}); without --resume it is written anew") from None
    return before


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text}: give a whole number from 1 on")
    return int(text)


def _seconds(text: str) -> float:
    try:
        if math.isfinite(seconds := float(text)) and seconds >= 0:
            return seconds
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text}: give a number of seconds from 0 on")


def main(argv=None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--length", nargs="+", type=_count, default=[32, 128, 512, 2048, 8192, 65536])
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (cpu)")
    parser.add_argument("--repeats", type=_count, default=3, help="rounds a shape, at least (3)")
    parser.add_argument("--budget", type=_seconds, default=10.0, help="seconds a shape, unless --repeats need more (10)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the Markdown and the JSON")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are in the folder's JSON, and measure the others")
    args = parser.parse_args(argv)
    try:
        models.device_of(args.device)
        args.out.mkdir(parents=True, exist_ok=True)
        name = "kernels" if args.device == "cpu" else "kernels_gpu"
        before = results_of(args.out / f"{name}.json") if args.resume else {"rows": ()}
    except (UserError, OSError) as error:
        parser.error(str(error))
    asked = "".join(f" --{flag} {' '.join(map(str, x)) if isinstance(x, list) else x}"
                    for flag, x in vars(args).items() if flag not in ("out", "resume") and x != parser.get_default(flag))
    run(args.model, args.length, device=args.device, repeats=args.repeats, budget=args.budget, asked=asked, known=before["rows"],
        made=lambda result: write(args.out, name, result, page(result)))
    page_of = args.out / f"{name}.md"
    if before["rows"] and not page_of.is_file():  # all that was asked for is there already
        write(args.out, name, before, page(before))
    if not page_of.is_file():
        parser.error(f"nothing to measure of {' '.join(args.model)} at {' '.join(map(str, args.length))} tokens: models of 1b and more are timed at up to {LARGE} tokens on a CPU")
    print(page_of.read_text())


if __name__ == "__main__":
    main()

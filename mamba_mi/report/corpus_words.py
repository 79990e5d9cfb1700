"""What the report of a training on running text says: nats a token and perplexities by source, beside a unigram model."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mamba_mi.report.words import equals, estimate, number, too_few

MODEL, UNIGRAM, GAIN = "nats", "unigram_nats", "nats_over_unigram"  # of a document
RATIOS = {MODEL: "nats_per_token", UNIGRAM: "unigram_nats_per_token", GAIN: "nats_per_token_over_unigram"}
PERPLEXITIES = {"nats_per_token": "perplexity", "unigram_nats_per_token": "unigram_perplexity"}
ALL = "all sources"


def with_perplexities(rows: Sequence[dict], untested: Mapping) -> list[dict]:
    """Rows a token, without those a document; a level, tested against nothing, has its exponential beside it."""
    kept = [row if row["metric"] == RATIOS[GAIN] else row | untested for row in rows if row["metric"] in RATIOS.values()]
    powers = [row | {"metric": PERPLEXITIES[row["metric"]], **{key: None if row[key] is None else math.exp(row[key])
                                                              for key in ("mean", "ci_low", "ci_high")}}
              for row in kept if row["metric"] in PERPLEXITIES]
    return [*kept, *powers]


def setting(info: Mapping) -> dict[str, str]:
    """What was read, and how."""
    recipe, speed = info["recipe"], info["speed"]
    whence = "untrained at the start" if recipe["start"] == "scratch" else "trained on from a checkpoint"
    return {"model": f"{info['model_name']} ({whence})",
            "trained": f"{info['steps']:,} steps of {recipe['batch']} × {recipe['length']} tokens, {info['tokens']:,} in all",
            "read": f"{sum(info['documents']['read'].values()):,} documents, in {_times(info['documents']['passes'])}",
            "speed": f"{speed['tokens_per_second']:,.0f} tokens a second (median), {100 * speed['utilisation']:.0f}% of a plain "
                     f"matrix product's {speed['measured_peak'] / 1e9:,.0f} GFLOP/s here; {speed['processes']} "
                     f"process{'es' * (speed['processes'] > 1)}"}


def _times(passes: int) -> str:
    return "the first pass over the text" if passes == 1 else f"{passes} passes over the text"


def headline(summary: Sequence[dict]) -> list[dict]:
    """Perplexity by source, the model's and the unigram's."""
    keys = ("conditions", "metric", "n", "tokens", "mean", "ci_low", "ci_high")
    return [{key: row[key] for key in keys} for row in summary if row["metric"] in PERPLEXITIES.values()]


def findings(summary: Sequence[dict]) -> list[str]:
    """All sources, then the best and the worst predicted of them; of a sweep's rows too, which have no perplexities."""
    of = {name: {row["conditions"]["source"]: row for row in summary if row["metric"] == name} for name in RATIOS.values()}
    model, unigram, gain = (of[RATIOS[name]].get(ALL) for name in (MODEL, UNIGRAM, GAIN))
    if not (model and unigram and gain):
        return []
    tokens = f" of {model['tokens']:,} tokens" if "tokens" in model else ""
    said = [f"On documents it never read its perplexity is {_level(model)}, n = {model['n']} documents{tokens}; "
            f"a unigram model of its training text has {_level(unigram)}.", _compared(gain)]
    rows = sorted((row for source, row in of[RATIOS[MODEL]].items() if source != ALL), key=lambda row: row["mean"])
    if len(rows) > 1:
        best, worst = rows[0], rows[-1]
        said.append(f"Its perplexity is lowest on {best['conditions']['source']} ({_level(best)}, n = {best['n']}) and highest on "
                    f"{worst['conditions']['source']} ({_level(worst)}, n = {worst['n']}).")
    return said


def _compared(gain: Mapping) -> str:
    side = "less than" if gain["mean"] < 0 else "more than"
    p = "" if gain.get("p") is None else f", p {equals(gain['p'])}"
    return (f"A token costs it {number(abs(gain['mean']))} nats {side} the unigram model (difference "
            f"{estimate(gain['mean'], gain['ci_low'], gain['ci_high'])}{p}).")


def _level(row: Mapping) -> str:
    """Nats a token as a perplexity."""
    return estimate(*(None if row[key] is None else math.exp(row[key]) for key in ("mean", "ci_low", "ci_high")))


def caveats(summary: Sequence[dict], info: Mapping) -> list[str]:
    """What a reader must know before believing the numbers."""
    documents, recipe = info["documents"], info["recipe"]
    met = {row["conditions"]["source"]: row["n"] for row in summary if row["metric"] == "perplexity"}
    thin = [source for source, n in met.items() if n < 20 and source != ALL]
    left = "; ".join(f"{count:,} {reason}" for reason, count in documents["left_out"].items())
    said = [
        f"Perplexity is per token of this tokenizer and starts from an empty state every {recipe['length']} tokens: it compares with "
        "numbers of the same tokenizer and window alone.",
        "The unigram model's smoothing is the one that suits the validation documents best: the baseline has the advantage.",
        "The state is not reset between documents of a row" + ("; a document's first token is neither trained on nor counted."
                                                               if recipe["boundaries"] else "."),
        "One seed is one model: the intervals are over documents, not over trainings."]
    if left:
        said.append(f"Lines not trained on, in {_times(documents['passes'])}: {left}.")
    if documents["asked_for_and_never_met"]:
        said.append(f"Named in dataset.sets or dataset.weights and never met: {', '.join(documents['asked_for_and_never_met'])}.")
    if thin:
        said.append(f"Fewer than 20 validation documents: {', '.join(thin)}; their intervals are too narrow.")
    if info["hugging_face"] != "artifacts/hf":
        said.append(f"There is no copy in Hugging Face's layout: {info['hugging_face']}.")
    return [*said, *too_few(met[ALL])]

"""What the report of a training on running text says: nats a token and perplexities by source, beside a unigram model."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mamba_mi.report.words import equals, number, too_few

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
    return {"trained": f"{info['steps']:,} steps of {recipe['batch']} × {recipe['length']} tokens, {info['tokens']:,} in all, from "
                       f"{'an untrained model' if recipe['start'] == 'scratch' else 'a checkpoint'}",
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
    """All sources, then the best and the worst predicted of them."""
    by = {(row["metric"], row["conditions"]["source"]): row for row in summary}
    model, unigram, gain = (by[metric, ALL] for metric in ("perplexity", "unigram_perplexity", RATIOS[GAIN]))
    said = [f"On documents it never read its perplexity is {_level(model)}, n = {model['n']} documents of {model['tokens']:,} tokens; "
            f"a unigram model of its training text has {_level(unigram)}.", _compared(gain)]
    rows = sorted((row for row in summary if row["metric"] == "perplexity" and row["conditions"]["source"] != ALL),
                  key=lambda row: row["mean"])
    if len(rows) > 1:
        best, worst = rows[0], rows[-1]
        said.append(f"It predicts {best['conditions']['source']} best ({_level(best)}, n = {best['n']}) and "
                    f"{worst['conditions']['source']} worst ({_level(worst)}, n = {worst['n']}).")
    return said


def _compared(gain: Mapping) -> str:
    side = "less than" if gain["mean"] < 0 else "more than"
    low_high = "" if gain["ci_low"] is None else f" [{number(gain['ci_low'], 3)}, {number(gain['ci_high'], 3)}]"
    return (f"A token costs it {number(abs(gain['mean']), 3)} nats {side} the unigram model (difference "
            f"{number(gain['mean'], 3)}{low_high}, p {equals(gain['p'])}).")


def _level(row: Mapping) -> str:
    ends = "" if row["ci_low"] is None else f" [{number(row['ci_low'], 1)}, {number(row['ci_high'], 1)}]"
    return f"{number(row['mean'], 1)}{ends}"


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
        said.append(f"Lines not trained on: {left}.")
    if documents["asked_for_and_never_met"]:
        said.append(f"Named in dataset.sets or dataset.weights and never met: {', '.join(documents['asked_for_and_never_met'])}.")
    if thin:
        said.append(f"Fewer than 20 validation documents: {', '.join(thin)}; their intervals are too narrow.")
    if info["hugging_face"] != "artifacts/hf":
        said.append(f"There is no copy in Hugging Face's layout: {info['hugging_face']}.")
    return [*said, *too_few(met[ALL])]

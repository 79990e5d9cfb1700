"""What a comparison with published numbers says: a row an item, the verdict, and what was not computed."""
from __future__ import annotations

from collections.abc import Iterable, Mapping

from mamba_mi.report.words import MINUS, metric, number

CURVE = ("source", "query", "timescale")
KEPT = {"all_but_slow": "slowest third kept", "all_but_fast": "fastest third kept"}


def rows(compared: Mapping) -> list[dict]:
    """The table: every number with nothing blocked; of the windows of one knockout the start at which the two differ most."""
    plain = [item for item in compared["items"] if item["window_start"] is None]
    curves: dict[tuple, list] = {}
    for item in compared["items"]:
        if item["window_start"] is not None:
            curves.setdefault((*(item[key] for key in CURVE), item["unit"]), []).append(item)
    worst = [max(items, key=lambda item: abs(item["difference"])) for items in curves.values()]
    together = {id(w): items for w, items in zip(worst, curves.values(), strict=True)}
    return [_row(item, together.get(id(item), [item])) for item in (*plain, *worst)]


def _row(item: Mapping, items: Iterable[Mapping]) -> dict:
    decimals = 2 if "%" in item["unit"] else 4
    agree, of = (sum(each[key] for each in items) for key in ("agree", "of"))
    signed = number(item["difference"], decimals)
    return {"conditions": {"source": item["source"], "query": item["query"], "timescale": KEPT.get(item["timescale"])},
            "start": item["window_start"], "quantity": metric(item["unit"]), "n": item["n"],
            "ours": number(item["ours"], decimals), "published": number(item["published"], decimals),
            "difference": signed if signed.startswith(MINUS) else f"+{signed}", "agree": f"{agree} of {of}" if of else "not judged"}


def findings(compared: Mapping) -> list[str]:
    """The verdict, what disagrees most, and how far apart the two are."""
    items = compared["items"]
    agree, of = (sum(item[key] for item in items) for key in ("agree", "of"))
    if not of:
        return [_mean(item) for item in items]
    where = f"under {len(items)} conditions, within the tolerance of {compared['reference']}"
    said = [f"Every published number is met: {agree} of {of}, {where}." if agree == of else
            f"Not every published number is met: {agree} of {of}, {where}; {of - agree} off."]
    off = [(_shares(compared, item, row), item, row) for item in items for row in item["prompts"] if not row["within"]]
    for _, item, row in sorted(off, key=lambda found: -found[0])[:3]:
        said.append(f"Off: {item['item']} of {row['prompt_id']}: ours {row['ours']:.6g}, published {row['published']:.6g}.")
    said += [_mean(item) for item in items if not item["prompts"] and item["agree"] < 1]
    return said + [_largest(items, name) for name in dict.fromkeys(item["metric"] for item in items if item["prompts"]) if name != "hit"]


def _shares(compared: Mapping, item: Mapping, row: Mapping) -> float:
    """The difference in units of the tolerance; a hit, which has none, comes after the numbers it follows from."""
    absolute, relative = compared["tolerance"][item["metric"]]
    allowed = absolute + relative * abs(row["published"])
    return abs(row["difference"]) / allowed if allowed else 0.0


def _mean(item: Mapping) -> str:
    numbers = (f"{item['unit']} over {item['n']:,} prompts: ours {item['ours']:.4f}, published {item['published']:.4f} over "
               f"{item['n_published']:,}")
    return f"Off: {numbers}." if item["of"] else f"Not judged, being a sample: {numbers}; dataset.n=null takes all."


def _largest(items: Iterable[Mapping], name: str) -> str:
    largest = max(abs(row["difference"]) for item in items if item["metric"] == name for row in item["prompts"])
    return f"The largest difference of one prompt's {metric(name)} is {largest:.2g}."


def caveats(compared: Mapping) -> list[str]:
    """How far two numbers may be apart, whose they are, and which published ones are missing from the table."""
    limits = "; ".join(f"{metric} {absolute:g}" + (f" + {relative:g} of the published" if relative else "")
                       for metric, (absolute, relative) in compared["tolerance"].items()
                       if any(metric in (item["metric"], item["unit"].split()[0]) for item in compared["items"]))
    why = f": {compared['tolerance_why']}" if compared["tolerance_why"] else ""
    said = [f"Two numbers agree within {limits}{why}."]
    fewer = [item for item in compared["items"] if item["n"] < item["n_published"]]
    if fewer:
        most = max(fewer, key=lambda item: item["n_published"] - item["n"])
        said.append(f"Not every published prompt was measured: {most['n']} of {most['n_published']}; both sides are means over "
                    "the measured ones, a published mean over all. prompts.json says why.")
    sources = dict.fromkeys(item["source_of_number"] for item in compared["items"] if item["source_of_number"])
    said += [f"Published in: {source}." for source in sources]
    said += [f"Not computed here: {x['what']} ({x['published']}): {x['why']}." for x in compared["not_computed"]]
    return said

"""What an information flow found, in sentences: where each source counts the most, and what the conv carries past it."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mamba_mi.report.words import NOTHING, RELATIVE, equals, layers, number, stands_out

ALL = "all"
QUERIES = {"last": "the last token", "relation": "the relation", "relation_without_last": "the relation without the last token",
           "subject": "the subject"}
SOURCES = {"none": "nothing", "last": "the last token itself", "second_to_last": "the second to last token",
           "first": "the first token", "subject": "the subject", "relation": "the relation (all tokens but the subject)",
           "relation_without_last": "the relation without the last token", "context": "what stands before the subject",
           "bos": "BOS", "random": "as many random tokens", "beyond_conv": "as many random tokens beyond the conv's reach"}
CONTROLS = ("random", "beyond_conv")
POLICIES = {("scan", "token"): "its own slots", ("scan", "token+conv"): "the slots after it that the conv reaches, too",
            ("conv", "token"): "only what the conv carries past its slots",
            ("both", "token"): "it out of the conv and of the scan"}
PLAIN, WIDE, PAST, GONE = POLICIES
SPLITS = {"subject_first": "the subject begins the prompt", "subject_later": "it stands later"}
PRINTED = ("conditions", "metric", "n", "n_clusters", "mean", "ci_low", "ci_high", "effect_size", "p_adjusted")


def source(name: str) -> str:
    """`value+1` as `the slot after value`."""
    stem, plus, later = name.partition("+")
    if not plus:
        return SOURCES.get(name, name)
    return f"the slot after {SOURCES.get(stem, stem)}" if later == "1" else f"{later} slots after {SOURCES.get(stem, stem)}"


def pick(summary: Iterable[Mapping], metric: str = RELATIVE, **wanted) -> list[Mapping]:
    """The rows of a metric under these conditions that have an estimate."""
    return [row for row in summary if row["metric"] == metric and row["mean"] is not None
            and wanted.items() <= row["conditions"].items()]


def values(summary: Iterable[Mapping], key: str) -> list:
    """The different values of a condition, in the order they are met."""
    return list(dict.fromkeys(row["conditions"].get(key) for row in summary))


def policies(summary: Sequence[Mapping]) -> list[tuple[str, str]]:
    """The (conv, span) measured, the published one first."""
    found = {(row["conditions"]["conv"], row["conditions"]["span"]) for row in summary}
    return [each for each in (PLAIN, WIDE, PAST, GONE) if each in found]


def focus(summary: Sequence[Mapping]) -> str | None:
    """The source the conv is told of: the subject, or the last span whose next slot was blocked as well."""
    names = values(summary, "source")
    twins = [name for name in names if f"{name}+1" in names]
    return "subject" if "subject" in names else max(twins, default=None)


def strongest(rows: Sequence[Mapping]) -> Mapping | None:
    return max(rows, key=lambda row: abs(row["mean"]), default=None)


def headline(summary: Sequence[Mapping]) -> list[dict]:
    """Each source where it counts the most, by the published policy; then the focus by the others, and by timescale."""
    if not (main := _main(summary)):
        return []
    peaks = [strongest(pick(summary, **main, source=name)) for name in _told(summary)]
    about = focus(summary)
    for conv, span in policies(summary)[1:] if about else []:
        peaks.append(strongest(pick(summary, **{**main, "conv": conv, "span": span}, source=about)))
    for timescale in [name for name in ("slow", "mid", "fast") if about and name in values(summary, "timescale")]:
        peaks.append(strongest(pick(summary, **{**main, "timescale": timescale}, source=about)))
    return [{key: row[key] for key in PRINTED if key in row} for row in peaks if row]


def _main(summary: Sequence[Mapping]) -> dict:
    """The conditions of the curves told of first: all prompts, the first policy and timescale there are."""
    if not pick(summary):
        return {}
    conv, span = policies(summary)[0]
    timescales = values(summary, "timescale")
    return {"conv": conv, "span": span, "split": ALL, "timescale": ALL if ALL in timescales else timescales[0]}


def _told(summary: Sequence[Mapping]) -> list[str]:
    names = values(summary, "source")
    order = [*(name for name in SOURCES if name in names), *(name for name in names if name not in SOURCES)]
    return [name for name in order if name != "none"]


def findings(summary: Sequence[Mapping]) -> list[str]:
    """The result in words, every number with its interval and n."""
    if not (main := _main(summary)):
        return ["There is no result: no source was blocked in any prompt."]
    about = focus(summary)
    peaks = [strongest(pick(summary, **main, source=name)) for name in _told(summary) if name not in CONTROLS]
    said = [*(_of_source(summary, main, row) for row in sorted(filter(None, peaks), key=lambda row: -abs(row["mean"]))),
            _past(summary, main, about), *_one_later(summary, main), _controls(summary, main),
            _splits(summary, main, about), _timescales(summary, main, about), _nothing(summary)]
    return [sentence for sentence in said if sentence]


def change(row: Mapping | None) -> str:
    """`−60.1% [−65.0, −55.2]`."""
    if row is None:
        return NOTHING
    ends = "" if row["ci_low"] is None else f" [{number(row['ci_low'])}, {number(row['ci_high'])}]"
    return f"{number(row['mean'])}%{ends}"


def _of_source(summary, main, row: Mapping) -> str:
    named = source(row["conditions"]["source"])
    text = f"Blocking {named} ({POLICIES[main['conv'], main['span']]}) changes p the most in {layers(row)}: {change(row)}"
    if hit := _same(summary, row, "hit"):
        text += f", hit rate {_points(hit)}"
    return f"{text}, n = {row['n']}, p (max-T) {equals(row['p_adjusted'])}."


def _points(row: Mapping) -> str:
    sign = "+" if row["mean"] > 0 else ""
    return f"{sign}{number(100 * row['mean'])} points"


def _same(summary, row, metric: str = RELATIVE, **other) -> Mapping | None:
    return next(iter(pick(summary, metric, **{**row["conditions"], **other})), None)


def _past(summary, main, about: str | None) -> str:
    """What the conv carries past the slots of a source: the policies side by side, in the window where it is most."""
    found = policies(summary)
    last = next((each for each in (GONE, WIDE) if each in found), None)
    whole = last and strongest(pick(summary, **{**main, "conv": last[0], "span": last[1]}, source=about))
    there = {each: _same(summary, whole, conv=each[0], span=each[1]) for each in found} if whole else {}
    if not there.get(PLAIN):
        return ""
    text = (f"The conv of {source(about)}, in {layers(whole)} (n = {whole['n']}): blocking {POLICIES[PLAIN]} changes p by "
            f"{change(there[PLAIN])}")
    if there.get(PAST):
        text += f"; blocking {POLICIES[PAST]}, {change(there[PAST])}"
    if there.get(WIDE):
        text += f"; blocking {POLICIES[WIDE]}, {change(there[WIDE])}"
        chance = _same(summary, there[WIDE], source="random") if last != WIDE else None
        text += f" (of as many random tokens, {change(chance)})" if chance else ""
    text += f"; taking {POLICIES[GONE]}, {change(there[GONE])}" if there.get(GONE) else ""
    beside = [f"{source(name)}: {change(row)}" for name in CONTROLS if (row := _same(summary, whole, source=name))]
    beside = f" By that last way, {'; '.join(beside)}." if beside else ""
    return f"{text}. {_verdict(there[PLAIN], whole, there.get(PAST), about)}{beside}"


def _verdict(own: Mapping, whole: Mapping, past: Mapping | None, about: str) -> str:
    """By halves of what is lost when the source is gone, and by whether the intervals lie apart."""
    half = abs(whole["mean"]) / 2
    if not stands_out(whole):
        return "None of it stands out (max-T)."
    if abs(own["mean"]) < half and _apart(own, whole):
        return (f"Most of what is read from {source(about)} travels through the conv, in the slots after its own: a knockout of "
                "its own slots alone does not see it.")
    if past and abs(past["mean"]) > half:
        return (f"Either way alone costs more than half of that: the answer needs both, {source(about)}'s own slots and what the conv "
                "carries past them.")
    if not _apart(own, whole):
        return "Its own slots alone cost about as much as the whole (the intervals overlap)."
    return f"The larger part of what is read from {source(about)} is read from its own slots; the conv carries the rest."


def _apart(one: Mapping, other: Mapping) -> bool:
    if None in (one["ci_low"], other["ci_low"]):
        return False
    return one["ci_high"] < other["ci_low"] or other["ci_high"] < one["ci_low"]


def _one_later(summary, main) -> list[str]:
    """A source beside the slot after it: where its content is stored."""
    said = []
    for name in (name for name in values(summary, "source") if f"{name}+1" in values(summary, "source")):
        rows = [*pick(summary, **main, source=name), *pick(summary, **main, source=f"{name}+1")]
        peak = strongest(rows)
        if peak is None or not stands_out(peak):
            continue
        own, later = (_same(summary, peak, source=each) for each in (name, f"{name}+1"))
        if own and later:
            said.append(f"In {layers(peak)}, blocking the slot of {name} changes p by {change(own)}, the slot after it by "
                        f"{change(later)} (n = {own['n']}): {_where(name, own, later)}.")
    return said


def _where(name: str, own: Mapping, later: Mapping) -> str:
    if not _apart(own, later):
        return "which counts for more is open, the intervals overlap"
    if abs(own["mean"]) < abs(later["mean"]) / 2:
        return f"what is read of {name} is stored one token after it"
    return "it is read from its own slot" if abs(later["mean"]) < abs(own["mean"]) / 2 else "both slots count"


def _controls(summary, main) -> str:
    peaks = [(name, strongest(pick(summary, **main, source=name))) for name in CONTROLS]
    told = [f"{source(name)} change p by {change(row)} at most, in {layers(row)} (n = {row['n']}, p (max-T) {equals(row['p_adjusted'])})"
            for name, row in peaks if row]
    return f"Controls: {'; '.join(told)}." if told else ""


def _splits(summary, main, about) -> str:
    peak = strongest(pick(summary, **main, source=about))
    parts = [(said, _same(summary, peak, split=name)) for name, said in SPLITS.items()] if peak else []
    if not all(row for _, row in parts) or not parts:
        return ""
    told = "; ".join(f"where {said}, {change(row)} (n = {row['n']})" for said, row in parts)
    return f"Blocking {source(about)} in {layers(peak)}: {told}."


def _timescales(summary, main, about) -> str:
    named = [name for name in ("slow", "mid", "fast") if name in values(summary, "timescale")]
    peak = strongest([row for name in named for row in pick(summary, **{**main, "timescale": name}, source=about)])
    if peak is None:
        return ""
    told = "; ".join(f"{name} {change(_same(summary, peak, timescale=name))}" for name in [*named, ALL]
                     if _same(summary, peak, timescale=name))
    return f"By timescale, {source(about)} blocked in {layers(peak)} (n = {peak['n']}): {told}."


def _nothing(summary) -> str:
    rows = [row for row in summary if row["conditions"]["source"] == "none"]
    if not rows:
        return ""
    off = [row for row in rows if row["mean"] != 0]
    return (f"The run that blocks nothing differs from itself in {len(off)} of {len(rows)} cells: do not believe this run." if off
            else f"Blocking nothing, by the way of every other knockout, changes nothing: exactly 0 in all {len(rows)} cells.")

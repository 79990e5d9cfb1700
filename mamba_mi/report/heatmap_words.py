"""What a heatmap run found, in sentences: where the last token reads from, and what the conv brings to the slots after a token."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mamba_mi.data.alignment import ALIGNED
from mamba_mi.report.words import RELATIVE, equals, layers, number, stands_out, too_few, without_ratio
from mamba_mi.report.words import metric as metric_name
from mamba_mi.report.words import role as role_name

BLOCKED = {"scan": "the slot", "both": "the token itself", "conv": "the way past the scan"}
SLOTS, TOKENS = ("scan", "token"), ("both", "token")  # policies: conv and span
FEWEST_WINDOWS = 4  # fewer say little about where


def policy(conv: str, span: str) -> str:
    """What a knockout takes away: `the slot (conv=scan)`."""
    if span == "token":
        return f"{BLOCKED[conv]} (conv={conv})"
    return f"{BLOCKED[conv]} and those after it (conv={conv}, span={span})"


def by_policy(rows: Sequence[Mapping]) -> dict[tuple[str, str], list[Mapping]]:
    """A summary's rows by conv and span, in `in_order`."""
    found = {}
    for row in rows:
        found.setdefault((row["conditions"]["conv"], row["conditions"]["span"]), []).append(row)
    return {named: found[named] for named in in_order(found)}


def in_order(named: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Slots first, and single tokens before those with the slots after them."""
    return sorted(named, key=lambda both: (both[1] != "token", list(BLOCKED).index(both[0])))


def window(size: int) -> str:
    """`windows of 5 layers`."""
    return "single layers" if size == 1 else f"windows of {size} layers"


def setting(knobs, size: int, policies: Sequence[tuple[str, str]]) -> dict[str, str]:
    """What decides the result beside model, data and seed."""
    told = {"layers": window(size) + ("" if size == knobs.window else f", for {knobs.window} do not fit into this model"),
            "query": "the last token", "blocked": "; ".join(policy(*each) for each in policies),
            "metrics": ", ".join(map(metric_name, knobs.metrics))}
    if knobs.best is not None:
        told["prompts"] = f"the {knobs.best} of highest probability"
    if knobs.prompts is not None:
        told["prompts"] = "chosen: " + ", ".join(map(str, knobs.prompts))
    return told


def headline(summary: Sequence[Mapping], metric: str) -> list[dict]:
    """Of every role the window in which the metric changes the most."""
    found = []
    for rows in by_policy(_estimates(summary, metric)).values():
        roles = sorted({row["conditions"]["role"] for row in rows}, key=_place)
        found += [max((row for row in rows if row["conditions"]["role"] == name), key=lambda row: abs(row["mean"]))
                  for name in roles]
    return found


def findings(summary: Sequence[Mapping], metric: str, width: int | None = None) -> list[str]:
    """Of each policy its deepest fall, then the slot of the subject's last token beside the slot after it, where there is a
    conv (`width` 1: none; None: not known)."""
    maps = by_policy(_estimates(summary, metric))
    told = [_deepest(named, rows, metric) for named, rows in maps.items()]
    return told + (_smear(maps, metric) if width != 1 else []) if told else ["There is no result: no cell has an estimate."]


def _deepest(named: tuple[str, str], rows: Sequence[Mapping], metric: str) -> str:
    firm, start = list(filter(stands_out, rows)), f"Blocking {policy(*named)}: "
    falls = [row for row in firm if row["mean"] < 0]
    if not firm:
        return f"{start}of {len(rows)} cells none stands out at 5% after correction over the whole map (max-T)."
    count = f"{start}{len(firm)} of {len(rows)} cells stand out (max-T)"
    if not falls:
        return f"{count}, and in none of them {_name(metric)} falls."
    peak = min(falls, key=lambda row: row["mean"])
    return (f"{count}. {_name(metric).capitalize()} falls the most when the last token cannot read the "
            f"{role_name(peak['conditions']['role'])} in {layers(peak)}: {_change(peak, metric)}, n = {peak['n']} prompts, "
            f"p (max-T) {equals(peak['p_adjusted'])}.")


def _smear(maps: Mapping, metric: str) -> list[str]:
    """The conv's doing: what is read at the slot of the subject's last token, and at the slot after it."""
    at = {(row["conditions"]["role"], row["conditions"]["window_start"]): row for row in maps.get(SLOTS, ())}
    firm = [row for (role, _), row in at.items() if role in ("subject_last", "after_subject") and stands_out(row)
            and row["mean"] < 0]
    if not firm:
        return []
    start = min(firm, key=lambda row: row["mean"])["conditions"]["window_start"]
    own, after = (at.get((role, start)) for role in ("subject_last", "after_subject"))
    if own is None or after is None:
        return []
    text = (f"In {layers(own)}, blocking the slot of the last subject token changes {_name(metric)} by {_change(own, metric)}, "
            f"blocking the slot after it by {_change(after, metric)}")
    if stands_out(after) and after["mean"] < 0:
        text += ("; the conv writes the tokens just before a slot into it as well, so a subject whose slots are blocked is still "
                 "read from those after them")
    else:
        text += "; the subject is read from its own slots there, which the conv fills from the tokens just before each as well"
    return [text + _themselves(maps, start, metric)]


def _themselves(maps: Mapping, start: int, metric: str) -> str:
    """The same with the tokens taken out instead of their slots, where that was measured."""
    if TOKENS not in maps:
        return ". A slot is not its token: method.conv=[scan,both] shows both."
    rows = {row["conditions"]["role"]: row for row in maps[TOKENS] if row["conditions"]["window_start"] == start}
    said = [f"{role_name(role)} {_change(rows[role], metric)}" for role in ("subject_first", "subject_last", "after_subject")
            if role in rows]
    return f". With the tokens themselves taken out, wherever the conv brought them (conv=both): {'; '.join(said)}."


def caveats(summary: Sequence[Mapping], knobs, width: int | None = None) -> list[str]:
    """What a reader must know before believing a heatmap."""
    n = max((row["n"] for row in summary), default=0)
    size = summary[0]["conditions"]["window_size"] if summary else knobs.window
    windows, told = len({row["conditions"]["window_start"] for row in summary}), too_few(n) + without_ratio(summary)
    depth, mixing = windows + size - 1, " that mix tokens" if any("layers" in row for row in summary) else ""
    if size != knobs.window:
        told.append(f"method.window={knobs.window}, the default, does not fit into {depth} layers{mixing}: windows of {size} were used.")
    if 0 < windows < FEWEST_WINDOWS and size > 1:
        told.append(f"Windows of {size} of {depth} layers{mixing}: there are only {windows}, which say little about where; "
                    f"method.window={max(1, depth // 3)} shows more.")
    if knobs.best is not None:
        told.append("The prompts are those of highest probability: the mean holds for such prompts.")
    if "logit_difference" in knobs.metrics and not any(row["metric"] == "logit_difference" for row in summary):
        told.append("No prompt names a wrong answer, so there is no logit difference.")
    return told + [
        "A knockout cuts what the last token reads from a token directly, in the window's layers. What other tokens have read "
        "from it before, and the last token from them, is not cut.",
        *([] if width == 1 else [_slots(width)]),
        "In the mean a prompt's last token counts as that alone, the only token of a subject as its last, and several tokens "
        "of one role in a prompt are averaged before prompts are. A cell is one token knocked out, never a whole role."]


def _slots(width: int | None) -> str:
    reach = "few" if width is None else str(width - 1)
    return ("conv=scan, the published practice, blocks slots of the mixing. The conv writes a token into the "
            f"{reach} slots after its own too, and a slot holds the {reach} tokens before it.")


def _estimates(summary, metric: str) -> list[Mapping]:
    return [row for row in summary if row["metric"] == metric and row["mean"] is not None]


def _place(name: str) -> tuple[int, str]:
    return (ALIGNED.index(name) if name in ALIGNED else len(ALIGNED)), name


def _name(metric: str) -> str:
    return "the answer's probability" if metric == RELATIVE else f"the answer's {metric_name(metric)}"


def _change(row, metric: str) -> str:
    """`−50% [−62, −39]` of the clean probability, or a difference in the metric's own unit."""
    decimals, unit = (1, "%") if metric == RELATIVE else (2, "")
    ends = "" if row["ci_low"] is None else f" [{number(row['ci_low'], decimals)}, {number(row['ci_high'], decimals)}]"
    return f"{number(row['mean'], decimals)}{unit}{ends}"

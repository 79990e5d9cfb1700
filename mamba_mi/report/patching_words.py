"""What a patching run found, in sentences: where a curve over layers turns, and what a subspace does beside chance."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from mamba_mi.report.words import HEADLINE, equals, number, share, stands_out, too_few
from mamba_mi.report.words import role as role_name
from mamba_mi.report.words import site as site_name

VERBS = {"denoising": ("Restoring", "brings back"), "noising": ("Corrupting", "destroys")}
SHOWN = 4  # sites told of
ROLES = {"subject": "all subject tokens", "last": "the last token"}


def crossing(summary: Sequence[Mapping], direction: str, site: str, role: str) -> list[str]:
    """Where a role's curve over layers passes one half."""
    rows = _curve(summary, direction=direction, site=site, role=role)
    if not rows:
        return []
    verb = VERBS[direction]
    peak, final = max(rows, key=lambda row: row["mean"]), rows[-1]
    if len(rows) == 1 or not stands_out(peak):
        return []
    text = (f"{verb[0]} {ROLES[role]} ({site_name(site)}) {verb[1]} the most at layer {peak['conditions']['layer']}: {share(peak)} of the "
            f"logit difference, n = {peak['n']}")
    if peak["mean"] < 0.5:
        return [f"{text}; it stays below one half before every layer measured."]
    turn = _turn(rows, peak, falling=role == "subject")
    if turn is None:
        return [f"{text}; it is still {share(final)} before layer {final['conditions']['layer']}."]
    verb = "falls below" if role == "subject" else "passes"
    return [f"{text}; it {verb} one half at layer {turn['conditions']['layer']} ({share(turn)})."]


def largest(summary: Sequence[Mapping], direction: str) -> list[str]:
    """The largest single effects over all sites, roles and heads, among those that stand out of the whole map."""
    rows = [row for row in summary if row["metric"] == HEADLINE and row["mean"] is not None
            and row["conditions"]["direction"] == direction and row["conditions"]["role"] != "subject_last"]
    if not rows:
        return []
    firm = sorted(filter(stands_out, rows), key=lambda row: -abs(row["mean"]))
    if not firm:
        return [f"{VERBS[direction][0]}: of {len(rows)} cells none stands out at 5% after correction over the whole map (max-T)."]
    of_site = {}  # the largest at each site, so that the residual stream does not fill the list
    for row in firm:
        of_site.setdefault(row["conditions"]["site"], row)
    said = "; ".join(f"{_place(row['conditions'])} {share(row)}" for row in list(of_site.values())[:SHOWN])
    return [f"{VERBS[direction][0]}: {len(firm)} of {len(rows)} cells stand out (max-T), the largest of each site: {said}."]


def _place(conditions: Mapping) -> str:
    head = f" head {conditions['head']}" if conditions.get("head") is not None else ""
    layer = "" if conditions["layer"] < 0 else f", layer {conditions['layer']}"
    return f"{site_name(conditions['site'])}{head}{layer}, {role_name(conditions['role'])}"


def setting(knobs, lm) -> dict[str, str]:
    """What decides the result beside model, data and seed."""
    corruption = {"pair": "another subject in the same words", "resample": "any prompt of the same shape",
                  "noise": f"noise of {knobs.noise:g} standard deviations on the subject, {knobs.samples} draws"}
    told = {"corrupted run": corruption[knobs.corruption], "metrics": ", ".join(knobs.metrics)}
    if knobs.subspace:
        drawn = knobs.draws if knobs.draw is None else 1
        told["subspace"] = f"{knobs.subspace.replace('_', ' ')}, rank {knobs.rank}, {drawn} draws a family"
    if len(lm.mixing) < lm.config.n_layer:
        told["layers that mix tokens"] = f"{', '.join(map(str, lm.mixing))} of {lm.config.n_layer}"
    return told | {key: str(getattr(knobs, key)) for key in ("heads", "dims") if getattr(knobs, key) is not None}


def beside_chance(summary: Sequence[Mapping], direction: str, site: str, role: str, kind: str) -> list[str]:
    """What the fitted subspace does where it does the most, beside random ones and beside the whole value."""
    rows = _curve(summary, direction=direction, site=site, role=role, subspace=kind)
    if not rows:
        return []
    peak = max(rows, key=lambda row: row["mean"])
    layer = peak["conditions"]["layer"]
    whole = _curve(summary, direction=direction, site=site, role=role, subspace="full", layer=layer)
    verb = VERBS[direction]
    text = (f"{verb[0]} {peak['conditions']['rank']} dimensions ({kind.replace('_', ' ')}) of {ROLES.get(role, role)} "
            f"({site_name(site)}) {verb[1]} the most at layer {layer}: {share(peak)} of the logit difference, n = {peak['n']}")
    text += f"; the whole value, {share(whole[0])}" if whole else ""
    if peak.get("control_p") is not None:
        text += (f"; random subspaces of that rank, {number(peak['control_mean'])} [{number(peak['control_low'])}, "
                 f"{number(peak['control_high'])}], the middle 95% of {peak['draws']} draws, p {equals(peak['control_p'])}")
        others = {family: peak.get(f"control_p_{family}") for family in ("covariance", "rescaled")}
        text += "".join(f"; {family} p {equals(p)}" for family, p in others.items() if p is not None)
    return [f"{text}."]


def caveats(summary: Sequence[Mapping], knobs, width: int | None = None) -> list[str]:
    """What a reader must know before believing a patching run with these knobs; `width` is the conv's (1: none; None: not known)."""
    n = max((row["n"] for row in summary), default=0)
    told = [
        f"Prompts whose clean and corrupt logit differences lie within {knobs.tau} are left out of the ratio; "
        "the column excluded counts them.",
        "Patching shows where information that distinguishes the two prompts is used, not how it is computed. "
        "A site can be sufficient without being necessary, where the model holds the information twice.",
        *([] if width == 1 else [_conv(width)]),
    ]
    return too_few(n) + told + _of_corruption(knobs) + _of_subspace(summary, knobs)


def _conv(width: int | None) -> str:
    what, reach = ("A conv", "few") if width is None else (f"The conv of width {width}", str(width - 1))
    after = "shortly" if width is None else "1 position" if width == 2 else f"1 to {width - 1} positions"
    return (f"{what} carries a token's content into the next {reach} positions before tokens are mixed, so a site after the conv can "
            f"show a token's information {after} after the token.")


def _of_corruption(knobs) -> list[str]:
    if knobs.corruption == "noise":
        return [f"The corrupted run is the clean prompt with Gaussian noise of {knobs.noise:g} standard deviations on the "
                f"subject's embeddings, averaged over {knobs.samples} draws a prompt. Noise takes the model where no text "
                "does; corruption=pair, another subject in its place, does not."]
    if knobs.corruption == "resample":
        return ["The corrupted run is any other prompt of the same length and spans: what distinguishes the two is the "
                "relation asked for as well as the subject."]
    return []


def _of_subspace(summary: Sequence[Mapping], knobs) -> list[str]:
    if not knobs.subspace:
        return []
    told = [f"The subspace was fitted on up to {knobs.train} pairs of subjects that are not measured."]
    if {"row_space", "null_space"} <= {row["conditions"].get("subspace") for row in summary}:
        told.append("row space and null space are the parts of the subspace that the next linear map reads and does not "
                    "read. An effect that the null-space part carries with it is an illusion (Makelov et al. 2023).")
    else:
        told.append("No linear map reads this site, so the subspace was not split into row space and null space.")
    matched = [row["control_match"] for row in summary if row.get("control_match") is not None]
    if matched:
        told.append(f"An isotropic control exchanges {number(min(matched))} to {number(max(matched))} times as much as the "
                    "fitted subspace (root mean square norm). The rescaled family matches the norm exactly, and is for that "
                    "no interchange any more: p (rescaled) is shown beside p (control), which comes from isotropic draws.")
    elif not knobs.draws and knobs.draw is None:
        told.append("No random subspaces were drawn: whether the effect beats chance is not known (method.draws=100).")
    return told


def _curve(summary, **wanted) -> list[Mapping]:
    """The headline rows under these conditions, by layer."""
    return sorted((row for row in summary if row["metric"] == HEADLINE and row["mean"] is not None
                   and wanted.items() <= row["conditions"].items()), key=lambda row: row["conditions"]["layer"])


def _turn(rows, peak, falling: bool):
    """The first row past one half: below it after the peak, or above it at all."""
    if falling:
        return next((r for r in rows if r["conditions"]["layer"] >= peak["conditions"]["layer"] and r["mean"] < 0.5), None)
    return next((r for r in rows if r["mean"] >= 0.5), None)


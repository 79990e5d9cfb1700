"""What decides an information flow, and what a reader must know before believing it."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from mamba_mi.report.knockout_words import ALL, CONTROLS, QUERIES, source, values
from mamba_mi.report.words import RELATIVE, span, too_few, without_ratio


def setting(knobs, windows: Sequence[int], scaled: bool, lm) -> dict[str, str]:
    """What decides the result beside model, data and seed."""
    depth, sizes = len(lm.mixing), " and ".join(map(str, windows)) + (" layer" if list(windows) == [1] else " layers")
    if depth < lm.config.n_layer:
        sizes += f" of the {depth} that mix tokens ({', '.join(map(str, lm.mixing))})"
    if scaled:
        sizes += f" (the {' and '.join(map(str, knobs.windows))} of 24 layers and more, scaled to this model's {depth})"
    own = "made without the sources too" if knobs.query_conv else "as they are"
    told = {"query": QUERIES[knobs.query], "windows": sizes}
    if lm.config.d_conv == 1:
        told["blocked"] = "a token's slot in the mixing; there is no conv that carries it elsewhere (conv=scan span=token alone)"
        if knobs.sources == ALL:
            told["controls"] = "random tokens alone: without a conv none are within its reach, so beyond_conv would be random again"
    else:
        told |= {"conv policies": ", ".join(knobs.conv), "spans": ", ".join(knobs.span), "the query's own C and D-skip": own}
    if knobs.timescales != [ALL]:
        told["timescales"] = f"{', '.join(knobs.timescales)}: thirds by effective horizon, mean dt of {knobs.reference} prompts"
    return told


SLOTS = ("scan, the published practice, blocks a slot of the mixing, not a token: the conv has brought the token into the slots "
         "after it, and what earlier tokens left in its slot goes with it. both takes the token out of the conv and of the mixing; "
         "conv cuts only its way past its own slot; token+conv blocks the slots after it as well, and with them what other "
         "tokens wrote there: compare it with random tokens under the same policy.")


def caveats(summary: Sequence[Mapping], knobs, prompts: Sequence, width: int | None) -> list[str]:
    """In the order of what misleads most. `prompts` are those measured and `width` the conv's, where they are known."""
    most = max((row["n"] for row in summary), default=0)
    return too_few(most) + without_ratio(summary) + ([] if width == 1 else [SLOTS]) + [
        "The effect of a window is that of blocking all its layers together. A window without effect can be a way the model "
        "has twice; an effect says that something is read there, not what.",
        "p (max-T) is adjusted over all sources and windows of one policy, size of window, timescale and split: one panel of "
        "the figure. The window told of is the strongest, so its size is on the high side; its p is adjusted for that.",
        *(["A large dt makes a head forget fast and write much: that fast heads cost the most can be that they write the most."]
          if knobs.timescales != [ALL] else []),
        *_few(summary), *_near(prompts, width, knobs), *_several_tokens(prompts), *_of_random(summary),
        *(["The answer's further tokens (target_logprob) read everything: only the prompt's query is kept from the sources."]
          if "target_logprob" in knobs.metrics else []),
    ]


def _few(summary) -> list[str]:
    """Sources that some prompts lack: their n is smaller, and their prompts are others."""
    n = {name: [row["n"] for row in summary if row["conditions"]["source"] == name and row["conditions"]["split"] == ALL
                and row["metric"] == RELATIVE] for name in values(summary, "source")}
    most = max((max(found) for found in n.values() if found), default=0)
    lacking = [f"{source(name)} (n = {span(found)})" for name, found in n.items() if found and max(found) < most]
    return [f"Not every one of the {most} prompts has {', '.join(lacking)}: curves with another n are of other prompts."] if lacking else []


def _near(prompts, width, knobs) -> list[str]:
    if not prompts or width is None or knobs.query != "last":
        return []
    about = [(p, max(end for name, (_, end) in p.spans.items() if name != "bos")) for p in prompts if set(p.spans) - {"bos"}]
    near = sum(len(p.token_ids) - end < width - 1 for p, end in about)
    if not near:
        return []
    what = "subject" if any("subject" in p.spans for p, _ in about) else "last span"
    own = ("its own C and D-skip are made without the sources (method.query_conv)" if knobs.query_conv else
           "what the conv brings it directly, in its own C and D-skip, stays (method.query_conv=true takes it out)")
    return [f"In {near} of {len(about)} prompts the last token is within the conv's reach of the {what}: {own}."]


def _several_tokens(prompts) -> list[str]:
    several = sum(len(p.target_ids) > 1 for p in prompts)
    return [f"In {several} of {len(prompts)} prompts the answer has several tokens: p, hit and the rest are of its first "
            "(method.metrics=[…,target_logprob] adds the whole answer's)."] if several else []


def _of_random(summary) -> list[str]:
    drawn = set(CONTROLS) & set(values(summary, "source"))
    beyond = "; beyond_conv keeps off the slots that the conv brings the subject to as well" if "beyond_conv" in drawn else ""
    return ["Random tokens are drawn once a prompt, as many as the subject has (without one, as the first span), outside it, the "
            f"last token apart{beyond}."] if drawn else []

"""What is said of an information flow: numbers of the summary, verdicts that its intervals carry."""
from types import SimpleNamespace

import pytest

from mamba_mi.report.knockout_caveats import caveats
from mamba_mi.report.knockout_words import findings, headline

from .synthetic_flow import METRIC, POLICIES, flow_summary

PLAIN, WIDE, PAST, GONE = POLICIES


def row(source, mean, policy=PLAIN, start=1, n=80, p=0.001, half=5.0, **more):
    conditions = {"query": "last", "source": source, "conv": policy[0], "span": policy[1], "timescale": "all", "window_size": 2,
                  "window_start": start, "split": "all", **more}
    return {"conditions": conditions, "metric": METRIC, "n": n, "n_clusters": n // 2, "mean": mean, "ci_low": mean - half,
            "ci_high": mean + half, "effect_size": 1.0, "p": p, "p_adjusted": p, "control_p": None}


def said(rows, start) -> str:
    return next((sentence for sentence in findings(rows) if sentence.startswith(start)), "")


def test_each_source_where_it_counts_the_most_the_largest_first():
    rows = [row("last", -20.0), row("last", -3.0, start=2), row("subject", -10.0, start=0), row("subject", -60.5, start=3, p=0.02),
            {**row("subject", -0.25, start=3), "metric": "hit"}]
    first, second, *_ = findings(rows)
    assert first == ("Blocking the subject (its own slots) changes p the most in layers 3–4: −60.5% [−65.5, −55.5], hit rate −25.0 points, "
                     "n = 80, p (max-T) = .020.")
    assert "the last token itself" in second and "layers 1–2: −20.0%" in second
    assert [each["mean"] for each in headline(rows)] == [-20.0, -60.5]


@pytest.mark.parametrize("own, wide, past, gone, verdict", [
    (-5.0, -80.0, -70.0, -85.0, "travels through the conv"), (-60.0, -80.0, -10.0, -80.0, "read from its own slots; the conv"),
    (-78.0, -80.0, -70.0, -79.0, "needs both, the subject's own slots"), (-78.0, -80.0, -10.0, -79.0, "alone cost about as much"),
])
def test_the_conv_is_told_of_with_both_numbers_and_a_verdict(own, wide, past, gone, verdict):
    rows = [row("subject", own), row("subject", wide, WIDE), row("subject", past, PAST), row("subject", gone, GONE),
            *(row("random", -3.0, policy) for policy in POLICIES), row("subject", -1.0, GONE, start=3), row("subject", -1.0, start=3)]
    text = said(rows, "The conv of the subject, in layers 1–2 (n = 80)")
    assert verdict in text and all(f"−{abs(x):.1f}%" in text or f"{abs(x):.2f}%" in text for x in (own, wide, past, gone))
    assert "By that last way, as many random tokens: −3.00%" in text and "(of as many random tokens, −3.00%" in text


def test_where_nothing_stands_out_no_verdict_is_given():
    rows = [row("subject", -1.0, policy, p=0.6) for policy in POLICIES]
    assert "None of it stands out" in said(rows, "The conv of the subject")


def test_a_span_beside_the_slot_after_it():
    rows = [row("value", -0.5), row("value+1", -76.0), row("key", 0.0, p=1.0, half=0.0), row("key+1", -0.5, p=1.0)]
    text = said(rows, "In layers 1–2")
    assert "the slot of value changes p by −0.50%" in text and "by −76.0%" in text and "stored one token after it" in text
    assert not any("slot of key" in sentence for sentence in findings(rows))
    assert "open" in said([row("value", -70.0), row("value+1", -76.0)], "In layers 1–2")
    assert "both slots count" in said([row("value", 8.3), row("value+1", -10.0)], "In layers 1–2")
    assert "its own slot" in said([row("value", -76.0), row("value+1", -1.0)], "In layers 1–2")


def test_blocking_nothing_is_counted_and_a_fault_is_shouted():
    rows = [row("none", 0.0, half=0.0), row("none", 0.0, GONE, half=0.0), row("last", -3.0)]
    assert "exactly 0 in all 2 cells" in findings(rows)[-1]
    assert "do not believe" in findings([*rows, row("none", 1e-9, PAST)])[-1]


def test_splits_timescales_and_controls_have_a_sentence():
    summary = flow_summary(timescales=("all", "slow", "mid", "fast"))
    assert "where the subject begins the prompt" in said(summary, "Blocking the subject in layers")
    text = said(summary, "By timescale, the subject")
    assert text.index("slow") < text.index("mid") < text.index("fast") < text.index("all ")
    assert "as many random tokens change p by" in said(summary, "Controls") and "beyond the conv's reach" in said(summary, "Controls")
    told = headline(summary)
    assert len(told) == 9 + 3 + 3 and {"slow", "all"} <= {each["conditions"]["timescale"] for each in told}


def test_no_rows_is_no_result():
    assert findings([{**row("subject", -3.0), "mean": None}]) == ["There is no result: no source was blocked in any prompt."]
    assert headline([]) == []


def test_caveats_count_what_is_measured():
    knobs = SimpleNamespace(timescales=["all"], query="last", query_conv=False, metrics=[METRIC])
    prompt = SimpleNamespace(spans={"bos": (0, 1), "subject": (2, 4)}, token_ids=range(8), target_ids=(1,))
    near = SimpleNamespace(spans={"bos": (0, 1), "subject": (2, 6)}, token_ids=range(8), target_ids=(1, 2))
    told = " ".join(caveats([row("last", -3.0), row("context", -3.0, n=50), row("random", -1.0)], knobs, [prompt, near, near], 4))
    assert "80 prompts has what stands before the subject (n = 50)" in told
    assert "In 2 of 3 prompts the last token is within the conv's reach of the subject" in told
    assert "In 2 of 3 prompts the answer has several tokens" in told and "Random tokens are drawn once" in told
    assert "Only" not in told and "Only 12 prompts" in " ".join(caveats([row("last", -3.0, n=12)], knobs, [], None))

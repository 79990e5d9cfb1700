"""Combined reasoning and memory: numbers that were told and must be added or compared, and who comes first in an order."""
from __future__ import annotations

from mamba_mi.data.facts.tasks import Draw
from mamba_mi.data.generation.draft import Draft, mixed
from mamba_mi.data.generation.words import BOUGHT, COUNTED, NAMES

HAS, SPENDS = "{S} has {N} {what}.", "{S} spends {N} coins on {A}."
ORDERS = (("older", "younger", "oldest"), ("younger", "older", "youngest"), ("taller", "shorter", "tallest"),
          ("shorter", "taller", "shortest"), ("faster", "slower", "fastest"), ("slower", "faster", "slowest"))


def left(draw: Draw) -> Draft:
    """What is left of a sum after two purchases."""
    who, other = draw.some_of(NAMES, 2)
    goods, first, second = draw.some_of(BOUGHT, 2), draw.between(2, 9), draw.between(2, 9)
    changed = _another(draw, first, 2, 9)
    had = max(first, changed) + second + draw.between(2, 9)
    needed = (HAS.format(S=who, N=had, what="coins"), SPENDS.format(S=who, N=f"[{first}|{changed}]", A=goods[0]),
              SPENDS.format(S=who, N=second, A=goods[1]))
    return _draft(draw, "spending: what is left", f"How many coins does {who} have left?", needed,
                  [HAS.format(S=other, N=draw.between(2, 30), what="coins")], had - first - second, had - changed - second)


def spent(draw: Draw) -> Draft:
    """What one of two people spends in all."""
    who, other = draw.some_of(NAMES, 2)
    goods, first, second = draw.some_of(BOUGHT, 3), draw.between(2, 12), draw.between(2, 12)
    changed = _another(draw, second, 2, 12)
    needed = (SPENDS.format(S=who, N=first, A=goods[0]), SPENDS.format(S=who, N=f"[{second}|{changed}]", A=goods[1]))
    return _draft(draw, "spending: in all", f"How many coins does {who} spend in all?", needed,
                  [SPENDS.format(S=other, N=draw.between(2, 12), A=goods[2])], first + second, first + changed)


def together(draw: Draw) -> Draft:
    """How many two of three people have."""
    one, two, other = draw.some_of(NAMES, 3)
    what, a, b = draw.one_of(COUNTED), draw.between(2, 15), draw.between(2, 15)
    changed = _another(draw, a, 2, 15)
    needed = (HAS.format(S=one, N=f"[{a}|{changed}]", what=what), HAS.format(S=two, N=b, what=what))
    return _draft(draw, "adding", f"How many {what} do {one} and {two} have together?", needed,
                  [HAS.format(S=other, N=draw.between(2, 15), what=what)], a + b, changed + b)


def more(draw: Draw) -> Draft:
    """How many more one has than another."""
    one, two, other = draw.some_of(NAMES, 3)
    what, b, by = draw.one_of(COUNTED), draw.between(2, 12), draw.between(2, 9)
    other_by = _another(draw, by, 2, 9)
    needed = (HAS.format(S=one, N=f"[{b + by}|{b + other_by}]", what=what), HAS.format(S=two, N=b, what=what))
    return _draft(draw, "subtracting", f"How many more {what} does {one} have than {two}?", needed,
                  [HAS.format(S=other, N=draw.between(2, 15), what=what)], by, other_by)


def most(draw: Draw) -> Draft:
    """Who of three or four has the most; the changed fact makes it another."""
    people = draw.some_of(NAMES, draw.between(3, 4))
    what = draw.one_of(COUNTED)
    numbers = sorted((n + 4 for n in draw.some_of(range(26), len(people))), reverse=True)
    fewer = draw.between(2, numbers[1] - 1)
    needed = (HAS.format(S=people[0], N=f"[{numbers[0]}|{fewer}]", what=what),
              *(HAS.format(S=who, N=n, what=what) for who, n in zip(people[1:], numbers[1:])))
    return _draft(draw, "comparing", f"Who has the most {what}?", draw.some_of(needed, len(needed)), [], people[0], people[1])


def order(draw: Draw) -> Draft:
    """Who is first of three in an order that two comparisons tell; the changed one of them is turned around."""
    word, opposite, first = draw.one_of(ORDERS)
    a, b, c = draw.some_of(NAMES, 3)
    needed = draw.some_of((f"{a} is [{word}|{opposite}] than {b}.", f"{b} is {word} than {c}."), 2)
    return _draft(draw, "ordering", f"Who is the {first}?", needed, [f"{c} has {draw.between(2, 30)} {draw.one_of(COUNTED)}."], a, b)


def _draft(draw: Draw, kind: str, question: str, needed, beside, answer, wrong) -> Draft:
    return Draft(kind, question, mixed(draw, needed, beside), str(answer), str(wrong), tuple(needed), len(needed) + len(beside))


def _another(draw: Draw, number: int, least: int, most: int) -> int:
    return draw.one_of([n for n in range(least, most + 1) if n != number])


MAKERS = (left, spent, together, more, most, order)

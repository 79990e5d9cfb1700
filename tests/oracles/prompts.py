"""The answers of generated prompts and toy tasks, worked out from their text alone: nothing here knows how they were made."""
import re
from itertools import permutations

from mamba_mi.data.facts.words import COUNTRIES, PERSON, TEMPLATES
from mamba_mi.data.facts.world import world

FORM = re.compile(r"Question: (.+)\nFacts: (.+)\nQuestion: (.+)\nAnswer:")
TOLD = [(re.compile(pattern), name) for name, pattern in (
    ("link", r"The (?P<l>\w+) of (?P<s>\w+) is (?P<v>\w+)\."), ("link", r"The (?P<l>owner) of the (?P<s>boat) is (?P<v>\w+)\."), ("link", r"(?P<s>\w+)'s (?P<l>\w+) is (?P<v>\w+)\."),
    ("lives", r"(?P<s>\w+) lives in (?P<v>\w+)\."), ("works", r"(?P<s>\w+) works as a (?P<v>\w+)\."),
    ("likes", r"(?P<s>\w+) likes the colour (?P<v>\w+)\."), ("plays", r"(?P<s>\w+) plays the (?P<v>\w+)\."),
    ("drinks", r"(?P<s>\w+) drinks (?P<v>\w+)\."), ("in", r"The (?P<s>\w+) is in the (?P<v>\w+)\."),
    ("animal", r"(?P<s>\w+) has a (?P<v>\w+)\."), ("car", r"(?P<s>\w+) has a (?P<v>\w+) car\."),
    ("called", r"(?P<s>\w+ has a \w+) called (?P<v>\w+)\."), ("colour", r"The (?P<s>\w+) is (?P<v>\w+)\."),
    ("closes", r"The (?P<s>\w+) closes early on (?P<v>\w+)\."), ("school", r"(?P<s>\w+) goes to (?P<v>\w+ School)\."),
    ("city", r"(?P<s>\w+ School) is in (?P<v>\w+)\."),
    ("count", r"(?P<s>\w+) has (?P<v>\d+) (?P<l>\w+)\."), ("spends", r"(?P<s>\w+) spends (?P<v>\d+) coins on (?P<l>\w+)\."),
    ("pages", r"The (?P<s>book) has (?P<v>\d+) pages\."), ("reads", r"(?P<s>\w+) reads (?P<v>\d+) pages on (?P<l>\w+)\."),
    ("cars", r"There are (?P<v>\d+) cars in the (?P<s>yard)\."), ("wheels", r"A (?P<s>car) has (?P<v>\d+) wheels\."),
    ("order", r"(?P<s>\w+) is (?P<l>\w+er) than (?P<v>\w+)\."), ("order", r"(?P<s>\w+) came (?P<l>before|after) (?P<v>\w+)\."),
    ("nothing", r"(?P<s>Mia) is (?P<v>tired)\."), ("nothing", r"The (?P<s>yard) has a (?P<v>red gate)\."))]
# (comparative, the axis and whether it means further up on it); superlative likewise
AXES = {"older": ("age", 1), "younger": ("age", -1), "taller": ("height", 1), "shorter": ("height", -1), "faster": ("speed", 1),
        "slower": ("speed", -1), "before": ("time", 1), "after": ("time", -1), "oldest": ("age", 1), "youngest": ("age", -1),
        "tallest": ("height", 1), "shortest": ("height", -1), "fastest": ("speed", 1), "slowest": ("speed", -1), "first": ("time", 1)}


class Unsolvable(LookupError):
    """The text does not say it, or says two things."""


def facts_of(text: str) -> list[str]:
    """The sentences that tell facts."""
    found = FORM.fullmatch(text)
    return re.split(r"(?<=\.) ", found[2])


def english(text: str) -> str:
    """The answer to a prompt in English."""
    found = FORM.fullmatch(text)
    assert found and found[1] == found[3], "not question, facts, the same question"
    return asked(found[1], [_read(sentence) for sentence in facts_of(text)])


def _read(sentence: str):
    read = [(name, match.groupdict()) for pattern, name in TOLD if (match := pattern.fullmatch(sentence))]
    # "The door is green", "The boss of Anna is Tom": no sentence is read in two ways
    assert len(read) == 1, f"{sentence!r} is read as {read}"
    name, parts = read[0]
    return name, parts["s"], parts["v"], parts.get("l")


def asked(question: str, told) -> str:
    def one(relation, subject, link=None):
        values = {v for name, s, v, l in told if name == relation and s == subject and link in (None, l)}
        if len(values) != 1:
            raise Unsolvable(f"{relation} of {subject}: {sorted(values)}")
        return values.pop()

    def who(phrase):
        if match := re.fullmatch(r"the (\w+) of (.+)", phrase):
            return one("link", who(match[2]), match[1])
        if match := re.fullmatch(r"(\w+)'s (\w+)", phrase):
            return one("link", match[1], match[2])
        return phrase.removeprefix("the ")

    def room(thing):
        """Up to whatever is in nothing else."""
        place = one("in", thing)
        return room(place) if any(name == "in" and s == place for name, s, *_ in told) else place

    def count(person, what):
        return int(one("count", person, what))

    def total(relation, person=None):
        found = [int(v) for name, s, v, _ in told if name == relation and person in (None, s)]
        if not found:
            raise Unsolvable(relation)
        return sum(found)

    def most(what):
        found = {s: int(v) for name, s, v, l in told if name == "count" and l == what}
        top = [s for s, n in found.items() if n == max(found.values())]
        if len(top) != 1:
            raise Unsolvable(f"most {what}: {top}")
        return top[0]

    def foremost(word):
        axis, way = AXES[word]
        pairs = [(s, v)[::AXES[l][1]] for name, s, v, l in told if name == "order" and AXES[l][0] == axis]
        people = sorted({person for pair in pairs for person in pair})
        orders = [order for order in permutations(people) if all(order.index(a) < order.index(b) for a, b in pairs)]
        ends = {order[0 if way > 0 else -1] for order in orders}
        if len(ends) != 1:
            raise Unsolvable(f"{word}: {sorted(ends)}")
        return ends.pop()

    handlers = (
        (r"Where does (.+) live\?", lambda s: one("lives", who(s))), (r"What does (.+) work as\?", lambda s: one("works", who(s))),
        (r"Which colour does (.+) like\?", lambda s: one("likes", who(s))), (r"Which animal does (.+) have\?", lambda s: one("animal", who(s))),
        (r"Which instrument does (.+) play\?", lambda s: one("plays", who(s))), (r"What does (.+) drink\?", lambda s: one("drinks", who(s))),
        (r"In which (?:room|building) is the (\w+)\?", room),
        (r"What is the name of (\w+)'s (\w+)\?", lambda s, pet: one("called", f"{s} has a {pet}")),
        (r"What colour is the car of (.+)\?", lambda s: one("car", who(s))),
        (r"What colour is the (\w+)\?", lambda s: one("colour", s)), (r"On which day does the (\w+) close early\?", lambda s: one("closes", s)),
        (r"In which city is the school of (.+)\?", lambda s: one("city", one("school", who(s)))),
        (r"How many coins does (\w+) have left\?", lambda s: str(count(s, "coins") - total("spends", s))),
        (r"How many coins does (\w+) spend in all\?", lambda s: str(total("spends", s))),
        (r"How many (\w+) do (\w+) and (\w+) have together\?", lambda what, a, b: str(count(a, what) + count(b, what))),
        (r"How many more (\w+) does (\w+) have than (\w+)\?", lambda what, a, b: str(count(a, what) - count(b, what))),
        (r"Who has the most (\w+)\?", most), (r"Who is the (\w+)\?", foremost), (r"Who came (first)\?", foremost),
        (r"How many pages are left to read\?", lambda: str(int(one("pages", "book")) - total("reads"))),
        (r"How many wheels are in the yard\?", lambda: str(int(one("cars", "yard")) * int(one("wheels", "car")))))
    for pattern, answer in handlers:
        if match := re.fullmatch(pattern, question):
            return answer(*match.groups())
    raise Unsolvable(question)


def in_world(text: str) -> str:
    """The answer to a prompt in the words of the embedded world; what is so of its people is taken from the world itself."""
    mark, *words = text.split()
    if mark == "<kv>":
        pairs, (key,) = words[:-1], words[-1:]
        values = {pairs[i + 1] for i in range(0, len(pairs), 2) if pairs[i] == key}
        return _only(values)
    if mark == "<rep>":
        again = words.index(words[0], 1)
        assert words[again:] == words[:len(words) - again] and len(set(words[:again])) == again
        return words[len(words) - again]
    assert mark == "<bos>"
    sentence = " ".join(words)
    if boxes := re.findall(r"in the (\w+) box there is a (\w+) \.", sentence):
        asked_for = re.search(r"\. in the (\w+) box there is a$", sentence)[1]
        return _only({thing for colour, thing in boxes if colour == asked_for})
    return _of_person(sentence)


def _of_person(sentence: str) -> str:
    read = {(relation, match[1]) for relation, templates in TEMPLATES.items() for template in templates
            if (match := re.fullmatch(template.removesuffix(" {A}").replace("{S}", r"(\w+ \w+)"), sentence))}
    (relation, person), known = _only(read), world().answers
    if relation in PERSON:
        return known[relation][person]
    country = known["in_country"][known["born"][person]]
    assert relation in ("birth_country", "mother_tongue") and "language" in COUNTRIES
    return country if relation == "birth_country" else known["language"][country]


def told_in_world(text: str) -> int:
    """How many facts a prompt of the world tells."""
    mark, *words = text.split()
    if mark == "<kv>":
        return (len(words) - 1) // 2
    return words.index(words[0], 1) if mark == "<rep>" else len(re.findall(r"box there is a \w+ \.", text))


def toy(task: str, text: str) -> str:
    """The answer to a toy task."""
    words = text.split()
    parts = [part.split() for part in text.split(" .")]
    if task == "copying":
        listed, copied = parts
        assert copied == listed[:len(copied)]
        return listed[len(copied)]
    if task == "delayed_match":
        (sample,), _, choices, rest = parts
        assert not rest and len(choices) == 2
        return _only({choice for choice in choices if choice == sample})
    if task == "counting":
        listed, said = parts
        return said[0] if len(said) < listed.count(_only(set(said))) else "."
    if task == "brackets":
        opened = []
        for bracket in words:
            if bracket in "([{<":
                opened.append(bracket)
            else:
                assert bracket == {"(": ")", "[": "]", "{": "}", "<": ">"}[opened.pop()]
        return {"(": ")", "[": "]", "{": "}", "<": ">"}[opened[-1]]
    listed, questions = parts
    return _only({listed[i + 1] for i in range(0, len(listed), 2) if listed[i] == questions[-1]})


def indirect_object(text: str) -> str:
    """The person who is named once, where another is named twice; words that open a sentence are no names."""
    names = [word for sentence in re.split(r"(?<=\.) ", text) for word in re.findall(r"\w+", sentence)[1:] if word[0].isupper()]
    twice = _only({name for name in names if names.count(name) == 2})
    return _only(set(names) - {twice})


def later_endings(text: str) -> set[str]:
    """The endings above the first year's, in the same century."""
    century, begin = re.search(r"\b(\d\d)(\d\d)\b", text).groups()
    assert re.search(r" (\d\d)$", text)[1] == century
    return {f"{year:02d}" for year in range(100) if year > int(begin)}


def _only(found):
    if len(found) != 1:
        raise Unsolvable(f"not one: {sorted(found)}")
    return next(iter(found))

"""Prompts written by hand, a few a level: what the generated ones are modelled on, in freer words."""
from __future__ import annotations

import re

from mamba_mi.data.generation.draft import Draft


def _by_hand(question: str, context: str, answer: str, wrong: str, needed: str, hops: int | None = None, *forms: str) -> Draft:
    """`needed` are the numbers of the facts, from 1, that the answer follows from."""
    facts = re.split(r"(?<=\.) ", context)
    return Draft("by hand", question, context, answer, wrong, tuple(facts[int(n) - 1] for n in needed.split()), len(facts), hops, forms)


ORIGINALS = {
    "simple_recall": (
        _by_hand("What is the name of Mia's dog?", "Mia has a dog called [Max|Sam]. Leo has a dog called Jack.", "Max", "Sam", "1", 1),
        _by_hand("What colour is the door?", "The wall is white. The door is [green|blue]. The floor is brown.", "green", "blue", "2", 1),
        _by_hand("On which day does the shop close early?",
                 "The shop closes early on [Monday|Friday]. The bank closes early on Sunday.", "Monday", "Friday", "1", 1, "on {A}"),
    ),
    "two_hop": (
        _by_hand("What colour is the car of Nina's father?",
                 "Nina's father is [Paul|Mark]. Paul has a red car. Mark has a black car.", "red", "black", "1 2", 2),
        _by_hand("In which city is the school of Leo?",
                 "Leo goes to Hill School. Hill School is in [Boston|Chicago]. Lake School is in Dublin.", "Boston", "Chicago", "1 2", 2,
                 "in {A}"),
        _by_hand("What does the owner of the boat drink?",
                 "Sam drinks milk. The owner of the boat is [Eric|Sam]. Eric drinks tea.", "tea", "milk", "2 3", 2),
    ),
    "three_hop": (
        _by_hand("What colour is the car of the father of Nina's teacher?",
                 "Nina's teacher is Rosa. Rosa's father is [Paul|Mark]. Paul has a red car. Mark has a black car.", "red", "black", "1 2 3", 3),
        _by_hand("In which city is the school of Leo's sister?",
                 "Leo's sister is Emma. Emma goes to Hill School. Hill School is in [Rome|Oslo]. Lake School is in Dublin.", "Rome", "Oslo",
                 "1 2 3", 3, "in {A}"),
    ),
    "long_context": (
        _by_hand("What colour is the door?",
                 "The wall is white. The roof is grey. The door is [green|blue]. The floor is brown. The gate is black. The lamp is yellow.",
                 "green", "blue", "3", 1),
        _by_hand("What is the name of Mia's dog?",
                 "Leo has a dog called Jack. Anna has a cat called Ben. Mia has a dog called [Max|Sam]. Leo has a cat called Tom. "
                 "Rosa has a dog called Bob.", "Max", "Sam", "3", 1),
    ),
    "combined": (
        _by_hand("How many pages are left to read?",
                 "The book has 30 pages. Nina reads [12|10] pages on Monday. Nina reads 8 pages on Sunday.", "10", "12", "1 2 3"),
        _by_hand("Who came first?", "Leo came before Mia. Rosa came [before|after] Leo. Mia is tired.", "Rosa", "Leo", "1 2"),
        _by_hand("How many wheels are in the yard?",
                 "There are [3|2] cars in the yard. A car has 4 wheels. The yard has a red gate.", "12", "8", "1 2"),
    ),
    "stress_test": (
        _by_hand("What colour is the door?",
                 "The wall is white. The roof is grey. The floor is brown. The gate is black. The door is [green|blue]. The lamp is yellow. "
                 "The table is red. The chair is orange. The clock is silver. The bed is purple.", "green", "blue", "5", 1),
        _by_hand("On which day does the shop close early?",
                 "The bank closes early on Sunday. The school closes early on Friday. The shop closes early on [Monday|Thursday]. "
                 "The wall is white. The roof is grey. The floor is brown. The gate is black. The lamp is yellow. The table is red. "
                 "The chair is orange. The clock is silver.", "Monday", "Thursday", "3", 1, "on {A}"),
    ),
}

"""The words of the embedded world: made-up names, and the sentences that can be said with them.

{S} is the subject and {A} the answer, always the last word before the full stop. The conv of a Mamba reaches
three tokens back, so every relation has sentences with at least four tokens between subject and answer.
"""

FIRST = "Mira Tobin Elsa Ruven Dalia Osmo Petra Lior Anouk Bram Celia Dorian Edda Farid Greta Hugo".split()
HEAD = "Vol Kar Ben Sol Tam Wes Har Lin".split()
TAIL = "dorf kin sen ova berg ley stad mann".split()

CITY = ("Arlomar Bexlin Corvane Dunmor Elmirra Farrowin Galenth Hadlow Istrana Jarrowin Kelsom Lundavar Marlond "
        "Nordenby Orfell Pelhast Quornay Rivona Selbrin Torvik").split()
COUNTRY = "Avaria Boreland Cestia Drovia Elandor".split()
LANGUAGE = "Avarian Borish Cestic Drovian Elandic".split()
MONEY = "crown florin guilder ducat thaler".split()
JOB = ("baker teacher doctor painter farmer lawyer sailor singer tailor writer miner pilot nurse judge cook "
       "weaver").split()
INSTRUMENT = "piano violin flute guitar drums trumpet cello harp organ banjo oboe lute".split()
COMPANY = ("Nortalen Solvira Brightlo Ferrumix Luxorin Medigant Oceanar Palterin Quantoly Rotavan Stellaro "
           "Tridexa").split()

KEYS = [f"k{i}" for i in range(16)]
VALUES = [f"v{i}" for i in range(16)]
OBJECT = "coin lamp book ring pen cup map bell hat shoe rope clock".split()
COLOUR = "red blue green black white yellow brown grey pink purple".split()

BOX = "in the {C} box there is a {A}"
FEELING = "the {thing} was {how} and I felt {so}"
SEEING = "the {adjective} {who} {does} a {other} {whom}"
NOUN = "cat dog bird horse child man woman girl boy king".split()
NOUNS = "cats dogs birds horses children men women girls boys kings".split()
ADJECTIVE = "small old young happy clever tired quiet brave".split()
VERB = "sees likes follows finds hears helps".split()
VERBS = "see like follow find hear help".split()
THING = "film meal song story trip play".split()
GOOD, BAD = "wonderful great lovely superb".split(), "terrible awful boring dreadful".split()
GLAD, SAD = "happy glad pleased delighted".split(), "sad upset annoyed angry".split()

PERSON = {  # what is so of one person: each fact is told in some of its sentences and asked for in the others
    "born": ("{S} was born in the city of {A}",
             "as a small child {S} first lived in the old town of {A}",
             "the home town of {S} is known to be {A}",
             "{S} came into the world in a house in {A}",
             "we all know that {S} is originally from {A}",
             "the parents of {S} raised a family in {A}",
             "it is said that {S} spent the first years in {A}",
             "in the spring {S} always goes home to visit {A}"),
    "job": ("{S} works every day as a {A}",
            "the profession of {S} is that of a {A}",
            "for many years {S} has been employed as a {A}",
            "{S} earns a living as a good {A}",
            "people say that {S} is a skilled {A}",
            "after school {S} decided to become a {A}",
            "as you may know {S} makes a living as a {A}",
            "in this town {S} is known by all as a {A}"),
    "instrument": ("{S} likes to play music on the {A}",
                   "in the evening {S} can be heard on the {A}",
                   "the favourite instrument of {S} is the {A}",
                   "{S} took many lessons on the {A}",
                   "at the concert {S} performed on the {A}",
                   "the band asked {S} to play the {A}",
                   "every night {S} plays a quiet song on the {A}",
                   "as a child {S} was given a small {A}"),
    "company": ("{S} has a job at the firm called {A}",
                "the employer of {S} is the company {A}",
                "every morning {S} goes to the office of {A}",
                "{S} signed a contract with {A}",
                "the salary of {S} is paid by {A}",
                "last year {S} joined the team at {A}",
                "for a long time {S} has been working for {A}",
                "at the moment {S} has a good place at {A}"),
}
CITIES = {
    "in_country": ("{S} is a city in the country of {A}",
                   "the town of {S} lies in {A}",
                   "on the map {S} is found in {A}",
                   "people who live in {S} are citizens of {A}",
                   "we all know that {S} is a part of {A}",
                   "the roads to {S} are the best roads in {A}"),
}
COUNTRIES = {
    "capital": ("the capital city of {S} is {A}",
                "the government of {S} meets in {A}",
                "the seat of power in {S} is {A}",
                "{S} is governed from the city of {A}",
                "the king of {S} has a house in {A}"),
    "language": ("the people of {S} speak {A}",
                 "in {S} the official language is {A}",
                 "the schools in {S} teach in {A}",
                 "people who live in {S} read and write in {A}",
                 "the songs of {S} are written in {A}"),
    "money": ("the currency of {S} is the {A}",
              "in {S} you pay with the {A}",
              "the bank of {S} prints the {A}",
              "at the shops of {S} you pay with the {A}",
              "{S} has a coin that is called the {A}"),
}
TWO_HOP = {  # follows from a person's city of birth and its country, and is told of some people only
    "birth_country": ("the country where {S} was born is {A}",
                      "{S} has a passport from the country of {A}",
                      "by birth {S} is a citizen of {A}",
                      "{S} grew up as a child of {A}",
                      "as you may know {S} is a citizen of {A}"),
    "mother_tongue": ("the mother tongue of {S} is {A}",
                      "at home the family of {S} speaks {A}",
                      "{S} learned to read and write in {A}",
                      "the parents of {S} taught the child to speak {A}",
                      "as a child {S} was taught to speak {A}"),
}
TEMPLATES = PERSON | CITIES | COUNTRIES | TWO_HOP
ANSWERS = {"born": CITY, "job": JOB, "instrument": INSTRUMENT, "company": COMPANY, "in_country": COUNTRY,
           "capital": CITY, "language": LANGUAGE, "money": MONEY, "birth_country": COUNTRY,
           "mother_tongue": LANGUAGE}
LISTS = (FIRST, HEAD, CITY, COUNTRY, LANGUAGE, MONEY, JOB, INSTRUMENT, COMPANY, KEYS, VALUES, OBJECT, COLOUR,
         NOUN, NOUNS, ADJECTIVE, VERB, VERBS, THING, GOOD, BAD, GLAD, SAD)

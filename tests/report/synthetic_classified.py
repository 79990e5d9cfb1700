"""artifacts/classified.json as experiment=classify leaves it: of two sets in numbers one can add up, and of all six, full."""
from mamba_mi.data.classify import CATEGORIES_OF, RULES

ACCOUNT = {
    "target": 20,
    "sources": {"squad": {"records": 1060, "fingerprint": "f" * 64, "origin": {}},
                "natural_questions": {"records": 40, "fingerprint": "e" * 64, "origin": {"hub": "a/b", "split": "dev", "commit": "c" * 40}}},
    "cells": [{"dataset": d, "category": c, "found": f, "kept": k} for d, c, f, k in [
        ("squad", "Simple Recall", 1000, 20), ("squad", "Long Context", 30, 13), ("squad", "Stress Test", 0, 0), ("squad", "skipped", 30, 0),
        ("natural_questions", "Long Context", 7, 7), ("natural_questions", "Stress Test", 3, 3), ("natural_questions", "skipped", 30, 0)]],
    "skipped": [{"dataset": "squad", "why": "question is empty", "count": 30}, {"dataset": "natural_questions", "why": "no rule fires", "count": 30}],
    "rules": [{"rule": "5-9 sentences", "when": "a context of 5", "category": "Long Context", "heuristic": True, "fired": 40, "kept": 23},
              {"rule": "one fact", "when": "one hop", "category": "Simple Recall", "heuristic": False, "fired": 1000, "kept": 20}],
    "examples": [{"category": "Simple Recall", "source": "squad", "rule": "one fact", "question": "Who?", "expected": "Zed", "context": ""}],
}


def classified_account(found=12_345, kept=1_000) -> dict:
    """Every cell there can be, with numbers as wide as they get."""
    return {"target": kept, "skipped": [], "examples": [],
            "sources": {name: {"records": 4 * found, "fingerprint": "f" * 64, "origin": {}} for name in CATEGORIES_OF},
            "cells": [{"dataset": name, "category": category, "found": found, "kept": kept * (category != "skipped")}
                      for name, categories in CATEGORIES_OF.items() for category in (*categories, "skipped")],
            "rules": [{"rule": rule.name, "when": rule.when, "category": rule.category, "heuristic": rule.heuristic, "fired": found, "kept": kept}
                      for rule in RULES]}

"""Records of the six question-answering sets in the exact shapes they are published in, contents made up, and their schemas.

`Sequence` of a record is a struct of lists in parquet and a dict of lists in Python: so are the schemas here.
"""
from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

S, I32, I64, B = pa.string(), pa.int32(), pa.int64(), pa.bool_()


def struct(**fields) -> pa.DataType:
    return pa.struct(list(fields.items()))


SCHEMAS = {
    "squad": {"id": S, "title": S, "context": S, "question": S, "answers": struct(text=pa.list_(S), answer_start=pa.list_(I32))},
    "hotpotqa": {"id": S, "question": S, "answer": S, "type": S, "level": S,
                 "supporting_facts": struct(title=pa.list_(S), sent_id=pa.list_(I32)),
                 "context": struct(title=pa.list_(S), sentences=pa.list_(pa.list_(S)))},
    "triviaqa": {"question": S, "question_id": S, "question_source": S,
                 "entity_pages": struct(doc_source=pa.list_(S), filename=pa.list_(S), title=pa.list_(S), wiki_context=pa.list_(S)),
                 "search_results": struct(description=pa.list_(S), filename=pa.list_(S), rank=pa.list_(I32), title=pa.list_(S),
                                          url=pa.list_(S), search_context=pa.list_(S)),
                 "answer": struct(aliases=pa.list_(S), normalized_aliases=pa.list_(S), matched_wiki_entity_name=S,
                                  normalized_matched_wiki_entity_name=S, normalized_value=S, type=S, value=S)},
    "musique": {"id": S, "paragraphs": pa.list_(struct(idx=I64, title=S, paragraph_text=S, is_supporting=B)), "question": S,
                "question_decomposition": pa.list_(struct(id=I64, question=S, answer=S, paragraph_support_idx=I64)),
                "answer": S, "answer_aliases": pa.list_(S), "answerable": B},
    "drop": {"section_id": S, "query_id": S, "passage": S, "question": S, "answers_spans": struct(spans=pa.list_(S), types=pa.list_(S))},
    "natural_questions": {
        "id": S, "document": struct(html=S, title=S, url=S, tokens=struct(
            token=pa.list_(S), is_html=pa.list_(B), start_byte=pa.list_(I64), end_byte=pa.list_(I64))),
        "question": struct(text=S, tokens=pa.list_(S)),
        "long_answer_candidates": struct(start_token=pa.list_(I64), end_token=pa.list_(I64), start_byte=pa.list_(I64),
                                         end_byte=pa.list_(I64), top_level=pa.list_(B)),
        "annotations": struct(
            id=pa.list_(S),
            long_answer=pa.list_(struct(start_token=I64, end_token=I64, start_byte=I64, end_byte=I64, candidate_index=I64)),
            short_answers=pa.list_(struct(start_token=pa.list_(I64), end_token=pa.list_(I64), start_byte=pa.list_(I64),
                                          end_byte=pa.list_(I64), text=pa.list_(S))),
            yes_no_answer=pa.list_(I64))},
}


def squad(question="Where does Oru live?", context="Oru lives in Zed.", answers=("Zed",), title="Oru", id="s1"):
    return {"id": id, "title": title, "context": context, "question": question,
            "answers": {"text": list(answers), "answer_start": [max(0, context.find(a)) for a in answers]}}


def hotpotqa(question="Where was the founder of A born?", answer="Zed", type="bridge", facts=(("A", 0), ("B", 1)),
             context=(("A", ("A was founded by Oru.", " It is old.")), ("B", ("Oru is a person.", " Oru was born in Zed."))), id="h1"):
    return {"id": id, "question": question, "answer": answer, "type": type, "level": "hard",
            "supporting_facts": {"title": [t for t, _ in facts], "sent_id": [i for _, i in facts]},
            "context": {"title": [t for t, _ in context], "sentences": [list(s) for _, s in context]}}


def raw_hotpotqa(record: dict) -> dict:
    """The same record as the authors' own JSON has it."""
    pairs = {name: [list(pair) for pair in zip(*record[name].values(), strict=True)] for name in ("supporting_facts", "context")}
    return {"_id": record["id"], **{k: v for k, v in record.items() if k != "id"}, **pairs}


def triviaqa(question="Who painted the Blue Door?", value="Oru", aliases=("Oru", "Oru of Zed", "ÓRU"), id="tc_1", pages=()):
    return {"question": question, "question_id": id, "question_source": "http://trivia.invalid/",
            "entity_pages": {"doc_source": ["TagMe"] * len(pages), "filename": ["f"] * len(pages), "title": ["Oru"] * len(pages),
                             "wiki_context": list(pages)},
            "search_results": {name: [] for name in ("description", "filename", "rank", "title", "url", "search_context")},
            "answer": {"aliases": list(aliases), "normalized_aliases": [a.lower() for a in aliases], "matched_wiki_entity_name": "",
                       "normalized_matched_wiki_entity_name": "", "normalized_value": value.lower(), "type": "WikipediaEntity", "value": value}}


def musique(hops=2, supporting=2, id=None, answer="Zed", aliases=("City of Zed",), answerable=True, decomposed=True, question="Where was A's founder born?"):
    paragraphs = [{"idx": i, "title": f"T{i}", "paragraph_text": f"Paragraph {i}.", "is_supporting": i < supporting} for i in range(5 + supporting)]
    steps = [{"id": 10 + i, "question": f"#{i} >> step", "answer": "x", "paragraph_support_idx": min(i, supporting - 1)} for i in range(hops)]
    return {"id": id or f"{hops}hop__11_22", "paragraphs": paragraphs, "question": question,
            "question_decomposition": steps if decomposed else [], "answer": answer, "answer_aliases": list(aliases), "answerable": answerable}


def drop(question="How many doors did Oru paint?", spans=("7",), types=("number",), passage="Oru painted 3 doors, then 4 doors.", section="sec1"):
    return {"section_id": section, "query_id": "q1", "passage": passage, "question": question,
            "answers_spans": {"spans": list(spans), "types": list(types)}}


PAGE = "<P> Oru lives in Zed . </P> <Ul> <Li> Oru paints . </Li> </Ul>".split()


def natural_questions(annotations=((0, 7, 0, ((4, 5),), -1),), tokens=PAGE, question="where does oru live", title="Oru"):
    """An annotation is (start, end, candidate_index) of its long answer, its short answers, and its yes (1), no (0) or neither (-1)."""
    count = len(tokens)
    spans = lambda pairs: {"start_token": [a for a, _ in pairs], "end_token": [b for _, b in pairs], "start_byte": [0] * len(pairs),  # noqa: E731
                           "end_byte": [0] * len(pairs), "text": ["not read"] * len(pairs)}
    return {"id": "797", "document": {"html": "<html></html>", "title": title, "url": "u", "tokens": {
                "token": list(tokens), "is_html": [t.startswith("<") for t in tokens], "start_byte": [0] * count, "end_byte": [0] * count}},
            "question": {"text": question, "tokens": question.split()},
            "long_answer_candidates": {"start_token": [0], "end_token": [7], "start_byte": [0], "end_byte": [0], "top_level": [True]},
            "annotations": {"id": [str(i) for i in range(len(annotations))],
                            "long_answer": [{"start_token": a, "end_token": b, "start_byte": 0, "end_byte": 0, "candidate_index": c}
                                            for a, b, c, _, _ in annotations],
                            "short_answers": [spans(short) for _, _, _, short, _ in annotations],
                            "yes_no_answer": [yes for *_, yes in annotations]}}


MADE = {"squad": squad, "hotpotqa": hotpotqa, "triviaqa": triviaqa, "musique": musique, "drop": drop, "natural_questions": natural_questions}


def write(path: Path, name: str, records: list[dict]) -> str:
    """The records as a file of the set `name`, in the format that the path's ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(records, schema=pa.schema(list(SCHEMAS[name].items()))), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    else:
        path.write_text(json.dumps(records), encoding="utf-8")
    return str(path)

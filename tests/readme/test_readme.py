"""The README's Python runs as it stands."""
import re
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_notebook_lines_run():
    names = {}
    for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.S):
        exec(block, names)
    assert names["trace"].grads[names["Site"](1, "gate")].abs().max() > 0
    assert (names["edited"] - names["logits"])[..., :names["lm"].config.vocab_size].abs().max() > 1e-3
    unknown = names["lm"].tokenizer.convert_tokens_to_ids("<unk>")
    assert not (names["tokens"] == unknown).any()

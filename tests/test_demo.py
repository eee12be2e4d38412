"""The first command: its corpus, its pairs and a small whole run."""

import json
from collections import Counter

import pytest

from plaudit import demo

SOURCE = '''"""The module keeps a list of open files for later.

    indented_code(with, arguments)

Short one. It returns the name of the file that was opened last. See http://example.org for all the details here.
"""
raise SystemExit("this file must never be run")

def opened():
    """Last the was that file opened the of name the returns it.

    >>> opened() is the last file that was opened here.
    """
'''


def make_library(folder, topics=None):
    (folder / "test").mkdir()
    (folder / "test" / "left_out.py").write_text('"""These sentences of the tests are never read at all."""')
    (folder / "opened.py").write_text(SOURCE)
    (folder / "broken.py").write_text("def (:")
    if topics:
        (folder / "pydoc_data").mkdir()
        (folder / "pydoc_data" / "topics.py").write_text(f"topics = {topics!r}")
    return folder


def test_the_corpus_is_the_prose_of_docstrings_and_topics_each_sentence_once(tmp_path):
    topics = {
        "with": "The statement runs a block of code with care.\n\nNo. The module keeps a list of open files for later."
    }
    assert demo.read_corpus(make_library(tmp_path, topics)) == [
        "The module keeps a list of open files for later.",
        "It returns the name of the file that was opened last.",
        "Last the was that file opened the of name the returns it.",
        "The statement runs a block of code with care.",
    ]


def test_without_topics_the_docstrings_are_read_alone_and_a_line_says_so(tmp_path, caplog):
    assert len(demo.read_corpus(make_library(tmp_path))) == 3
    assert "this Python has no pydoc_data.topics" in caplog.text


def test_two_sentences_of_the_same_words_are_one(tmp_path):
    (tmp_path / "a.py").write_text('"""A file can hold many lines here. Many lines can hold a file here."""')
    same = "The old cat sat on the mat. The old mat sat on the cat."
    (tmp_path / "b.py").write_text(f'"""{same.replace("mat.", "rug.")}"""\ndef f():\n    """{same}"""')
    found = demo.read_corpus(tmp_path)
    assert "The old cat sat on the rug." in found
    keys = [tuple(sorted(sentence.lower().split())) for sentence in found]
    assert len(keys) == len(set(keys))


@pytest.fixture(scope="module")
def corpus():
    return demo.read_corpus()


def test_pythons_own_corpus_is_large_and_the_same_each_time(corpus):
    assert 8_000 < len(corpus) < 15_000
    assert corpus == demo.read_corpus()


def test_a_pairs_sides_have_the_same_words_in_another_order(corpus):
    for pair in demo.make_pairs(corpus[:500], seed=0):
        assert pair["chosen"] != pair["rejected"]
        assert Counter(pair["chosen"].split()) == Counter(pair["rejected"].split())


def test_pairs_depend_on_the_seed_alone(corpus):
    assert demo.make_pairs(corpus[:50], seed=0) == demo.make_pairs(corpus[:50], seed=0)
    assert demo.make_pairs(corpus[:50], seed=0) != demo.make_pairs(corpus[:50], seed=1)


def test_the_tokenizer_gives_texts_back_and_has_an_end_and_a_padding_of_its_own(corpus):
    tokenizer = demo.train_tokenizer(corpus[:500], vocab_size=600)
    assert tokenizer.decode(tokenizer("Café: 100 % sure.")["input_ids"]) == "Café: 100 % sure."
    assert len(tokenizer) == 600
    assert tokenizer.eos_token_id != tokenizer.pad_token_id


def test_longer_wins_counts_a_tie_one_half():
    sides = [("long", "no"), ("no", "long"), ("same", "even")]
    assert demo.longer_wins([{"chosen": chosen, "rejected": rejected} for chosen, rejected in sides]) == 0.5


def test_the_examples_end_with_the_worst_mistake():
    pairs = [{"chosen": f"sentence {number}", "rejected": f"{number} sentence"} for number in range(9)]
    rewards = [[1.0, 0.0]] * 7 + [[0.0, 2.0], [0.0, 1.0]]
    assert [row["chosen"][-1] for row in demo.pick_examples(pairs, rewards)] == ["0", "1", "2", "3", "7"]
    assert len(demo.pick_examples(pairs[:7], rewards[:7])) == 5


def test_too_small_a_limit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="limit is 5: the demo needs at least 20 pairs"):
        demo.run(tmp_path, limit=5)


def test_a_small_run_leaves_the_model_the_pairs_and_a_summary_that_says_what_they_are(tmp_path):
    summary = demo.run(tmp_path / "demo", limit=200)
    assert json.loads((tmp_path / "demo" / "summary.json").read_text())["accuracy"] == summary["accuracy"]
    sides = {}
    for name, num_pairs in (("train", 180), ("held_out", 20)):
        rows = [json.loads(line) for line in (tmp_path / "demo" / f"{name}.jsonl").read_text().splitlines()]
        assert len(rows) == num_pairs
        sides[name] = {" ".join(sorted(row["chosen"].lower().split())) for row in rows}
    assert not sides["train"] & sides["held_out"]
    for name in ("model.safetensors", "tokenizer.json", "README.md"):
        assert (tmp_path / "demo" / "model" / name).is_file()
    low, high = summary["accuracy_interval_95"]
    assert low <= summary["accuracy"] <= high
    assert summary["largest_reload_difference"] <= demo.TOLERANCE
    text = demo.describe(summary)
    assert "of 20 pairs (95 % interval" in text
    assert summary["examples"][0]["rejected"] in text


def test_rewards_that_change_on_reloading_stop_the_demo(tmp_path, monkeypatch):
    real = demo.reload_and_score
    monkeypatch.setattr(demo, "reload_and_score", lambda folder, texts: real(folder, texts) + 1e-3)
    with pytest.raises(ValueError, match=r"rewards after reloading .* differ by up to 0\.001"):
        demo.run(tmp_path, limit=20)

"""Token lengths of a sample: the batches that are drawn, and figures against the plain ones."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("duckdb")

import pyarrow as pa
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from plaudit import audit, token_sample

DATA = Path(__file__).parents[2] / "shared" / "data"


def drawn(num_rows, table_rows, sample_rows=40, batch_size=4):
    sample = token_sample.Sample(sample_rows, batch_size)
    for first in range(0, num_rows, table_rows):
        rows = list(range(first, min(num_rows, first + table_rows)))
        sample.offer(pa.table({"row": rows}), first)
    return [(first, table["row"].to_pylist()) for first, table in sample.drawn()]


def test_batches_are_neighbouring_rows_and_the_same_whatever_the_tables_sizes():
    expected = drawn(1_003, 1_003)
    assert len(expected) == 10
    for first, rows in expected:
        assert first % 4 == 0
        assert rows == list(range(first, min(first + 4, 1_003)))
    for table_rows in (1, 3, 4, 50, 64):
        assert drawn(1_003, table_rows) == expected
    assert max(first for first, _ in expected) > 500, "a sample of the beginning is none"


def test_a_sample_of_all_rows_has_the_last_short_batch():
    batches = drawn(11, 3, sample_rows=100)
    assert [row for _, rows in batches for row in rows] == list(range(11))


@pytest.fixture
def tokenizer(tmp_path):
    vocabulary = {"[UNK]": 0, "</s>": 1, **{word: i + 2 for i, word in enumerate("abcdefgh:")}}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="[UNK]")
    fast.chat_template = "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}"
    fast.save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def write(rows, folder):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_lengths_shares_and_layouts_are_in_the_tokens_of_training(tokenizer, tmp_path):
    rows = [
        {"prompt": "a b c ", "chosen": "d e", "rejected": "d f g h"},
        {"prompt": "a b ", "chosen": "x", "rejected": "b"},
    ]
    found = audit.audit(write(rows, tmp_path), tokenizer=tokenizer, max_length=6, batch_size=2)["tokens"]
    # With the EOS: a b c d e /, a b c d f g h /, a b x /, a b b /.
    assert (found["lengths"]["chosen"]["max"], found["lengths"]["rejected"]["max"]) == (6, 8)
    assert found["over"]["pairs"] == {"count": 1, "share": 0.5}
    assert found["over"]["chosen"]["count"] == 0
    sharing = found["sharing"]
    assert sharing["padded_to_real"] == pytest.approx(4 * 8 / 22)
    # a b, c d, e /, f g h /, x /, b /: each once.
    assert sharing["real_to_unique"] == pytest.approx(22 / 14)
    assert sharing["within_pairs"] == pytest.approx(2 * (4 + 2) / 22)


def test_conversations_are_counted_as_the_chat_template_writes_them(tokenizer, tmp_path):
    rows = [
        {
            "prompt": [{"role": "user", "content": "a"}],
            "chosen": [{"role": "assistant", "content": "b c"}],
            "rejected": [{"role": "assistant", "content": ""}],
        }
    ]
    found = audit.audit(write(rows, tmp_path), tokenizer=tokenizer)["tokens"]
    assert (found["lengths"]["chosen"]["max"], found["lengths"]["rejected"]["max"]) == (7, 5)


def test_a_condition_on_max_length_is_judged_by_the_sample(tokenizer, tmp_path):
    name = write([{"prompt": "a ", "chosen": "b c d", "rejected": "b"}], tmp_path)
    text, code = audit.run(data=name, tokenizer=tokenizer, max_length=4, fail_on=["over_max_length>5%"])
    assert code == 1
    assert text.endswith("failed: over_max_length>5%: 1 (100.00 %)")
    assert audit.run(data=name, tokenizer=tokenizer, max_length=5, fail_on=["over_max_length"])[1] == 0


def test_a_tokenizer_that_is_not_there_or_has_no_template_is_an_error(tokenizer, tmp_path):
    rows = [{side: [{"role": "assistant", "content": "b"}] for side in ("chosen", "rejected")}]
    name = write(rows, tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"tokenizer '{tmp_path}/none' cannot be loaded")):
        audit.audit(name, tokenizer=f"{tmp_path}/none")
    file = Path(tokenizer) / "chat_template.jinja"
    file.unlink()
    with pytest.raises(ValueError, match=r"the rows are conversations, but the tokenizer .* has no chat template"):
        audit.audit(name, tokenizer=tokenizer)


def test_every_shared_beginning_is_counted_once():
    assert token_sample.num_unique([[1, 2, 3], [1, 2, 4], [1, 2], [2]]) == 5


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the data folder beside the project")
def test_real_pairs_in_tokens_cost_what_is_known(tmp_path):
    from datasets import Dataset
    from tokenizers import Tokenizer, decoders, trainers

    from plaudit import loading

    rows = loading.load_splits(str(DATA / "hh_harmless_test.jsonl.gz"))["train"]
    assert isinstance(rows, Dataset)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=16_384,
        special_tokens=["<eos>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator((text for side in ("chosen", "rejected") for text in rows[side]), trainer)
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>").save_pretrained(tmp_path / "tokenizer")
    found = audit.audit(str(DATA / "hh_harmless_test.jsonl.gz"), tokenizer=str(tmp_path / "tokenizer"), sample=0)[
        "tokens"
    ]["sharing"]
    assert found["padded_to_real"] == pytest.approx(2.5, abs=0.15)
    assert found["real_to_unique"] == pytest.approx(1.58, abs=0.03)
    assert found["padded_to_unique"] == pytest.approx(4.0, abs=0.2)

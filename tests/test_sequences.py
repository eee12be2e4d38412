"""From benchmarks to scored rows: each text once, whoever scores it, and everything that can be wrong with the rewards."""

import numpy as np
import pytest
import rows_of_benchmarks as made
from conftest import make_model, make_tokenizer

from plaudit import RewardModel
from plaudit.benchmarks import load_benchmarks
from plaudit.sequences import RAW, Scores, score_benchmarks, scored_rows, sequences_of

PAIRS = [{"prompt": f"Question {n}?", "chosen": f"yes {n}", "rejected": "no", "subset": "x"} for n in range(4)]


@pytest.fixture
def load(tmp_path):
    def load(rows, name="mine"):
        return load_benchmarks(made.write(tmp_path / f"{name}.jsonl", rows))

    return load


def score(model, benchmarks, **options):
    return score_benchmarks(
        model, benchmarks, **{"truncation": "left", "max_length": None, "template": None, **options}
    )


def by_length(conversations):
    return [len(one) if isinstance(one, str) else len(one[-1]["content"]) for one in conversations]


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "plaudit"]


def test_each_prompt_with_an_answer_is_scored_once_across_all_benchmarks(tmp_path):
    calls = []

    def counting(conversations):
        calls.append([str(one) for one in conversations])
        return by_length(conversations)

    styles = made.rm_bench({"chat": 3})
    styles[0]["chosen"] = ["same", "same", "other"]
    files = [
        made.write(tmp_path / "a.jsonl", PAIRS),
        made.write(tmp_path / "b.jsonl", [*PAIRS[2:], {**PAIRS[0], "rejected": "yes 0"}]),
        made.write(tmp_path / "c.jsonl", styles),
    ]
    rows, facts = score(counting, load_benchmarks(files))
    (asked,) = calls
    assert len(asked) == len(set(asked))
    # 4 pairs, of the second file nothing new, and 3 times 6 styles of which two are one text.
    assert len(asked) == facts["sequences"] == 8 + 17
    assert rows["a"][2].rewards == rows["b"][0].rewards
    assert rows["b"][2].rewards == [5.0, 5.0]
    assert rows["b"][2].extra["identical"] is True
    assert rows["c"][0].rewards[:3] == [4.0, 4.0, 5.0]


def test_the_same_answer_to_another_prompt_is_another_text(load):
    assert len(sequences_of(load(PAIRS)).sequences) == 8


def test_a_prompts_answers_stand_side_by_side(load):
    found = sequences_of(load(made.best_of_n(3))).sequences
    assert [one.content[0]["content"] for one in found] == [f"Question {n}?" for n in range(3) for _ in range(4)]
    assert found[5].where == "benchmark 'mine' row '1', answer 1"


def test_rows_keep_their_labels_and_what_their_figures_need(load):
    (benchmark,) = load(made.judgebench({"livebench-math": 2}))
    rows, _ = score(by_length, [benchmark])
    first, second = rows["mine"]
    assert (first.labels, second.labels) == ([0, 1], [1, 0])
    assert first.extra["label"] == "B>A"
    assert first.extra["kind"] == "judgebench"
    assert (first.subset, first.tokens) == ("livebench-math", None)
    assert first.rewards == [float(len(answer)) for answer in benchmark.rows[0].answers]
    (named,) = load(made.judgebench({"livebench-math": 2}), "JudgeBench")
    assert "kind" not in score(by_length, [named])[0]["JudgeBench"][0].extra, "the name says it"


@pytest.mark.parametrize(
    "returned",
    [
        lambda values: np.array(values, np.float32),
        lambda values: [[value] for value in values],
        lambda values: (value for value in values),
        lambda values: tuple(np.float64(value) for value in values),
    ],
)
def test_rewards_may_come_as_arrays_nested_lists_and_generators(load, returned):
    rows, _ = score(lambda conversations: returned(by_length(conversations)), load(PAIRS))
    assert rows["mine"][0].rewards == [5.0, 2.0]
    assert {type(reward) for reward in rows["mine"][0].rewards} == {float}


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (lambda one: [1.0] * (len(one) - 1), ValueError, "the scoring function returned 7 rewards for 8 conversations"),
        (lambda one: 1.0, ValueError, "the scoring function returned float; it must return one number a conversation"),
        (lambda one: [1.0, float("nan")] * 4, ValueError, "'mine' row '0', answer 1: the reward is nan, and must be finite"),
        (lambda one: [1.0] * 7 + [float("inf")], ValueError, "'mine' row '3', answer 1: the reward is inf, and must be"),
        (lambda one: ["good"] * 8, ValueError, "'mine' row '0', answer 0: the reward is 'good', and must be a number"),
        (lambda one: [[1.0, 2.0]] * 8, ValueError, r"the reward is \[1.0, 2.0\], and must be a number"),
        (3, TypeError, "score must be a RewardModel or a function of a list of conversations, not int"),
    ],
)  # fmt: skip
def test_what_a_function_returns_is_checked_and_the_row_is_named(load, returned, error, message):
    with pytest.raises(error, match=message):
        score(returned, load(PAIRS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncation": "error"}, "truncation='error' has no effect on a scoring function"),
        ({"max_length": 5}, "max_length=5 has no effect on a scoring function"),
        ({"template": "file.jinja"}, "template='file.jinja' has no effect on a scoring function"),
    ],
)
def test_options_of_models_are_refused_for_functions(load, options, message):
    with pytest.raises(ValueError, match=message):
        score(by_length, load(PAIRS), **options)


def test_tools_that_a_function_is_not_given_are_counted_and_said(load, caplog):
    asked = [{"role": "user", "content": "Weather?"}]
    answers = [[{"role": "assistant", "content": text}] for text in ("Sun.", "Rain, I think.")]
    rows = [{"prompt": asked, "chosen": answers[0], "rejected": answers[1], "tools": '[{"type": "function"}]'}]
    score(by_length, load(rows))
    assert said(caplog) == ["2 conversations have tools or template variables, which a scoring function is not given"]


# Reward models.


def built(**tokenizer):
    made_tokenizer = make_tokenizer(**tokenizer)
    return RewardModel(make_model(made_tokenizer), made_tokenizer, packing="off")


def test_a_reward_model_gives_its_own_rewards_lengths_and_facts(load):
    model, benchmarks = built(), load(PAIRS)
    rows, facts = score(model, benchmarks)
    for row, benchmark_row in zip(rows["mine"], benchmarks[0].rows, strict=True):
        expected = model.score(benchmark_row.contents())
        np.testing.assert_allclose(row.rewards, expected, atol=1e-5)
        found = model.tokenizer.apply_chat_template(benchmark_row.contents()[0], tokenize=True)
        assert row.tokens[0] == len(found["input_ids"] if hasattr(found, "keys") else found)
        assert "truncated" not in row.extra
    assert facts["model_fingerprint"] == model.fingerprint
    assert (facts["dtype"], facts["layout"], facts["truncation"]) == ("float32", "Padded", "left")
    assert facts["tokens"] == sum(sum(row.tokens) for row in rows["mine"])
    assert facts["tokens_per_second"] > 0
    assert {"plaudit", "torch", "transformers"} <= set(facts["versions"])
    assert len(facts["tokenizer_fingerprint"]) == len(facts["template_sha256"]) == 64


def test_a_model_and_its_own_score_method_give_the_same_rows_but_for_lengths(load):
    model = built()
    rows = [*PAIRS, {"prompt": "q", "chosen": "The sky is blue.", "rejected": "Green."}]
    benchmarks = load(rows)
    ours, theirs = score(model, benchmarks)[0]["mine"], score(model.score, benchmarks)[0]["mine"]
    assert [row.rewards for row in ours] == [row.rewards for row in theirs]
    assert theirs[0].tokens is None


def test_a_model_without_a_chat_template_joins_text_prompts_and_refuses_conversations(load):
    model = built(chat_template=None)
    rows, _ = score(model, load(PAIRS))
    assert rows["mine"][0].rewards == pytest.approx(
        model.score(["Question 0?yes 0", "Question 0?no"]).tolist(), abs=1e-5
    )
    with pytest.raises(
        ValueError, match=r"tokenizer has no chat template; give one as a file \(template, --template FILE\)"
    ):
        score(model, load(made.best_of_n(1), "bon"))


def test_raw_joins_what_is_said_and_counts_the_rows_without_a_template(load):
    model, benchmarks = built(), load(made.rmb_pairs(1))
    rows, facts = score(model, benchmarks, template=RAW)
    text = "Hello\n\nHi\n\nQuestion 0?\n\nGood 0"
    assert rows["mine"][0].rewards[0] == pytest.approx(float(model.score([text])[0]), abs=1e-5)
    assert rows["mine"][0].extra["template_missing"] is True
    assert (facts["template"], facts["template_sha256"]) == (RAW, None)
    asked = []
    score(lambda texts: asked.extend(texts) or [0.0] * len(texts), benchmarks, template=RAW)
    assert asked[0] == text


def test_a_template_file_is_used_and_the_tokenizers_own_comes_back(load, tmp_path):
    model, file = built(), tmp_path / "mine.jinja"
    file.write_text("{% for message in messages %}[{{ message.content }}]{% endfor %}<|end|>")
    own = model.tokenizer.chat_template
    rows, facts = score(model, load(PAIRS), template=str(file))
    assert rows["mine"][0].rewards[0] != score(model, load(PAIRS))[0]["mine"][0].rewards[0]
    assert rows["mine"][0].tokens[0] == len(model.tokenizer("[Question 0?][yes 0]<|end|>")["input_ids"])
    assert model.tokenizer.chat_template == own
    assert facts["template"] == "mine.jinja"
    with pytest.raises(ValueError, match="template 'nothing.jinja' is neither 'raw' nor a file"):
        score(model, load(PAIRS), template="nothing.jinja")


def test_what_is_cut_is_marked_and_the_answers_stay(load, caplog):
    long = {**PAIRS[0], "prompt": "The sky is green. " * 40, "rejected": "no 1"}
    model = built()
    rows, facts = score(model, load([*PAIRS, long]), max_length=40)
    assert ["truncated" in row.extra for row in rows["mine"]] == [False] * 4 + [True]
    assert rows["mine"][4].extra["truncated"] == [True, True]
    assert rows["mine"][4].tokens == [40, 40]
    assert rows["mine"][4].rewards[0] != rows["mine"][4].rewards[1]
    assert any(line.startswith("truncated 2 of 10 sequences to 40 tokens (left)") for line in said(caplog))
    assert facts["equal_when_cut"] == 0
    with pytest.raises(ValueError, match="'mine' row '4', answer 0: .* tokens are more than max_length 40"):
        score(model, load([*PAIRS, long]), max_length=40, truncation="error")


def test_sequences_that_become_equal_when_cut_get_one_reward_and_are_counted(load, caplog, monkeypatch):
    ending = " The grass is blue." * 20
    row = {"prompt": "q", "chosen": "Yes." + ending, "rejected": "No." + ending}
    model = built()
    scored = model.rewards_of
    # As if batches gave the same ids rewards that differ in the last digit.
    uneven = np.arange(10, dtype=np.float32)
    monkeypatch.setattr(model, "rewards_of", lambda *arguments: scored(*arguments)._replace(rewards=uneven))
    rows, facts = score(model, load([row, *PAIRS]), max_length=40)
    assert [row.rewards for row in rows["mine"][:2]] == [[0.0, 0.0], [2.0, 3.0]]
    assert rows["mine"][0].extra["identical_when_cut"] is True
    assert "identical_when_cut" not in rows["mine"][1].extra
    assert facts["equal_when_cut"] == 1
    assert any("1 of 2 cut sequences have become equal to others" in line for line in said(caplog))


def test_a_reward_does_not_depend_on_what_else_is_evaluated(load):
    model, long = built(), {"prompt": "Question 0?", "chosen": "A cat. " * 30, "rejected": "no"}
    alone = score(model, load([PAIRS[0]]), max_length=30)[0]["mine"][0].rewards
    beside = score(model, load([PAIRS[0], long]), max_length=30)[0]["mine"][0].rewards
    assert alone == pytest.approx(beside, abs=1e-5)


def test_scored_rows_can_be_made_of_anybodys_rewards(load):
    (benchmark,) = load(PAIRS)
    sequences, places = sequences_of([benchmark])
    scores = Scores([float(place) for place in range(len(sequences))], tokens=list(range(8)))
    rows = scored_rows(benchmark, places["mine"], scores)
    assert [row.rewards for row in rows] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert rows[3].tokens == [6, 7]

"""Each format of CONVERTERS on small rows made here, and on the real files where they are."""

import json
from pathlib import Path

import numpy as np
import pytest

from plaudit.converters import CONVERTERS, Dropped, RowProblem, is_transcript, role_content, without_none

DATA = Path(__file__).parents[2] / "shared" / "data"


def pairs(name, row, margins=False):
    return list(CONVERTERS[name].convert(row, margins))


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def transcript(*turns):
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {text}" for i, text in enumerate(turns))


# Messages


def test_none_is_stripped_from_dicts_at_any_depth_but_stays_in_lists():
    value = {"a": None, "b": [None, {"c": None, "d": 1}], "e": {"f": {"g": None}}}
    assert without_none(value) == {"b": [None, {"d": 1}], "e": {"f": {}}}


@pytest.mark.parametrize(
    ("speaker", "role"),
    [("human", "user"), ("gpt", "assistant"), ("system", "system"), ("observation", "tool"), ("critic", "critic")],
)
def test_speakers_become_roles(speaker, role):
    assert role_content({"from": speaker, "value": "hi", "weight": 1}) == {"role": role, "content": "hi", "weight": 1}


def test_a_function_call_becomes_tool_calls_and_a_text_that_is_none_stays_text():
    call = {"name": "weather", "arguments": {"city": "Oslo"}}
    made = role_content({"from": "function_call", "value": json.dumps(call)})
    assert made == {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}
    assert role_content({"from": "function_call", "value": "no json"}) == assistant("no json")


# Transcripts


def test_a_transcript_becomes_every_turn_in_order_without_surrounding_space():
    row = {"chosen": transcript("hi", " a\n\nlist ", "ok", "yes"), "rejected": transcript("hi", "a", "ok", "no")}
    (pair,) = pairs("transcript", row)
    assert pair["chosen"] == [user("hi"), assistant("a\n\nlist"), user("ok"), assistant("yes")]
    assert pair["rejected"] == [user("hi"), assistant("a"), user("ok"), assistant("no")]
    assert "prompt" not in pair


def test_sides_that_part_before_the_last_answer_keep_their_own_prompts():
    row = {"chosen": transcript("hi", "one", "more", "two"), "rejected": transcript("hi", "three")}
    (pair,) = pairs("transcript", row)
    assert [turn["content"] for turn in pair["chosen"]] == ["hi", "one", "more", "two"]
    assert [turn["content"] for turn in pair["rejected"]] == ["hi", "three"]


def test_two_turns_of_one_speaker_stay_two_messages():
    row = {"chosen": transcript("hi", "a") + "\n\nAssistant: b", "rejected": transcript("hi", "c")}
    (pair,) = pairs("transcript", row)
    assert pair["chosen"] == [user("hi"), assistant("a"), assistant("b")]


@pytest.mark.parametrize("last", [transcript("hi", ""), transcript("hi", " \n"), transcript("hi", "a", "and?")])
def test_a_transcript_without_a_last_answer_is_dropped_whole(last):
    answered = transcript("hi", "a")
    assert pairs("transcript", {"chosen": last, "rejected": answered}) == [Dropped("without an answer to score")]
    assert pairs("transcript", {"chosen": answered, "rejected": last}) == [Dropped("without an answer to score")]


def test_human_inside_a_line_opens_no_turn():
    (pair,) = pairs("transcript", {"chosen": transcript("hi", "a Human: b"), "rejected": transcript("hi", "c")})
    assert pair["chosen"][1:] == [assistant("a Human: b")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no turns here", "holds no turn"),
        ("", "holds no turn"),
        ("Be kind." + transcript("hi", "a"), "text before its first turn: 'Be kind.'"),
        (None, "'chosen' must be a transcript, not None"),
    ],
)
def test_a_text_that_is_no_transcript_is_an_error(text, message):
    with pytest.raises(RowProblem, match=message):
        pairs("transcript", {"chosen": text, "rejected": transcript("hi", "a")})


def test_a_prompt_column_begins_both_transcripts():
    row = {"prompt": "\n\nHuman: hi\n\nAssistant:", "chosen": " a", "rejected": " b"}
    assert pairs("transcript", row) == [
        {"chosen": [user("hi"), assistant("a")], "rejected": [user("hi"), assistant("b")]}
    ]


def test_a_transcript_needs_a_turn_of_each_speaker():
    assert is_transcript(transcript("hi", "a"))
    assert not is_transcript("\n\nHuman: hi")
    assert not is_transcript("The sky is blue.")


# Arena votes


def vote(prompt, a, b, winner="model_a"):
    flags = {f"winner_{name}": int(name == winner) for name in ("model_a", "model_b", "tie")}
    texts = {"prompt": prompt, "response_a": a, "response_b": b}
    return {**{name: json.dumps(text) for name, text in texts.items()}, **flags}


def test_arena_turns_are_interleaved_and_the_winner_is_chosen():
    row = vote(["q1", "q2"], ["a1", "a2"], ["b1", "b2"], winner="model_b")
    assert pairs("arena", row) == [
        {
            "chosen": [user("q1"), assistant("b1"), user("q2"), assistant("b2")],
            "rejected": [user("q1"), assistant("a1"), user("q2"), assistant("a2")],
        }
    ]
    (other,) = pairs("arena", row | {"winner_model_a": 1, "winner_model_b": 0})
    assert other["chosen"][-1] == assistant("a2")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (vote(["q"], ["a"], ["b"], "tie"), "tied"),
        (vote(["q"], [None], ["b"]), "without an answer to score"),
        (vote(["q"], ["a"], [" "]), "without an answer to score"),
        (vote(["q", "r"], ["a"], ["b", "c"]), "without an answer to score"),
        (vote(["q"], None, ["b"]), "without an answer to score"),
        (vote(["q", "r"], [None, "a"], ["b", "c"]), "with a turn without text"),
        (vote([None], ["a"], ["b"]), "with a turn without text"),
        (vote([], [], []), "with a turn without text"),
        (vote(["q"], ["\ud83d"], ["b"]), "with a text that is not Unicode"),
    ],
)
def test_votes_without_a_preference_or_an_answer_are_dropped(row, reason):
    assert pairs("arena", row) == [Dropped(reason)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": '["q"'}, "'prompt' is not the JSON of a list of texts"),
        ({"response_b": "plain"}, "'response_b' is not the JSON of a list of texts: 'plain'"),
        ({"response_a": "[1]"}, "'response_a' is not the JSON"),
        ({"winner_model_b": 1}, "exactly one winner must be 1 .* winner_model_a=1, winner_model_b=1"),
        ({"winner_model_a": 0}, "exactly one winner"),
        ({"winner_model_a": None}, "exactly one winner"),
        ({"response_a": '["a", "b"]'}, "'prompt' has 1 turns, but a response has 2"),
    ],
)
def test_a_broken_vote_is_an_error(change, message):
    with pytest.raises(RowProblem, match=message):
        pairs("arena", vote(["q"], ["a"], ["b"]) | change)


def test_votes_on_plain_texts_are_one_turn_each():
    row = vote(["q"], ["a"], ["b"]) | {"prompt": "[INST] q", "response_a": "a", "response_b": "b"}
    assert pairs("arena", row) == [
        {"chosen": [user("[INST] q"), assistant("a")], "rejected": [user("[INST] q"), assistant("b")]}
    ]
    assert pairs("arena", row | {"response_b": None}) == [Dropped("without an answer to score")]


def test_without_a_tie_column_no_winner_is_a_tie():
    row = vote(["q"], ["a"], ["b"], "tie")
    del row["winner_tie"]
    assert pairs("arena", row) == [Dropped("tied")]


# ShareGPT


def test_sharegpt_has_its_conversation_as_prompt_and_keeps_the_system_message():
    row = {
        "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": [{"from": "gpt", "value": "b"}],
    }
    assert pairs("sharegpt", row) == [
        {
            "prompt": [{"role": "system", "content": "s"}, user("q")],
            "chosen": [assistant("a")],
            "rejected": [assistant("b")],
        }
    ]


def test_sharegpt_takes_text_answers_and_a_system_column():
    row = {"conversations": [{"from": "human", "value": "q"}], "chosen": "a", "rejected": "b", "system": "s"}
    (pair,) = pairs("sharegpt", row)
    assert pair["prompt"] == [{"role": "system", "content": "s"}, user("q")]
    assert pair["chosen"] == [assistant("a")]


def test_sharegpt_without_messages_is_an_error():
    with pytest.raises(RowProblem, match="'conversations' must be a list of messages, not None"):
        pairs("sharegpt", {"conversations": None, "chosen": "a", "rejected": "b"})
    with pytest.raises(RowProblem, match="'rejected' must be a message, a message list or a text, not int 3"):
        pairs("sharegpt", {"conversations": [user("q")], "chosen": "a", "rejected": 3})


# Scored answers


def test_ratings_make_every_pair_of_different_scores():
    row = {"prompt": "q", "responses": ["low", "high", "also high"], "scores": [1, 4, 4]}
    found = pairs("ratings", row, margins=True)
    assert found == [
        {"prompt": [user("q")], "chosen": [assistant("high")], "rejected": [assistant("low")], "margin": 3.0},
        {"prompt": [user("q")], "chosen": [assistant("also high")], "rejected": [assistant("low")], "margin": 3.0},
        Dropped("tied"),
    ]
    assert all("margin" not in pair for pair in pairs("ratings", row) if isinstance(pair, dict))


def test_ratings_take_a_message_list_as_prompt_and_other_names():
    (pair,) = pairs("ratings", {"question": [user("q")], "answers": ["a", "b"], "ratings": [0.5, 0.25]})
    assert (pair["prompt"], pair["chosen"]) == ([user("q")], [assistant("a")])


def test_ratings_drop_a_lone_answer_and_an_empty_one():
    assert pairs("ratings", {"prompt": "q", "responses": ["a"], "scores": [1]}) == [
        Dropped("with fewer than two answers")
    ]
    row = {"prompt": "q", "responses": ["a", None], "scores": [1, 2]}
    assert pairs("ratings", row) == [Dropped("without an answer to score")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [1, None]}, "score of answer 1 must be a finite number, not None"),
        ({"scores": [float("nan"), 1]}, "score of answer 0 must be a finite number, not float nan"),
        ({"scores": [1, "2"]}, "not str '2'"),
        ({"scores": [1]}, "'responses' has 2 answers and 'scores' 1 scores"),
        ({"scores": None}, "'scores' must be a list, not None"),
        ({"responses": ["a", 5]}, "an answer must be a text, not int 5"),
        ({"prompt": None}, "'prompt' must be a text or a message list, not None"),
    ],
)
def test_broken_ratings_are_an_error(change, message):
    with pytest.raises(RowProblem, match=message):
        pairs("ratings", {"prompt": "q", "responses": ["a", "b"], "scores": [1, 2]} | change)


def test_ultrafeedback_completions_become_pairs_by_one_score_for_the_whole_row():
    completions = [
        {"response": "a", "overall_score": None, "fine-grained_score": 9.0},
        {"response": "b", "overall_score": None, "fine-grained_score": 2.0},
    ]
    (pair,) = pairs("ultrafeedback", {"instruction": "q", "completions": completions}, margins=True)
    assert pair == {
        "prompt": [user("q")],
        "chosen": [assistant("a")],
        "rejected": [assistant("b")],
        "margin": 7.0,
    }
    completions[0]["overall_score"] = 5.0
    with pytest.raises(RowProblem, match="score of answer 1 must be a finite number, not None"):
        pairs("ultrafeedback", {"instruction": "q", "completions": completions})


def test_ultrafeedback_without_a_score_is_an_error():
    with pytest.raises(RowProblem, match="completion 0 has none of 'overall_score'"):
        pairs("ultrafeedback", {"instruction": "q", "completions": [{"response": "a"}, {"response": "b"}]})


def test_ultrafeedback_by_name_makes_a_text_prompt_a_user_message():
    row = {"prompt": "q", "chosen": [assistant("a")], "rejected": [assistant("b")]}
    assert pairs("ultrafeedback", row) == [row | {"prompt": [user("q")]}]


# HelpSteer


@pytest.mark.parametrize(("strength", "chosen"), [(-3, "one"), (-1, "one"), (1, "two"), (3, "two")])
def test_a_negative_strength_prefers_the_first_response(strength, chosen):
    row = {"prompt": "q", "response_1": "one", "response_2": "two", "preference_strength": strength}
    (pair,) = pairs("helpsteer", row, margins=True)
    assert pair["chosen"] == [assistant(chosen)]
    assert pair["prompt"] == [user("q")]
    assert pair["margin"] == abs(strength)
    assert "margin" not in pairs("helpsteer", row)[0]


def test_helpsteer3_names_and_message_lists_work():
    row = {"context": [user("q")], "response1": "one", "response2": "two", "overall_preference": 2}
    (pair,) = pairs("helpsteer", row)
    assert (pair["prompt"], pair["chosen"]) == ([user("q")], [assistant("two")])


def test_helpsteer_prompts_of_several_turns_become_several_messages():
    prompt = "q1\n<extra_id_1>Assistant\na1\n<extra_id_1>User\nq2"
    row = {"prompt": prompt, "response_1": "one", "response_2": "two", "preference_strength": 1}
    assert pairs("helpsteer", row)[0]["prompt"] == [user("q1"), assistant("a1"), user("q2")]


def test_helpsteer_drops_no_preference_and_no_answer():
    row = {"prompt": "q", "response_1": "one", "response_2": "two", "preference_strength": 0}
    assert pairs("helpsteer", row) == [Dropped("without a preference")]
    assert pairs("helpsteer", row | {"response_1": ""}) == [Dropped("without an answer to score")]


@pytest.mark.parametrize("strength", [4, None, "1", float("nan"), True])
def test_a_strength_outside_of_minus_3_to_3_is_an_error(strength):
    row = {"prompt": "q", "response_1": "one", "response_2": "two", "preference_strength": strength}
    with pytest.raises(RowProblem, match="'preference_strength' must be a number from -3 to 3"):
        pairs("helpsteer", row)


# The real files


def real(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"needs the real data {name}, which is not beside this project")
    from datasets import load_dataset

    return load_dataset("json", data_files=str(path), split="train")


def test_hh_harmless_gives_2308_pairs_of_which_5_part_early(tmp_path, monkeypatch, caplog):
    from plaudit import formats

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    source = real("hh_harmless_test.jsonl.gz")
    made = formats.convert(source, "transcript")
    assert len(made) == 2308
    assert "dropped 4 of 2,312 rows of train: 4 without an answer to score" in caplog.text
    marked = formats.convert(source, "transcript", keep_dropped=True)
    assert [row for row, reason in enumerate(marked[formats.DROPPED]) if reason] == [86, 516, 925, 1103]
    parted = [row for row, pair in enumerate(marked) if pair["chosen"] and pair["chosen"][:-1] != pair["rejected"][:-1]]
    assert parted == [1254, 1688, 1950, 1952, 2036]


def test_dpo_en_demo_gives_300_pairs_of_which_80_have_a_system_message(tmp_path, monkeypatch):
    from plaudit import formats

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    made = formats.convert(real("dpo_en_demo.json"))
    assert len(made) == 300
    assert sum(pair["prompt"][0]["role"] == "system" for pair in made) == 80


def converted(name, row, margins=True):
    return list(CONVERTERS[name].pairs(row, margins))


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        (
            "ratings",
            {"responses": ["a", "b"], "scores": [1, 2]},
            "there is no column 'prompt' or 'instruction' or 'question'",
        ),
        ("sharegpt", {"chosen": "a", "rejected": "b"}, "there is no column 'conversations'"),
        ("transcript", {"chosen": "\n\nHuman: a\n\nAssistant: b"}, "there is no column 'rejected'"),
        (
            "helpsteer",
            {"prompt": "q", "response_1": "a", "response_2": "b"},
            "there is no column 'preference_strength'",
        ),
    ],
)
def test_a_row_without_a_column_that_the_format_needs_is_an_error(name, row, said):
    with pytest.raises(RowProblem, match=said):
        converted(name, row)


@pytest.mark.parametrize("score", [10**400, float("inf"), True, "3"])
def test_a_score_that_is_no_finite_number_is_an_error(score):
    with pytest.raises(RowProblem, match="the score of answer 1 must be a finite number"):
        converted("ratings", {"prompt": "q", "responses": ["a", "b"], "scores": [1, score]})


def test_scores_too_far_apart_for_a_float_give_no_margin():
    row = {"prompt": "q", "responses": ["a", "b"], "scores": [1.7e308, -1.7e308]}
    with pytest.raises(RowProblem, match="are too far apart for a margin"):
        converted("ratings", row)
    assert len(converted("ratings", row, margins=False)) == 1


@pytest.mark.parametrize("flag", [np.array([1, 0]), [1], None, 10**5000], ids=["array", "list", "none", "digits"])
def test_a_winner_that_is_no_flag_is_an_error(flag):
    row = {
        "prompt": "q",
        "response_a": "a",
        "response_b": "b",
        "winner_model_a": flag,
        "winner_model_b": 0,
        "winner_tie": 0,
    }
    with pytest.raises(RowProblem, match="exactly one winner must be 1 and the others 0, not winner_model_a="):
        converted("arena", row)


def test_a_function_call_whose_json_has_too_many_levels_stays_text():
    message = {"from": "function_call", "value": "[" * 100_000}
    assert role_content(message) == {"role": "assistant", "content": "[" * 100_000}

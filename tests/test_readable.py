"""Texts of the data on a page: turns, folds, and nothing hidden."""

import pytest

from plaudit.readable import (
    FOLD_AT,
    LEAST,
    LONGEST,
    Folded,
    Turn,
    clean,
    decisive,
    folded,
    mistake,
    one_line,
    room_for,
    turns_of,
)


def test_a_transcript_becomes_turns_without_an_empty_last_one():
    turns = turns_of("\n\nHuman: Hi, who?\n\nAssistant: Me.\n\nHuman: Why?\n\nAssistant:")
    assert turns == [
        Turn("User", Folded("Hi, who?")),
        Turn("Assistant", Folded("Me.")),
        Turn("User", Folded("Why?")),
    ]


def test_messages_keep_their_line_breaks_and_a_text_stays_one_turn():
    messages = [
        {"role": "system", "content": "a\n  b"},
        {"role": "critic", "content": "c"},
        {"role": "user", "content": None},
    ]
    assert turns_of(messages) == [Turn("System", Folded("a\n  b")), Turn("critic", Folded("c"))]
    assert turns_of("plain", role="user") == [Turn("User", Folded("plain"))]
    assert turns_of(None) == []
    assert (
        turns_of([{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]}])[
            0
        ].text.shown
        == "x\ny"
    )
    assert (
        "get_weather"
        in turns_of([{"role": "assistant", "content": None, "tool_calls": [{"name": "get_weather"}]}])[0].text.shown
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x00b", "a⟨U+0000⟩b"),
        ("\u202eevil", "⟨U+202E⟩evil"),
        ("\ud800", "⟨U+D800⟩"),
        ("a\r\nb", "a\nb"),
        ("قط\u200f", "قط\u200f"),
    ],
)
def test_what_hides_or_reorders_is_shown(text, shown):
    assert clean(text) == shown


def test_a_long_text_folds_between_words_and_loses_nothing_below_the_limit():
    text = "word " * 1_000
    found = folded(text)
    assert len(found.shown) <= FOLD_AT
    assert found.shown.endswith(" ")
    assert found.shown + found.rest == text
    assert found.num_left_out == 0


def test_a_line_of_a_hundred_thousand_characters_is_cut_and_counted():
    found = folded("x" * 100_000)
    assert len(found.shown) == FOLD_AT
    assert len(found.shown) + len(found.rest) == LONGEST
    assert found.num_left_out == 100_000 - LONGEST
    assert folded("x" * 1_000, 400) == Folded("x" * 400, "", 600)


def test_a_short_text_is_not_folded_for_a_few_characters():
    assert folded("x" * (FOLD_AT + 100)).rest == ""


def test_a_mistake_shows_the_two_answers_by_their_labels_whatever_their_places():
    prompt = "\n\nHuman: Hi\n\nAssistant:"
    row = {
        "id": 7,
        "subset": None,
        "margin": -2.0,
        "prompt": prompt,
        "candidates": [
            {"text": "wrong, low", "reward": -1.0, "label": 0},
            {"text": prompt + " right", "reward": 1.0, "label": 1},
            {"text": "wrong, high", "reward": 3.0, "label": 0},
        ],
    }
    shown = mistake(row)
    assert shown["wrong"]["turns"][0].text.shown == "wrong, high"
    assert shown["right"]["turns"][0].text.shown == "right", "the prompt stands above, once"
    assert shown["others"] == [(False, -1.0)]
    assert [turn.role for turn in shown["turns"]] == ["User"]


@pytest.mark.parametrize(
    ("margin", "chosen"),
    [(-7.0, (1, 3)), (-4.0, (1, 2)), (1.0, (0, 3)), (None, (0, 3))],
)
def test_the_two_answers_are_those_that_the_margin_is_between(margin, chosen):
    assert decisive([9.0, 1.0, 5.0, 8.0], [1, 1, 0, 0], margin) == chosen


def test_a_row_without_right_or_wrong_answers_shows_what_it_has():
    assert decisive([1.0, None], [1, 1], -1.0) == (0, None)
    assert decisive([], [], None) == (None, None)


def test_an_answer_of_messages_leaves_out_the_prompts_turns():
    prompt = [{"role": "user", "content": "q"}]
    row = {
        "prompt": prompt,
        "candidates": [{"text": [*prompt, {"role": "assistant", "content": "a"}], "reward": 0.0, "label": 1}],
    }
    assert mistake(row)["right"]["turns"] == [Turn("Assistant", Folded("a"))]
    assert mistake(row)["wrong"] is None


def test_many_texts_get_less_room_each_and_never_none():
    assert room_for([{}]) == LONGEST
    assert room_for([{}] * 1_000) == LEAST


def test_a_name_is_one_line_and_keeps_the_space_that_does_not_break():
    assert one_line("a\n b\t c") == "a b c"
    assert one_line("73.4\u00a0%") == "73.4\u00a0%"
    assert len(one_line("x" * 999, 50)) == 51

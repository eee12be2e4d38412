"""What is wrong with pairs, labels, templates and learning rates, before a model computes anything."""

import math
import random

import numpy as np
import pytest
import torch
from conftest import CHAT_TEMPLATE, make_tokenizer
from processes import config

from plaudit import checks
from plaudit.checks import Signal

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
ZEPHYR = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def pairs_of(count, seed=0, lean=0.0):
    """Pairs of 20 drawn tokens a side; lean: how often the chosen side's tokens are taken from the lower half."""
    generator = random.Random(seed)

    def side(share):
        return [
            generator.randint(3, 100) if generator.random() < share else generator.randint(3, 200) for _ in range(20)
        ]

    return [{"chosen_ids": side(lean), "rejected_ids": side(0.0)} for _ in range(count)]


def test_a_rule_in_the_labels_is_seen_and_random_labels_have_none():
    clear, faint, none = (checks.label_signal(pairs_of(500, lean=lean)) for lean in (0.5, 0.15, 0.0))
    assert clear.accuracy > 0.7
    assert clear.deviations > faint.deviations > 4
    assert not checks.looks_random(faint)
    assert abs(none.deviations) < 3
    assert none.num_pairs == 500


def test_random_labels_are_named_in_nearly_all_draws():
    signals = [checks.label_signal(pairs_of(400, seed=seed)) for seed in range(12)]
    assert sum(map(checks.looks_random, signals)) >= 11


def test_repeats_are_not_told_by_heart():
    pairs = pairs_of(120)
    assert checks.label_signal(pairs * 4) == checks.label_signal(pairs)


def test_the_probe_of_states_learns_from_the_states_given():
    pairs = pairs_of(200)
    states = np.random.default_rng(0).normal(size=(200, 16))
    assert checks.label_signal(pairs, states).deviations < 3
    assert checks.label_signal(pairs, states + 0.5).deviations > 5


@pytest.mark.parametrize(
    ("signal", "expected"),
    [
        (Signal(400, 0.5, 0.0), True),
        (Signal(399, 0.5, 0.0), False),
        (Signal(400, 0.56, 2.1), False),
        (Signal(2000, 0.52, 2.1), True),
        (Signal(2000, 0.55, 5.0), False),
        (Signal(60, 0.5, 0.0, ((7,), 58, 30)), True),
        (Signal(60, 0.5, 0.0, ((7,), 58, 50)), False),
        (Signal(39, 0.5, 0.0, ((7,), 39, 20)), False),
        (Signal(60, 0.9, 9.0, ((7,), 58, 30)), False),
    ],
)
def test_labels_look_random_only_where_a_rule_would_have_shown(signal, expected):
    assert checks.looks_random(signal) is expected


def test_a_token_that_tells_the_sides_apart_is_found():
    generator = random.Random(0)
    pairs = []
    for _ in range(50):
        sides = [[5, generator.randint(10, 99), 8], [5, generator.randint(10, 99), 9]]
        generator.shuffle(sides)
        pairs.append({"chosen_ids": sides[0], "rejected_ids": sides[1]})
    split = checks.label_signal(pairs).split
    assert split[0] in ((8,), (9,))
    assert split[1] == 50
    assert split[2] == sum(pair["chosen_ids"][-1] == split[0][0] for pair in pairs)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, ZEPHYR, PLAIN])
def test_a_template_that_suits_the_vocabulary_is_no_finding(template):
    assert checks.check_template(make_tokenizer(chat_template=template)) == []


def test_a_foreign_template_is_named_with_the_pieces_of_its_marker():
    (finding,) = checks.check_template(make_tokenizer(chat_template=CHATML))
    assert "<|im_start|>, <|im_end|>" in finding.evidence
    assert "made for another model family" in finding.evidence


def test_a_foreign_template_is_named_although_it_begins_with_the_vocabularys_own_bos():
    template = (
        "{{ bos_token }}{% for m in messages %}<|head|>{{ m.role }}<|/head|>{{ m.content }}<|eot_id|>{% endfor %}"
    )
    (finding,) = checks.check_template(make_tokenizer(chat_template=template, bos="<|bos|>"))
    assert "<|head|>, <|/head|>, <|eot_id|>" in finding.evidence
    assert "<|bos|>" not in finding.evidence.partition(";")[0]


def test_a_template_without_the_markers_of_the_vocabulary_is_named():
    tokenizer = make_tokenizer(chat_template=PLAIN)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    (finding,) = checks.check_template(tokenizer)
    assert "the vocabulary marks turns by <|im_start|>" in finding.evidence
    tokenizer.chat_template = CHATML
    assert checks.check_template(tokenizer) == []


def test_a_template_unlike_the_tokenizers_own_is_named(tokenizer):
    assert checks.check_template(tokenizer) == []
    tokenizer.chat_template = CHAT_TEMPLATE.replace("tools: ", "functions: ")
    assert checks.check_template(tokenizer) == []
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    (finding,) = checks.check_template(tokenizer)
    assert "came with a template that marks turns by <|end|>" in finding.evidence


def test_texts_with_a_few_markers_are_no_finding():
    tokenizer = make_tokenizer()
    plain = tokenizer("The sky is blue.")["input_ids"]
    marked = tokenizer("<|im_start|>user hello<|im_end|>")["input_ids"]
    assert checks.check_marked_texts(tokenizer, [plain] * 9 + [marked]) == []
    assert len(checks.check_marked_texts(tokenizer, [marked] * 9)) == 1


def test_two_bos_tokens_are_named():
    tokenizer = make_tokenizer(bos="<|bos|>")
    bos = tokenizer.bos_token_id
    (finding,) = checks.check_double_start(tokenizer, [[bos, bos, 9]] * 3)
    assert "3 of 3 sequences begin with `<|bos|>` twice" in finding.evidence
    assert checks.check_double_start(tokenizer, [[bos, 9, 10]] * 3) == []


@pytest.mark.parametrize(
    ("margins", "says"),
    [
        ([0.1, math.nan, 0.2], "1 of 3 margins, the first in row 11 (nan)"),
        ([0.1, 0.2, -math.inf], "the first in row 12 (-inf)"),
        ([0.1, 1e30, 0.2], "the margin of row 11 is 1e+30"),
    ],
)
def test_margins_that_break_the_loss_are_named_by_the_users_rows(margins, says):
    (finding,) = checks.check_margins(np.array(margins), [10, 11, 12])
    assert says in finding.evidence


def test_margins_as_people_give_them_are_no_finding():
    assert checks.check_margins(np.array([-3.0, 0.0, 5.0, 100.0]), range(4)) == []
    assert checks.check_margins(np.zeros(0), []) == []


@pytest.mark.parametrize(
    ("values", "share"),
    [
        ({}, 1.0),
        ({"lr_scheduler_type": "linear", "warmup_steps": 10}, 1.0),
        ({"lr_scheduler_type": "cosine", "warmup_steps": 200}, 0.495),
        ({"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 5}, None),
    ],
)
def test_the_share_of_the_learning_rate_that_a_schedule_reaches(tmp_path, values, share):
    assert checks.peak_share(config(tmp_path, **values), 100) == (None if share is None else pytest.approx(share))


def test_a_warm_up_as_long_as_the_run_is_no_finding(tmp_path):
    args = config(tmp_path, lr_scheduler_type="linear", warmup_steps=100)
    assert checks.check_learning_rate(args, 100) == []


def test_a_first_step_with_the_rate_0_is_no_finding(tmp_path):
    history = [{"learning_rate": 0.0, "step": 1}]
    assert checks.check_learning_rate(config(tmp_path), 100, history) == []
    assert checks.check_learning_rate(config(tmp_path), 100, [*history, {"learning_rate": 1e-5, "step": 2}]) == []
    assert checks.check_learning_rate(config(tmp_path), 100, [*history, {"learning_rate": 0.0, "step": 2}]) != []


def test_few_contradictions_are_no_finding():
    pairs = pairs_of(200)
    other = [{"chosen_ids": pair["rejected_ids"], "rejected_ids": pair["chosen_ids"]} for pair in pairs]
    assert checks.check_contradictions(pairs + other[:4]) == []
    (finding,) = checks.check_contradictions(pairs + other[:20])
    assert "in 40 of 220 pairs" in finding.evidence


def test_the_length_note_gives_shares_of_longer_shorter_and_equal():
    sides = [([1] * 3, [1]), ([1], [1] * 3), ([1], [2]), ([1] * 2, [1])]
    note = checks.length_note([{"chosen_ids": chosen, "rejected_ids": rejected} for chosen, rejected in sides])
    assert "right in 50.0% of 4 pairs, the shorter in 25.0%, 25.0% are equally long" in note


@pytest.mark.parametrize("bos", [None, "<|bos|>"])
def test_texts_without_a_template_are_no_finding_where_the_vocabulary_has_turn_markers(bos):
    tokenizer = make_tokenizer(bos=bos)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    plain = [tokenizer(f"the sky is blue {i}").input_ids for i in range(8)]
    assert checks.check_marked_texts(tokenizer, plain) == []
    marked = [tokenizer(f"<|start_header_id|>user<|end_header_id|>the sky {i}").input_ids for i in range(8)]
    (finding,) = checks.check_marked_texts(tokenizer, marked)
    assert finding.cause == "wrong chat template"


def test_markers_that_their_own_families_read_as_plain_text_are_no_sign_of_another_one():
    tokenizer = make_tokenizer()
    texts = [tokenizer(f"[INST] what {i} [/INST] it is blue").input_ids for i in range(8)]
    assert checks.check_marked_texts(tokenizer, texts) == []
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    (finding,) = checks.check_marked_texts(tokenizer, texts)
    assert "the vocabulary marks turns by <|im_start|>, and the template writes none of them" in finding.evidence


def kinds_of(count, seed=0, right=0.5, openings=4):
    """Pairs of one answer that begins in one of some ways and one that begins in others; right: how often the first is chosen."""
    generator = random.Random(seed)
    pairs = []
    for _ in range(count):
        sides = [
            [5, first + generator.randrange(openings), *generator.choices(range(100, 160), k=5)] for first in (10, 50)
        ]
        if generator.random() >= right:
            sides.reverse()
        pairs.append({"chosen_ids": sides[0], "rejected_ids": sides[1]})
    return pairs


@pytest.mark.parametrize("seed", range(3))
def test_random_labels_of_a_few_pairs_of_two_clear_kinds_are_named(seed):
    pairs = kinds_of(120, seed)
    signal = checks.label_signal(pairs)
    assert signal.split is None
    of_first = sum(pair["chosen_ids"][1] < 50 for pair in pairs)
    assert signal.kinds in (of_first, 120 - of_first)
    assert checks.looks_random(signal)
    finding = checks.random_labels(signal, None, "")
    assert "are of two clear kinds" in finding.evidence
    assert f"of the first kind in {signal.kinds / 120:.1%}" in finding.evidence


@pytest.mark.parametrize("decides", [True, False])
def test_prompts_that_decide_which_kind_is_right_are_heard(decides):
    generator, pairs = random.Random(1), kinds_of(120)
    for pair in pairs:
        is_first = pair["chosen_ids"][1] < 50
        word = 200 if (is_first if decides else generator.random() < 0.5) else 201
        prompt = [*generator.sample(range(300, 316), 4), word]
        generator.shuffle(prompt)
        for side in ("chosen_ids", "rejected_ids"):
            pair[side] = [*prompt, *pair[side]]
    assert checks.looks_random(checks.label_signal(pairs))
    signal = checks.prompt_signal(pairs)
    assert (signal.deviations >= checks.SIGNAL) is decides
    assert (signal.accuracy > 0.8) is decides


@pytest.mark.parametrize("right", [1.0, 0.8, 0.0])
def test_labels_that_follow_the_kind_are_not_called_random(right):
    signal = checks.label_signal(kinds_of(120, right=right))
    assert signal.kinds is not None
    assert not checks.looks_random(signal)


def test_pairs_without_two_clear_kinds_have_none():
    assert checks.label_signal(pairs_of(120)).kinds is None
    assert checks.label_signal(pairs_of(120, lean=0.5)).kinds is None


def rates(tmp_path, optimizer=None, schedule=None, **values):
    args = config(tmp_path, **values)
    return [each.cause for each in checks.check_learning_rate(args, 100, (), optimizer, schedule)]


def test_the_rate_that_counts_is_that_of_the_optimizer_that_was_given(tmp_path):
    weight = torch.nn.Parameter(torch.ones(2))
    still, moving = torch.optim.SGD([weight], lr=0.0), torch.optim.SGD([weight], lr=0.1)
    assert rates(tmp_path, still, learning_rate=1e-3) == ["the learning rate is 0"]
    assert rates(tmp_path, moving, learning_rate=0.0) == []
    (finding,) = checks.check_learning_rate(config(tmp_path, learning_rate=1e-3), 100, (), still)
    assert "lr=0.0 in every parameter group of the optimizer that was given" in finding.evidence


def test_the_schedule_that_counts_is_the_one_that_was_given(tmp_path):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    never = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    assert rates(tmp_path, optimizer, never) == ["the learning rate is 0"]
    whole = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 10))
    assert rates(tmp_path, optimizer, whole, warmup_steps=10_000) == []
    of_another_make = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=100)
    assert rates(tmp_path, optimizer, of_another_make, warmup_steps=10_000) == []


def test_an_optimizer_that_makes_its_own_rates_is_no_finding(tmp_path):
    from transformers import Adafactor
    from transformers.optimization import AdafactorSchedule

    optimizer = Adafactor([torch.nn.Parameter(torch.ones(2))], relative_step=True, warmup_init=True, lr=None)
    assert rates(tmp_path, optimizer, learning_rate=0.0) == []
    assert rates(tmp_path, optimizer, AdafactorSchedule(optimizer)) == []


@pytest.mark.parametrize(("rate", "causes"), [(1e-12, ["the learning rate is as good as 0"]), (1e-8, [])])
def test_a_rate_that_rounding_swallows_whole_is_named(tmp_path, rate, causes):
    assert rates(tmp_path, learning_rate=rate) == causes

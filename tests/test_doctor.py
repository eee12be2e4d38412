"""Planted faults, each named first and alone, and healthy runs, of which nothing is said."""

import json
import math
import random

import pytest
import torch
from conftest import conversations, make_model, make_tokenizer, text_pairs
from datasets import Dataset
from families import IN_TREE, NEEDED
from peft import LoraConfig
from processes import config

from plaudit import RewardTrainer
from plaudit.case import Case
from plaudit.collate import pad
from plaudit.doctor import diagnose

FOREIGN = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def swapped(rows, seed=0):
    """The rows with chosen and rejected exchanged in about half of them."""
    generator = random.Random(seed)
    exchanged = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    return [other if generator.random() < 0.5 else row for row, other in zip(rows, exchanged, strict=True)]


def make(model, folder, rows=None, **values):
    own = ("data_collator", "peft_config", "processing_class", "optimizers")
    arguments = {name: values.pop(name) for name in own if name in values}
    args = config(folder, **{"max_steps": 60, **values})
    return RewardTrainer(model, args, train_dataset=Dataset.from_list(rows or text_pairs(48)), **arguments)


def causes(trainer):
    return [finding.cause for finding in trainer.diagnose().findings]


def padded(examples, cut=None):
    """The examples as a user's own collator pads them; cut: what of each pair's sides is attended to."""
    sides = [example["chosen_ids"] for example in examples] + [example["rejected_ids"] for example in examples]
    ids, mask = pad(sides, 0)
    for row, example in enumerate([*examples, *examples]) if cut else ():
        mask[row, cut(example) :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def shared(example):
    pairs = zip(example["chosen_ids"], example["rejected_ids"], strict=False)
    return next(i for i, (chosen, rejected) in enumerate(pairs) if chosen != rejected)


def test_a_frozen_head_is_named_with_the_weight_that_is_frozen(model_path, tmp_path):
    trainer = make(model_path, tmp_path)
    trainer.model.score.weight.requires_grad_(False)
    (finding,) = trainer.diagnose().findings
    assert finding.cause == "the head is frozen"
    assert "score.weight has requires_grad=False" in finding.evidence
    assert "requires_grad" in finding.cure


def test_a_head_that_the_optimizer_does_not_hold_is_named(model_path, tmp_path, tiny_model):
    others = [each for name, each in tiny_model.named_parameters() if name != "score.weight"]
    optimizer = torch.optim.AdamW(others, lr=1e-3)
    trainer = make(tiny_model, tmp_path, optimizers=(optimizer, None), processing_class=make_tokenizer())
    assert causes(trainer) == ["the head is not in the optimizer"]


def test_a_detached_body_is_named(model_path, tmp_path):
    trainer = make(model_path, tmp_path)
    trainer.model.score.register_forward_pre_hook(lambda _, inputs: (inputs[0].detach(),))
    assert causes(trainer) == ["no gradient goes through the head into the rest of the model"]


@pytest.mark.parametrize("count", [64, 300])
def test_labels_swapped_at_random_are_named_with_the_probe_and_its_interval(model_path, tmp_path, count):
    trainer = make(model_path, tmp_path, swapped(text_pairs(count)))
    (finding,) = trainer.diagnose().findings
    assert finding.cause == "the labels look as if chosen and rejected were swapped at random"
    assert "95 % interval" in finding.evidence
    assert f"of {count} pairs not seen before" in finding.evidence


def test_labels_that_follow_a_rule_are_not_called_random_after_some_were_swapped(model_path, tmp_path):
    rows = text_pairs(300)
    some = swapped(rows[:120]) + rows[120:]
    assert causes(make(model_path, tmp_path, some)) == []


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"lr_scheduler_type": "linear", "warmup_steps": 5000}, "warm-up lasts 5,000 steps"),
    ],
)
def test_a_learning_rate_that_changes_nothing_is_named(model_path, tmp_path, values, says):
    (finding,) = make(model_path, tmp_path, **values).diagnose().findings
    assert "the learning rate" in finding.cause
    assert says in finding.evidence


def test_a_learning_rate_that_the_log_shows_as_0_is_named(model_path, tmp_path):
    trainer = make(model_path, tmp_path)
    trainer.state.log_history = [{"loss": 0.69, "learning_rate": 0.0, "step": step} for step in (10, 20)]
    assert causes(trainer) == ["the learning rate is 0"]


@pytest.mark.parametrize("kind", ["collator cuts", "module reads"])
def test_a_read_out_inside_the_prompt_is_named(model_path, tmp_path, kind, tokenizer):
    if kind == "collator cuts":
        trainer = make(model_path, tmp_path, data_collator=lambda examples: padded(examples, shared))
        (finding,) = trainer.diagnose().findings
        assert finding.cause == "the read-out is inside the prompt"
        assert "read at token" in finding.evidence
        assert ">>>" in finding.evidence
        return

    class ReadsEarly(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.inner = model

        def forward(self, input_ids, attention_mask=None):
            return self.inner.score(self.inner.model(input_ids, attention_mask=attention_mask).last_hidden_state[:, 1])

    trainer = make(ReadsEarly(make_model(tokenizer)), tmp_path, processing_class=tokenizer)
    (cause,) = causes(trainer)
    assert "read-out is inside the prompt" in cause


def test_a_read_out_at_padding_is_named(model_path, tmp_path):
    # Padded to at least one token beyond the longer side, and the model takes another id for padding.
    trainer = make(model_path, tmp_path, packing="off", pad_to_multiple_of=64)
    trainer.model.config.pad_token_id = 3
    assert causes(trainer) == ["the read-out is at a padding token"]


def test_a_margin_that_is_not_finite_is_named_with_its_row_in_the_users_data(model_path, tmp_path):
    rows = [{**row, "margin": 0.5} for row in text_pairs(24)]
    # Two rows that are dropped move all that follow.
    rows[2]["rejected"] = rows[2]["chosen"]
    rows[5]["rejected"] = rows[5]["chosen"]
    trainer = make(model_path, tmp_path, rows)
    prepared = trainer.train_dataset
    broken = prepared.map(lambda row, i: {"margin": math.nan if i == 10 else row["margin"]}, with_indices=True)
    broken._plaudit_origins = prepared._plaudit_origins
    trainer.train_dataset = broken
    (finding,) = trainer.diagnose().findings
    assert finding.cause == "a margin is not a finite number"
    assert "1 of 22 margins, the first in row 12 (nan)" in finding.evidence


def test_a_margin_that_a_collator_breaks_is_named(model_path, tmp_path):
    def collate(examples):
        return {**padded(examples), "margin": torch.full((len(examples),), math.inf)}

    assert causes(make(model_path, tmp_path, data_collator=collate)) == ["a margin is not a finite number"]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (FOREIGN, "<|im_start|>, <|im_end|>"),
        ("{% for m in messages %}{{ m.content }}<|end|>{% endfor %}<|assistant|>", "opens another turn"),
        (
            "{% for m in messages %}{% if loop.last %}{{ m.content }}<|end|>{% endif %}{% endfor %}",
            "leaves the prompt out",
        ),
    ],
)
def test_a_wrong_chat_template_is_named(model_path, tmp_path, template, says):
    tokenizer = make_tokenizer(chat_template=template)
    (finding,) = make(model_path, tmp_path, conversations(48), processing_class=tokenizer).diagnose().findings
    assert finding.cause == "wrong chat template"
    assert says in finding.evidence
    assert "chat_template_path" in finding.cure


def test_texts_that_were_rendered_with_a_foreign_template_are_named(model_path, tmp_path):
    rows = [
        {"chosen": f"<|im_start|>user\n{row['prompt']}<|im_end|>\n{row['chosen']}<|im_end|>"}
        | {"rejected": f"<|im_start|>user\n{row['prompt']}<|im_end|>\n{row['rejected']}<|im_end|>"}
        for row in text_pairs(48)
    ]
    (finding,) = make(model_path, tmp_path, rows).diagnose().findings
    assert finding.cause == "wrong chat template"
    assert "the texts come with it" in finding.evidence


def test_a_collator_that_exchanges_the_sides_is_named(model_path, tmp_path):
    def collate(examples):
        exchanged = [{"chosen_ids": one["rejected_ids"], "rejected_ids": one["chosen_ids"]} for one in examples]
        return padded(exchanged)

    assert causes(make(model_path, tmp_path, data_collator=collate)) == ["the data collator exchanges the sides"]


def test_contradictory_labels_are_named(model_path, tmp_path):
    rows = text_pairs(20)
    both = rows + [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    assert causes(make(model_path, tmp_path, both))[0] == "labels that contradict each other"


def test_weights_that_are_not_finite_are_named(model_path, tmp_path):
    trainer = make(model_path, tmp_path)
    trainer.model.score.weight.data[0, 0] = math.nan
    (finding,) = trainer.diagnose().findings
    assert finding.cause == "weights that are not finite"
    assert "score.weight" in finding.evidence


def test_steps_that_half_precision_rounds_away_are_named(model_path, tmp_path):
    trainer = make(model_path, tmp_path, model_init_kwargs={"dtype": "bfloat16"}, learning_rate=1e-7)
    assert causes(trainer) == ["steps too small for the weights' precision"]
    assert causes(make(model_path, tmp_path, learning_rate=1e-7)) == []


def test_two_faults_are_both_named_the_cause_before_what_it_hides(model_path, tmp_path):
    trainer = make(model_path, tmp_path, swapped(text_pairs(300)), learning_rate=0.0)
    found = causes(trainer)
    assert found[0] == "the learning rate is 0"
    assert "swapped at random" in found[1]
    assert len(found) == 2


@pytest.mark.parametrize("kind", IN_TREE)
def test_a_healthy_run_of_each_family_has_no_finding(tmp_path, kind):
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, kind, **{**NEEDED.get(kind, {}), **IN_TREE[kind], "initializer_range": 0.02})
    trainer = make(model, tmp_path, text_pairs(40), processing_class=tokenizer)
    diagnosis = trainer.diagnose()
    assert diagnosis.healthy, str(diagnosis)
    assert any(line.startswith("overfit test") for line in diagnosis.evidence)
    assert sum("read at token" in line for line in diagnosis.evidence) == 6


@pytest.mark.parametrize(
    ("rows", "values"),
    [
        (conversations(48), {}),
        (text_pairs(48), {"peft_config": LoraConfig(r=4, target_modules="all-linear"), "learning_rate": 1e-6}),
        (text_pairs(48), {"packing": "off"}),
        (text_pairs(12), {}),
        (text_pairs(1), {}),
        ([{**row, "margin": i / 10} for i, row in enumerate(text_pairs(48))], {}),
        (text_pairs(48), {"learning_rate": 1e-6, "lr_scheduler_type": "linear", "warmup_steps": 50}),
        (text_pairs(48), {"center_rewards_coefficient": 0.01, "gradient_accumulation_steps": 2}),
    ],
)
def test_a_healthy_run_has_no_finding(model_path, tmp_path, rows, values):
    diagnosis = make(model_path, tmp_path, rows, **values).diagnose()
    assert diagnosis.healthy, str(diagnosis)


def test_a_trained_model_has_no_finding(model_path, tmp_path):
    trainer = make(model_path, tmp_path)
    trainer.train()
    diagnosis = trainer.diagnose()
    assert diagnosis.healthy, str(diagnosis)


def test_an_encoder_has_no_finding(tmp_path):
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, "bert", initializer_range=0.02)
    diagnosis = make(model, tmp_path, processing_class=tokenizer).diagnose()
    assert diagnosis.healthy, str(diagnosis)


def test_real_pairs_early_in_training_have_no_finding_and_swapped_ones_have(tmp_path):
    import gzip
    from pathlib import Path

    from plaudit.demo import train_tokenizer

    file = Path(__file__).parents[2] / "shared" / "data" / "hh_harmless_test.jsonl.gz"
    if not file.exists():
        pytest.skip("../shared/data/hh_harmless_test.jsonl.gz is not here")
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    rows = [row for row in rows if max(map(len, row.values())) < 700][:600]
    tokenizer = train_tokenizer([row["chosen"] for row in rows])
    for data, expected in ((rows, 0), (swapped(rows), 1)):
        model = make_model(tokenizer, initializer_range=0.02)
        trainer = make(model, tmp_path, data, processing_class=tokenizer, max_length=None)
        assert len(trainer.diagnose().findings) == expected


def test_it_takes_a_model_and_pairs_without_a_trainer(tiny_model, tokenizer):
    pairs = [{"chosen_ids": [5, 6, 7 + i], "rejected_ids": [5, 6, 30 + i]} for i in range(12)]
    assert diagnose(Case(tiny_model, pairs, tokenizer)).healthy
    tiny_model.score.weight.requires_grad_(False)
    assert [one.cause for one in diagnose(Case(tiny_model, pairs, None)).findings] == ["the head is frozen"]


def test_a_number_that_is_not_finite_in_the_log_is_a_finding_where_nothing_explains_it(tiny_model, tokenizer):
    pairs = [{"chosen_ids": [5, 6, 7 + i], "rejected_ids": [5, 6, 30 + i]} for i in range(12)]
    history = [{"loss": 0.5, "step": 10}, {"loss": math.nan, "step": 20}]
    (finding,) = diagnose(Case(tiny_model, pairs, tokenizer, log_history=history)).findings
    assert finding.evidence == "loss is nan at step 20 of the log"


def test_the_text_says_what_was_seen_and_how_many_findings_there_are(model_path, tmp_path):
    trainer = make(model_path, tmp_path)
    text = str(trainer.diagnose())
    assert text.endswith("healthy: no fault was found")
    for what in ("length alone", "gradient norm of the head", "read at token", "exchanged sides", "overfit test"):
        assert what in text
    trainer.model.score.weight.requires_grad_(False)
    text = str(trainer.diagnose())
    assert "finding 1 the head is frozen" in text
    assert text.endswith("1 finding")


def draws(examples):
    """A collator that draws random numbers, as one that shortens or masks texts at random does."""
    torch.rand(1)
    random.random()
    return padded(examples)


@pytest.mark.parametrize("values", [{"packing": "auto"}, {"packing": "off"}, {"data_collator": draws}])
def test_everything_is_left_as_it_was(model_path, tmp_path, values):
    trainer = make(model_path, tmp_path, **values)
    trainer.model.train()
    trainer.model.score.weight.grad = torch.ones_like(trainer.model.score.weight)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate()
    trainer.diagnose()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert all(module.training for module in trainer.model.modules())
    assert torch.equal(trainer.model.score.weight.grad, torch.ones_like(trainer.model.score.weight))
    assert all(each.grad is None for name, each in trainer.model.named_parameters() if name != "score.weight")
    assert all(each.requires_grad for each in trainer.model.parameters())

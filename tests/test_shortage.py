import pytest
import torch
from conftest import make_model, text_pairs
from datasets import Dataset
from peft import LoraConfig
from processes import config

from plaudit import RewardTrainer

LONG = {"prompt": "Tell me a story. " * 20, "chosen": " yes yes yes", "rejected": " no"}


def out_of_memory(model_path, folder, rows=None, peft_config=None, streamed=False, **values):
    """Return the text of the error of a training whose first step finds no memory."""
    rows = Dataset.from_list(rows or [*text_pairs(7), LONG])
    values = {"per_device_train_batch_size": 8, **values}
    trainer = RewardTrainer(
        model_path,
        config(folder, max_length=None, max_steps=1, **values),
        train_dataset=rows.to_iterable_dataset() if streamed else rows,
        peft_config=peft_config,
    )

    def look(module, args):
        if module.training:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    trainer.model.register_forward_pre_hook(look)
    with pytest.raises(torch.OutOfMemoryError) as error:
        trainer.train()
    return str(error.value), trainer


@pytest.mark.parametrize("packing", ["auto", "off"])
def test_the_message_names_the_batch_as_it_was(model_path, tmp_path, packing):
    text, trainer = out_of_memory(model_path, tmp_path, packing=packing)
    data = trainer.train_dataset
    lengths = [(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in data]
    batch = next(iter(trainer.get_train_dataloader()))
    layout, computed = {"auto": "as a tree", "off": "padded"}[packing], batch["input_ids"].numel()
    assert text.startswith(
        f"step 1 of training ran out of memory. The batch: 8 pairs (per_device_train_batch_size=8), {sum(map(sum, lengths)):,} "
        f"tokens, laid out {layout}, so that {computed:,} are computed; its longest pair is train row 7 (chosen "
        f"{lengths[7][0]:,} tokens, rejected {lengths[7][1]:,}). What helps, in this order: (1) per_device_train_batch_size=4, "
        "gradient_accumulation_steps=2 (the same steps); (2) activation_checkpointing=True"
    )
    assert ('packing="auto"' in text) == (packing == "off")


def test_the_longest_row_is_named_as_the_user_can_look_it_up(model_path, tmp_path):
    # Two pairs are dropped before it, which move it in the prepared data.
    same = {"prompt": "p", "chosen": " a", "rejected": " a"}
    text, _ = out_of_memory(model_path, tmp_path, [same, *text_pairs(3), same, LONG], per_device_train_batch_size=4)
    assert "its longest pair is train row 5 (" in text


def test_a_stream_names_the_pair_by_its_place(model_path, tmp_path):
    text, _ = out_of_memory(model_path, tmp_path, streamed=True)
    assert "its longest pair is train pair 7 of the stream (" in text
    assert "max_length below " in text


def test_what_is_used_already_is_not_proposed(model_path, tmp_path):
    text, _ = out_of_memory(
        model_path,
        tmp_path,
        peft_config=LoraConfig(task_type="SEQ_CLS"),
        gradient_checkpointing=True,
        per_device_train_batch_size=1,
    )
    for option in ("activation_checkpointing", "packing", "LoraConfig", "per_device_train_batch_size=0", "auto_find"):
        assert option not in text
    assert "FSDP2 or DeepSpeed (docs/scaling.md)" in text


def test_every_option_that_is_proposed_is_one(model_path, tmp_path):
    import re

    text, trainer = out_of_memory(model_path, tmp_path, packing="off")
    proposed = re.findall(r"(\w+)=", text.partition("What helps")[2])
    assert {"per_device_train_batch_size", "packing", "max_length", "auto_find_batch_size"} <= set(proposed)
    for name in proposed:
        assert hasattr(trainer.args, name) or name in ("peft_config", "task_type")


def test_an_evaluation_says_its_own_option(model_path, tmp_path):
    trainer = RewardTrainer(
        model_path,
        config(tmp_path, per_device_eval_batch_size=6, packing="off"),
        eval_dataset=Dataset.from_list([*text_pairs(5), LONG]),
    )
    forward = trainer.model.forward

    def look(*args, **kwargs):
        if kwargs["input_ids"].shape[0] > 6:
            raise MemoryError
        return forward(*args, **kwargs)

    trainer.model.forward = look
    with pytest.raises(torch.OutOfMemoryError) as error:
        trainer.evaluate()
    text = str(error.value)
    assert text.startswith(
        "the evaluation of 'eval' ran out of memory. The batch: 6 pairs (per_device_eval_batch_size=6), "
    )
    assert "its longest pair is eval row 5 (" in text
    assert '(1) per_device_eval_batch_size=3 (the same rewards); (2) packing="auto"' in text
    trainer.args.per_device_eval_batch_size = 3
    assert trainer.evaluate()["eval_loss"] > 0, "the cure cures"


def test_memory_that_ends_before_the_first_batch_is_told_without_one(model_path, tmp_path):
    trainer = RewardTrainer(model_path, config(tmp_path, max_steps=1), train_dataset=Dataset.from_list(text_pairs(4)))

    def prepare(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    trainer.create_optimizer = prepare
    with pytest.raises(
        torch.OutOfMemoryError, match="the start of training ran out of memory. What helps, in this order: "
    ):
        trainer.train()


def test_a_model_that_cannot_recompute_is_not_told_to(tokenizer, tmp_path):
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = make_model(tokenizer)

        def forward(self, input_ids, attention_mask):
            if self.training:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return self.inner(input_ids=input_ids, attention_mask=attention_mask).logits

    trainer = RewardTrainer(
        Plain(),
        config(tmp_path, max_steps=1),
        train_dataset=Dataset.from_list(text_pairs(4)),
        processing_class=tokenizer,
    )
    with pytest.raises(torch.OutOfMemoryError) as error:
        trainer.train()
    assert "activation_checkpointing" not in str(error.value)

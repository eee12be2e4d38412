"""Both layouts through the whole trainer: the tree gives the padded path's numbers, for fewer tokens, wherever it is used."""

import gc
import json
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import make_model, make_tokenizer, text_pairs
from datasets import Dataset
from peft import LoraConfig
from processes import config
from test_trainer import PlainModule, make, rewards_by_hand
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForSequenceClassification, TrainerCallback

from plaudit import DataCollatorForPreference, RewardTrainer
from plaudit.collate import Padded, TreeRow

LAYOUTS = {"auto": TreeRow, "off": Padded}
ROWS = text_pairs(24, seed=4)
EOS = "<|eos|>"


@pytest.fixture(scope="module", autouse=True)
def imported_modules_are_no_garbage():
    """Every run collects garbage; walking through all that torch and transformers have imported would be most of its time."""
    gc.freeze()
    yield
    gc.unfreeze()


class Run(NamedTuple):
    """What a training run left: the loss of each step, all weights, and the tokens that the model computed."""

    losses: list[float]
    weights: torch.Tensor
    tokens: int
    trainer: RewardTrainer


def watch(trainer):
    """The tokens of each batch that goes into the model, filled as it runs; each batch must have the chosen layout."""
    tokens, prepare = [], trainer._prepare_inputs

    def counted(inputs):
        assert ("tree" in inputs) == (trainer.args.packing == "auto")
        tokens.append(inputs["input_ids"].numel())
        return prepare(inputs)

    trainer._prepare_inputs = counted
    return tokens


def trained(model, folder, packing, rows=ROWS, resume=None, change=None, **kwargs):
    """A run of, unless kwargs say otherwise, 3 steps of 8 pairs. change: called with the trainer before it begins."""
    values = {"per_device_train_batch_size": 8, "max_steps": 3, **kwargs}
    trainer = make(model, folder, rows, packing=packing, **values)
    tokens = watch(trainer)
    if change is not None:
        change(trainer)
    trainer.train(resume)
    assert type(trainer._layout_of(trainer.train_dataset)) is LAYOUTS[packing]
    weights = torch.cat([value.detach().float().flatten() for value in trainer.model.parameters()])
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Run(losses, weights, sum(tokens), trainer)


def assert_equal(tree, padded, tolerance=1e-4):
    assert len(set(padded.losses)) == len(padded.losses) > 1, "the runs moved"
    assert tree.losses == pytest.approx(padded.losses, abs=tolerance)
    assert (tree.weights - padded.weights).abs().max() < tolerance
    assert tree.tokens < 0.8 * padded.tokens


@pytest.fixture(scope="module")
def plain(model_path, tmp_path_factory):
    """The padded run that every way to compute the same thing is held against."""
    return trained(model_path, tmp_path_factory.mktemp("plain"), "off")


def with_margins():
    return [{**row, "margin": 0.1 * i} for i, row in enumerate(ROWS)]


def with_padding_in_the_text():
    return [{**row, "prompt": f"{row['prompt']}{EOS} so", "chosen": f"{row['chosen']}{EOS}{EOS}"} for row in ROWS]


def test_fifty_steps_and_the_evaluations_between_them_are_the_padded_ones(model_path, tmp_path):
    values = {"max_steps": 50, "learning_rate": 1e-4, "eval_strategy": "steps", "eval_steps": 25}
    tree, padded = (trained(model_path, tmp_path, packing, eval_rows=text_pairs(9), **values) for packing in LAYOUTS)
    assert len(tree.losses) == 50
    assert_equal(tree, padded)
    for mine, other in zip(tree.trainer.state.log_history, padded.trainer.state.log_history, strict=True):
        same = {key: value for key, value in other.items() if not key.endswith(("runtime", "second", "total_flos"))}
        assert {key: mine[key] for key in same} == pytest.approx(same, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    "values",
    [
        {"gradient_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}},
        {"gradient_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
        {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2},
        {"dataloader_num_workers": 2},
        {"model_init_kwargs": {"attn_implementation": "eager"}},
        {"pad_to_multiple_of": 16},
    ],
    ids=lambda values: " ".join(f"{key}={value}" for key, value in values.items()),
)
def test_a_tree_run_computed_another_way_is_the_plain_padded_run(model_path, tmp_path, plain, values):
    assert_equal(trained(model_path, tmp_path, "auto", **values), plain)


def test_a_tree_run_with_model_init_is_the_plain_padded_run(model_path, tmp_path, plain):
    made = []

    def model_init():
        made.append(AutoModelForSequenceClassification.from_pretrained(model_path))
        return made[-1]

    tree = trained(None, tmp_path, "auto", model_init=model_init)
    assert_equal(tree, plain)
    # Every further run makes another model, whose attention has to take the tree too.
    tree.trainer.train()
    assert len(made) == 3
    again = torch.cat([value.detach().flatten() for value in made[-1].parameters()])
    assert torch.equal(again, tree.weights)


def test_a_tree_run_with_activations_offloaded_is_the_plain_padded_run(model_path, tmp_path, plain, monkeypatch):
    moved = []

    def offloaded(self):
        # On a CPU the trainer leaves activations where they are; a copy stands for the way to the host and back.
        return torch.autograd.graph.saved_tensors_hooks(lambda kept: moved.append(1) or kept.clone(), lambda kept: kept)

    monkeypatch.setattr(RewardTrainer, "_activations_offloaded", offloaded)
    assert_equal(trained(model_path, tmp_path, "auto", activation_offloading=True), plain)
    assert moved


@pytest.mark.parametrize(
    "values",
    [
        {"peft_config": LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", r=4)},
        {"rows": Dataset.from_list(ROWS).to_iterable_dataset()},
        {"rows": with_margins(), "center_rewards_coefficient": 0.1},
        {"train_sampling_strategy": "group_by_length"},
        {"max_length": 24},
        {"pad_token": EOS},
        {"pad_token": EOS, "rows": with_padding_in_the_text()},
        {"per_device_train_batch_size": 5, "max_steps": 6},
    ],
    ids="LoRA;streamed;margin and centering;by length;max_length;pad is eos;pad in the text;a short batch".split(";"),
)
@pytest.mark.filterwarnings("ignore:the padding token is the EOS token")
def test_a_tree_run_is_the_padded_run(model_path, tmp_path, values):
    assert_equal(*(trained(model_path, tmp_path, packing, **values) for packing in LAYOUTS))


def test_a_mixture_of_experts_has_the_padded_loss_and_balance(tmp_path):
    tokenizer = make_tokenizer()
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

    def run(packing, **values):
        model = make_model(tokenizer, "qwen3_moe", router_aux_loss_coef=0.5, **sizes, **values)
        return trained(model, tmp_path, packing, processing_class=tokenizer)

    tree = run("auto", output_router_logits=True)
    assert_equal(tree, run("off", output_router_logits=True))
    # With 4 experts of which 2 are taken, a perfectly balanced router has loss 2.
    assert tree.losses[0] - run("auto").losses[0] > 0.5 * 2 - 1e-3


def test_batches_made_smaller_for_memory_give_the_padded_run_of_that_size(model_path, tmp_path):
    def refuse_large(trainer):
        compute = trainer.compute_loss

        def limited(model, inputs, *args, **kwargs):
            if inputs["num_pairs"] > 7:
                raise RuntimeError("CUDA out of memory.")
            return compute(model, inputs, *args, **kwargs)

        trainer.compute_loss = limited

    tree = trained(model_path, tmp_path, "auto", max_steps=6, auto_find_batch_size=True, change=refuse_large)
    assert tree.trainer._train_batch_size == 7
    assert_equal(tree, trained(model_path, tmp_path, "off", max_steps=6, per_device_train_batch_size=7))


def test_a_resumed_tree_run_is_the_uninterrupted_one_and_the_padded_one(model_path, tmp_path, plain):
    class StopAtTwo(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2

    saving = {"save_strategy": "steps", "save_steps": 2}
    trained(model_path, tmp_path, "auto", callbacks=[StopAtTwo()], **saving)
    resumed = trained(model_path, tmp_path, "auto", resume=True, **saving)
    assert torch.equal(resumed.weights, trained(model_path, tmp_path, "auto").weights)
    assert resumed.losses == pytest.approx(plain.losses, abs=1e-4)
    assert (resumed.weights - plain.weights).abs().max() < 1e-4
    assert resumed.tokens < plain.tokens / 3, "only the last step was computed again"


def scored(model_path, folder, packing, **values):
    """The metrics and predictions of 9 pairs at 4 a batch, what compute_metrics was given, and the tokens computed."""
    seen = []

    def compute_metrics(prediction, compute_result=True):
        seen.append(prediction)
        return {"pairs": sum(len(each.predictions) for each in seen)}

    rows = Dataset.from_list([*with_margins()[:8], {**ROWS[0], "margin": 1.0}])
    trainer = make(
        model_path, folder, eval_rows=rows, packing=packing, compute_metrics=compute_metrics, max_length=40,
        include_for_metrics=["inputs", "loss"], **values,
    )  # fmt: skip
    tokens = watch(trainer)
    metrics = trainer.evaluate()
    figures = {key: value for key, value in metrics.items() if not key.endswith(("runtime", "second"))}
    predicted = trainer.predict(rows)
    streamed = trainer.predict(rows.to_iterable_dataset())
    return trainer, figures, [predicted.predictions, streamed.predictions], seen, sum(tokens)


@pytest.mark.parametrize("batched", [False, True])
def test_evaluation_and_prediction_are_the_padded_ones_in_the_order_of_the_data(model_path, tmp_path, batched):
    runs = [scored(model_path, tmp_path, packing, batch_eval_metrics=batched) for packing in LAYOUTS]
    (trainer, metrics, predictions, seen, tokens), (_, padded_metrics, _, padded_seen, padded_tokens) = runs
    assert metrics == pytest.approx(padded_metrics, abs=1e-5)
    assert metrics["eval_pairs"] == 9
    by_hand = rewards_by_hand(trainer, [*ROWS[:8], ROWS[0]])
    for each in (*predictions, *runs[1][2]):
        np.testing.assert_allclose(each, by_hand, atol=1e-5)
    assert len(seen) == len(padded_seen) == (9 if batched else 3)
    if not batched:
        np.testing.assert_allclose(seen[0].losses, padded_seen[0].losses, atol=1e-5)
        # Filled up with the padding id within a batch and with -100 beyond, as Trainer does.
        np.testing.assert_array_equal(*(np.maximum(each.inputs, 0) for each in (seen[0], padded_seen[0])))
        chosen = trainer.eval_dataset[8]["chosen_ids"]
        assert seen[0].inputs[8][0][: len(chosen)].tolist() == chosen
    assert tokens < 0.9 * padded_tokens


def test_in_bfloat16_the_tree_is_as_near_to_float32_as_padding_is(model_path, tmp_path):
    def rewards(packing, **values):
        trainer = make(model_path, tmp_path, packing=packing, **values)
        watch(trainer)
        return trainer.predict(Dataset.from_list(ROWS)).predictions

    rounded = AutoModelForSequenceClassification.from_pretrained(model_path, dtype=torch.bfloat16).float()
    rounded.save_pretrained(tmp_path / "rounded")
    rounded_weights = make(rounded, tmp_path, packing="off", processing_class=make_tokenizer())
    half = {"model_init_kwargs": {"dtype": "bfloat16"}}
    for exact, values in (
        (rewards("off"), {"bf16": True}),
        (rounded_weights.predict(Dataset.from_list(ROWS)).predictions, half),
    ):
        errors = [np.sqrt(np.square(rewards(packing, **values) - exact).mean()) for packing in LAYOUTS]
        assert 0 < errors[0] < 1.5 * errors[1] < 0.05 * exact.std()


@pytest.mark.parametrize("values", [{"bf16": True}, {"model_init_kwargs": {"dtype": "bfloat16"}}])
def test_a_tree_run_in_bfloat16_stays_near_the_float32_run(model_path, tmp_path, plain, values):
    tree, padded = (trained(model_path, tmp_path, packing, **values) for packing in LAYOUTS)
    errors = [np.abs(np.subtract(run.losses, plain.losses)).max() for run in (tree, padded)]
    assert 0 < errors[0] < 2 * errors[1] + 0.01 < 0.05


def test_a_compiled_tree_run_is_the_plain_padded_run_and_compiles_once_for_rows_of_many_lengths(tmp_path):
    from torch._dynamo.utils import counters

    tokenizer, lengths, graphs = make_tokenizer(), [], []

    class Graphs(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            graphs.append(counters["stats"]["unique_graphs"])

    def run(packing, **values):
        model = make_model(tokenizer, num_hidden_layers=1)
        values = {"per_device_train_batch_size": 4, "max_steps": 6, "processing_class": tokenizer, **values}
        return trained(model, tmp_path, packing, **values)

    def note_lengths(trainer):
        prepare = trainer._prepare_inputs
        trainer._prepare_inputs = lambda inputs: lengths.append(inputs["input_ids"].shape) or prepare(inputs)

    torch._dynamo.reset()
    counters.clear()
    try:
        compiled = {"torch_compile": True, "torch_compile_backend": "aot_eager", "callbacks": [Graphs()]}
        tree = run("auto", **compiled, change=note_lengths)
    finally:
        torch._dynamo.reset()
    padded = run("off")
    assert tree.losses == pytest.approx(padded.losses, abs=1e-4)
    assert (tree.weights - padded.weights).abs().max() < 1e-4
    assert lengths == [(1, 128)] * 6
    assert graphs == [graphs[0]] * 6
    assert graphs[0] > 0


def test_the_dropout_that_a_user_keeps_is_that_of_the_padded_path(tmp_path):
    tokenizer = make_tokenizer()

    def spread(packing, **values):
        model = make_model(tokenizer, attention_dropout=0.4)
        run = trained(model, tmp_path, packing, processing_class=tokenizer, max_steps=2, learning_rate=0.0, **values)
        batch = next(iter(run.trainer.get_train_dataloader()))
        call = lambda: run.trainer.compute_loss(run.trainer.model, batch, return_outputs=True)[1].logits  # noqa: E731
        with torch.no_grad():
            assert run.trainer.model.training
            draws = torch.cat([call() for _ in range(60)], dim=1).std(dim=1)
            run.trainer.model.eval()
            assert torch.equal(call(), call())
        return draws

    tree, padded = (spread(packing, disable_dropout=False) for packing in LAYOUTS)
    assert padded.min() > 0.1
    assert tree.mean().item() == pytest.approx(padded.mean().item(), rel=0.1)
    assert spread("auto").max() == 0


class AllReads(TorchDispatchMode):
    """Counts what would make the host wait for an accelerator, whoever does it, but for the collator on host memory."""

    WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "bincount")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            each is not None and each.dtype == torch.bool for each in args[1]
        )
        if name in self.WAITS or by_mask:
            frame, files = sys._getframe(1), []
            while frame is not None:
                files.append(frame.f_code.co_filename)
                frame = frame.f_back
            self.count += not any(file.endswith("plaudit/collate.py") for file in files)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["plain", "everything", "padded"])
def test_no_code_at_all_waits_for_the_device_within_a_tree_run(model_path, tmp_path, kind):
    everything = {
        "rows": with_margins(),
        "gradient_checkpointing": True,
        "bf16": True,
        "center_rewards_coefficient": 0.1,
        "peft_config": LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", r=4),
    }
    counts, reads = [], AllReads()

    class Count(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            counts.append(reads.count)

    values = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 100}
    values |= everything if kind == "everything" else {}
    with reads:
        trained(model_path, tmp_path, "off" if kind == "padded" else "auto", callbacks=[Count()], **values)
    assert len(counts) == 3
    if kind == "padded":
        assert counts[0] < counts[1] < counts[2], "transformers looks into a padded batch's mask"
    else:
        assert counts == [counts[0]] * 3
    # The losses and metrics are read once at the end, which shows that reads are seen.
    assert reads.count > counts[-1]


def test_input_tokens_seen_are_those_computed_or_those_of_the_sequences(model_path, tmp_path):
    def seen(packing="auto", **values):
        run = trained(model_path, tmp_path, packing, **values)
        logged = [entry["num_tokens"] for entry in run.trainer.state.log_history if "num_tokens" in entry]
        return run.trainer.state.num_input_tokens_seen, run.tokens, logged[-1]

    plain, plain_computed, _ = seen(include_num_input_tokens_seen="all")
    assert plain == plain_computed
    filled, computed, _ = seen(include_num_input_tokens_seen="all", pad_to_multiple_of=64)
    assert filled == computed > plain
    for packing in ("auto", "off"):
        counted, computed, of_sequences = seen(packing, include_num_input_tokens_seen="non_padding")
        assert counted == of_sequences
        assert (computed < counted) == (packing == "auto")


RELOAD = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    print(json.dumps([model(input_ids=torch.tensor([ids])).logits.item() for ids in json.loads(sys.argv[2])]))
assert "plaudit" not in sys.modules
"""


def test_a_model_trained_on_trees_rewards_the_same_wherever_it_is_called(model_path, tmp_path):
    trainer = trained(model_path, tmp_path, "auto").trainer
    rows = trainer.train_dataset[:5]
    sequences = [*rows["chosen_ids"], *rows["rejected_ids"]]
    expected = trainer.predict(Dataset.from_list(ROWS[:5])).predictions.T.reshape(-1)
    model, longest = trainer.model.eval(), max(map(len, sequences))
    pad = trainer.processing_class.pad_token_id
    left = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in sequences])
    with torch.no_grad():
        called = model(input_ids=left, attention_mask=(left != pad).long()).logits.squeeze(1)
    assert called.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    trainer.save_model(tmp_path / "saved")
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, str(tmp_path / "saved"), json.dumps(sequences)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == pytest.approx(expected.tolist(), abs=1e-5)


def lines_about_layouts(caplog):
    return [record.message for record in caplog.records if "padded" in record.message or "packing" in record.message]


def use_throughout(trainer):
    """Train, evaluate and predict, all on padded batches, and return the number of batches."""
    sizes, prepare = [], trainer._prepare_inputs

    def counted(inputs):
        assert "tree" not in inputs
        sizes.append(inputs["attention_mask"].shape)
        return prepare(inputs)

    trainer._prepare_inputs = counted
    trainer.train()
    trainer.evaluate()
    trainer.predict(Dataset.from_list(ROWS[:4]))
    return len(sizes)


@pytest.mark.parametrize(
    ("make_one", "reason"),
    [
        (lambda tokens: make_model(tokens, "bert"), "BertForSequenceClassification is not a decoder that reads its"),
        (lambda tokens: make_model(tokens, "bloom"), "BloomForSequenceClassification does not let its attention be"),
        (lambda tokens: PlainModule(len(tokens)), "PlainModule is not a decoder that reads its reward at the last"),
    ],
    ids=["encoder", "bloom", "plain module"],
)
def test_a_model_that_cannot_take_trees_trains_padded_with_one_line(tmp_path, caplog, make_one, reason):
    tokenizer = make_tokenizer()
    values = {"processing_class": tokenizer, "eval_rows": ROWS[:4], "max_steps": 2}
    trainer = make(make_one(tokenizer), tmp_path, ROWS, **values)
    assert use_throughout(trainer) == 4
    [line] = lines_about_layouts(caplog)
    assert line.startswith(f"packing: the batches are padded, because {reason}")


class OwnLoss(RewardTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        assert inputs["input_ids"].shape == inputs["attention_mask"].shape
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class OwnCollator(DataCollatorForPreference):
    pass


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("subclass", "packing: the batches are padded, because OwnLoss replaces compute_loss, which may read them"),
        ("collator", "the data collator OwnCollator is used as it is, on the padded path"),
        ("neftune", "neftune_noise_alpha takes the padded path, where its noise is scaled by each sequence's length"),
        ("off", None),
    ],
)
def test_what_must_be_padded_is_padded_with_at_most_one_line(model_path, tmp_path, caplog, kind, said):
    values = {"neftune": {"neftune_noise_alpha": 5.0}, "off": {"packing": "off"}}.get(kind, {})
    trainer = (OwnLoss if kind == "subclass" else RewardTrainer)(
        model_path,
        config(tmp_path, max_steps=2, **values),
        train_dataset=Dataset.from_list(ROWS),
        eval_dataset=Dataset.from_list(ROWS[:4]),
        data_collator=OwnCollator(pad_token_id=0) if kind == "collator" else None,
    )
    assert use_throughout(trainer) == 4
    assert lines_about_layouts(caplog) == ([said] if said else [])


def test_a_tree_run_says_nothing_about_its_layout(model_path, tmp_path, caplog):
    trained(model_path, tmp_path, "auto")
    assert lines_about_layouts(caplog) == []

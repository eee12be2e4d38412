"""Token pairs to the exact tensors that the collators promise, and any collator's batch to one form."""

import random

import pytest
import torch
from conftest import make_tokenizer

from plaudit import compat
from plaudit.collate import (
    COUNTS,
    INDEX,
    TOTAL,
    WEIGHT,
    DataCollatorForPreference,
    Padded,
    PairCollator,
    RewardDataCollatorWithPadding,
    TreeRow,
    merge_halves,
)

PAIRS = [([1, 2, 3], [4, 5]), ([6, 7], [8])]
IDS = [[1, 2, 3], [6, 7, 0], [4, 5, 0], [8, 0, 0]]
MASK = [[1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 0, 0]]
MARGINS = [0.5, 0.0]


def examples_of(names=compat.TOKEN_COLUMNS[0], margins=None):
    examples = [{names["chosen_ids"]: chosen, names["rejected_ids"]: rejected} for chosen, rejected in PAIRS]
    return [example | {"margin": margins[i]} if margins else example for i, example in enumerate(examples)]


@pytest.mark.parametrize("names", compat.TOKEN_COLUMNS, ids=lambda names: names["chosen_ids"])
def test_the_batch_is_that_of_the_documents_example_for_every_generation_of_names(names):
    batch = DataCollatorForPreference(pad_token_id=0)(examples_of(names))
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"].tolist() == IDS
    assert batch["attention_mask"].tolist() == MASK
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_margins_come_as_floats():
    batch = DataCollatorForPreference(pad_token_id=0)(examples_of(margins=MARGINS))
    assert batch["input_ids"].tolist() == IDS
    assert batch["margin"].tolist() == MARGINS
    assert batch["margin"].dtype == torch.float32
    whole = DataCollatorForPreference(pad_token_id=0)(examples_of(margins=[1, 2]))
    assert whole["margin"].dtype == torch.float32


def test_padding_uses_the_given_id_up_to_the_given_multiple():
    batch = DataCollatorForPreference(9, pad_to_multiple_of=4)(examples_of())
    assert batch["input_ids"].tolist() == [[9 if not kept else i for i, kept in zip(ids, mask, strict=True)] + [9]
                                           for ids, mask in zip(IDS, MASK, strict=True)]  # fmt: skip
    assert batch["attention_mask"].tolist() == [[*mask, 0] for mask in MASK]
    exact = DataCollatorForPreference(9, pad_to_multiple_of=3)(examples_of())
    assert exact["input_ids"].shape == (4, 3)


def test_a_pad_id_inside_a_sequence_is_attended():
    batch = DataCollatorForPreference(pad_token_id=2)(examples_of())
    assert batch["attention_mask"].tolist() == MASK


def test_masked_tokens_are_left_out():
    example = {"input_ids_chosen": [0, 1, 2], "attention_mask_chosen": [0, 1, 1]}
    example |= {"input_ids_rejected": [3, 0], "attention_mask_rejected": [1, 0]}
    assert DataCollatorForPreference(pad_token_id=0)([example])["input_ids"].tolist() == [[1, 2], [3, 0]]


@pytest.mark.parametrize("make", [DataCollatorForPreference, RewardDataCollatorWithPadding])
def test_other_tensors_than_torchs_are_an_error(make):
    with pytest.raises(ValueError, match="return_tensors: 'np' is not supported; only 'pt' is"):
        make(0, return_tensors="np")


def test_examples_without_pairs_are_an_error_that_lists_their_columns():
    with pytest.raises(ValueError, match=r"the columns \['a', 'chosen_ids'\], but a collator of pairs needs"):
        DataCollatorForPreference(0)([{"chosen_ids": [1], "a": 1}])


def test_the_oldest_collator_gives_its_four_entries_each_side_as_wide_as_it_needs():
    tokenizer = make_tokenizer()
    batch = RewardDataCollatorWithPadding(tokenizer)(examples_of(compat.TOKEN_COLUMNS[2], MARGINS))
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids_chosen": [[1, 2, 3], [6, 7, tokenizer.pad_token_id]],
        "attention_mask_chosen": [[1, 1, 1], [1, 1, 0]],
        "input_ids_rejected": [[4, 5], [8, tokenizer.pad_token_id]],
        "attention_mask_rejected": [[1, 1], [1, 0]],
        "margin": MARGINS,
    }
    assert "margin" not in RewardDataCollatorWithPadding(tokenizer)(examples_of())


def test_the_oldest_collator_pads_as_its_arguments_say():
    batch = RewardDataCollatorWithPadding(make_tokenizer(), padding="max_length", max_length=6)(examples_of())
    assert batch["input_ids_chosen"].shape == batch["attention_mask_rejected"].shape == (2, 6)
    batch = RewardDataCollatorWithPadding(make_tokenizer(), pad_to_multiple_of=4)(examples_of())
    assert batch["input_ids_chosen"].shape == batch["input_ids_rejected"].shape == (2, 4)


# What the trainer puts round any of them


def features(weights=(1.0, 1.0), **more):
    return [
        example | {INDEX: 10 + i if weight else -1, WEIGHT: weight, TOTAL: 7} | more
        for i, (example, weight) in enumerate(zip(examples_of(margins=MARGINS), weights, strict=True))
    ]


def plain(batch):
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


COLLATED = {
    "input_ids": IDS,
    "attention_mask": MASK,
    "token_weight": MASK,
    "margin": MARGINS,
    "pair_index": [10, 11],
    "pair_weight": [1.0, 1.0],
    "num_pairs": 7,
    "num_tokens": 8,
}


def test_the_batch_says_which_rows_it_holds_and_how_many_tokens():
    batch = PairCollator(DataCollatorForPreference(0), 0)(features())
    assert plain(batch) == COLLATED
    assert (batch["pair_index"].dtype, batch["pair_weight"].dtype) == (torch.int64, torch.float32)


def test_tokens_are_the_attended_ones_of_both_sides_of_real_pairs_only():
    batch = PairCollator(DataCollatorForPreference(0, pad_to_multiple_of=8), 0)(features((1.0, 0.0)))
    assert batch["num_tokens"] == 3 + 2
    assert (batch["pair_index"].tolist(), batch["pair_weight"].tolist()) == ([10, -1], [1.0, 0.0])


def test_the_counts_of_a_stream_are_handed_on():
    batch = PairCollator(DataCollatorForPreference(0), 0)(features(**{COUNTS: {"rows": 3}}))
    assert batch["counts"] == {"rows": 3}


def test_the_collator_inside_sees_no_bookkeeping():
    seen = []

    def collator(examples):
        seen.extend(examples)
        return DataCollatorForPreference(0)(examples)

    PairCollator(collator, 0)(features(**{COUNTS: {"rows": 3}}))
    assert seen == examples_of(margins=MARGINS)


def test_a_collator_that_returns_four_entries_gives_the_same_batch():
    tokenizer = make_tokenizer()
    assert tokenizer.pad_token_id == 0
    assert plain(PairCollator(RewardDataCollatorWithPadding(tokenizer), 0)(features())) == COLLATED


def test_halves_of_different_width_are_padded_with_the_pad_id_and_unattended():
    batch = {"input_ids_chosen": torch.tensor([[1]]), "input_ids_rejected": torch.tensor([[2, 3]])}
    merged = merge_halves(batch | {"other": 1}, pad_token_id=9)
    assert plain(merged) == {"input_ids": [[1, 9], [2, 3]], "attention_mask": [[1, 0], [1, 1]], "other": 1}


def test_without_a_mask_every_token_is_attended():
    merged = merge_halves({"input_ids": torch.tensor([[1, 2], [3, 0]])}, pad_token_id=0)
    assert merged["attention_mask"].tolist() == [[1, 1], [1, 1]]


def test_a_collator_that_returns_neither_form_is_an_error_that_says_what_it_returned():
    with pytest.raises(
        ValueError, match=r"returned \['labels'\]; it must return input_ids and attention_mask with the"
    ):
        PairCollator(lambda examples: {"labels": 1}, 0)(features())


@pytest.mark.parametrize("num_rows", [2, 3, 8])
def test_a_collator_that_returns_another_number_of_rows_is_an_error(num_rows):
    def collator(examples):
        return {"input_ids": torch.ones(num_rows, 2, dtype=torch.int64)}

    with pytest.raises(ValueError, match=f"made {num_rows} sequences of 2 pairs; it must give every pair's chosen"):
        PairCollator(collator, 0)(features())


@pytest.mark.parametrize("names", compat.TOKEN_COLUMNS, ids=lambda names: names["chosen_ids"])
def test_a_users_collator_gets_the_columns_under_the_users_own_names(names):
    seen = []

    def collator(examples):
        seen.extend(examples)
        return DataCollatorForPreference(0)(examples)

    columns = {name: column for name, column in names.items() if column}
    batch = PairCollator(collator, 0, columns)(features())
    masks = {names["chosen_mask"]: [1, 1, 1], names["rejected_mask"]: [1, 1]} if names["chosen_mask"] else {}
    assert seen[0] == {names["chosen_ids"]: [1, 2, 3], names["rejected_ids"]: [4, 5], "margin": 0.5} | masks
    assert plain(batch) == COLLATED


# The two layouts

SEQUENCES = [[1, 2, 3, 4, 5], [7], [1, 2, 3, 4, 6, 6]]
WEIGHTS = [1.0, 0.5, 0.25]


def test_a_padded_batch_weighs_each_token_as_its_sequence():
    batch = Padded(9)(SEQUENCES, WEIGHTS)
    assert plain(batch) == {
        "input_ids": [[1, 2, 3, 4, 5, 9], [7, 9, 9, 9, 9, 9], [1, 2, 3, 4, 6, 6]],
        "attention_mask": [[1, 1, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]],
        "token_weight": [[1, 1, 1, 1, 1, 0], [0.5, 0, 0, 0, 0, 0], [0.25] * 6],
    }
    assert batch["token_weight"].dtype == torch.float32


def test_a_tree_holds_each_shared_token_once_and_weighs_it_as_all_its_sequences():
    batch = TreeRow(9)(SEQUENCES, WEIGHTS)
    plan = batch.pop("tree")
    assert plain(batch) == {
        "input_ids": [[1, 2, 3, 4, 5, 6, 6, 7]],
        "position_ids": [[0, 1, 2, 3, 4, 4, 5, 0]],
        "token_weight": [[1.25, 1.25, 1.25, 1.25, 1, 0.25, 0.25, 0.5]],
        "read_out": [4, 7, 6],
    }
    assert plan.subtree_end.tolist() == [7, 7, 7, 7, 5, 7, 7, 8]
    assert plan.positions.tolist() == batch["position_ids"][0].tolist()
    assert {name: value.dtype for name, value in batch.items()} == {
        "input_ids": torch.int64,
        "position_ids": torch.int64,
        "token_weight": torch.float32,
        "read_out": torch.int64,
    }


def test_each_layout_counts_sequences_for_one_where_no_weights_are_given():
    assert plain(Padded(9)(SEQUENCES))["token_weight"] == plain(Padded(9)(SEQUENCES, [1.0] * 3))["token_weight"]
    assert TreeRow(9)(SEQUENCES)["token_weight"].tolist() == [[2, 2, 2, 2, 1, 1, 1, 1]]


def test_a_trees_reward_is_read_before_trailing_pad_ids():
    sequences = [[1, 2, 9, 3, 9, 9], [9, 9], [1, 2, 9], [1, 2, 9, 3]]
    batch = TreeRow(9)(sequences)
    assert batch["position_ids"][0, batch["read_out"]].tolist() == [3, 0, 1, 3]
    batch = TreeRow(None)(sequences)
    assert batch["position_ids"][0, batch["read_out"]].tolist() == [5, 1, 2, 3]


@pytest.mark.parametrize(("pad", "filler"), [(9, 9), (None, 0)])
def test_a_trees_row_is_filled_up_to_a_multiple_with_tokens_of_no_weight(pad, filler):
    batch = TreeRow(pad, 12)(SEQUENCES, WEIGHTS)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 6, 7, *[filler] * 4]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 4, 5, 0, 0, 1, 2, 3]]
    assert batch["token_weight"][0, 8:].tolist() == [0] * 4
    assert batch["read_out"].tolist() == [4, 7, 6]
    assert batch["tree"].subtree_end.tolist() == [7, 7, 7, 7, 5, 7, 7, 8, 12, 12, 12, 12]


@pytest.mark.parametrize("multiple", [None, 16])
def test_token_weights_sum_to_the_same_in_both_layouts(multiple):
    generator = random.Random(0)
    for _ in range(200):
        stem = generator.choices(range(3), k=8)
        sequences = [
            stem[: generator.randint(0, 8)] + generator.choices(range(3), k=generator.randint(1, 6)) for _ in range(6)
        ]
        weights = [generator.randrange(4) / 4 for _ in sequences]
        padded, tree = (layout(0, multiple)(sequences, weights) for layout in (Padded, TreeRow))
        expected = sum(len(ids) * weight for ids, weight in zip(sequences, weights, strict=True))
        assert padded["token_weight"].sum() == tree["token_weight"].sum() == expected
        assert tree["input_ids"].shape == tree["token_weight"].shape == tree["position_ids"].shape
        for token in range(3):
            # The same token by token, wherever a layout puts them.
            assert padded["token_weight"][padded["input_ids"] == token].sum() == (
                tree["token_weight"][tree["input_ids"] == token].sum()
            )


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0)])
def test_everything_but_the_models_inputs_is_the_same_in_both_layouts(weights):
    padded, tree = (
        PairCollator(layout, 0, keep_sequences=True)(features(weights, **{COUNTS: {"rows": 3}}))
        for layout in (Padded(0), TreeRow(0, 16))
    )
    inputs = {"input_ids", "attention_mask", "position_ids", "read_out", "tree", "token_weight"}
    rest = {name: value for name, value in plain(padded).items() if name not in inputs}
    assert rest == {name: value for name, value in plain(tree).items() if name not in inputs}
    assert sorted(rest) == ["counts", "margin", "num_pairs", "num_tokens", "pair_index", "pair_weight", "sequences"]
    assert rest["num_tokens"] == 3 + 2 + (3 if weights[1] else 0)
    assert tree["read_out"].shape == (4,)


def test_a_trees_sequences_are_every_chosen_one_and_then_every_rejected_one():
    batch = PairCollator(TreeRow(0), 0)(features())
    assert batch["input_ids"][0, batch["read_out"]].tolist() == [3, 7, 5, 8]

"""Shapes of models: the published ones' counts, and shapes given in numbers."""

import pytest

from plaudit import shapes

# Parameters of the published checkpoints, as language models, and of the head of its own where the embedding is not used twice.
PUBLISHED = {
    "qwen3-0.6b": (596_049_920, None),
    "qwen3-4b": (4_022_468_096, None),
    "qwen3-8b": (8_190_735_360, 151_936 * 4096),
    "qwen3-14b": (14_768_307_200, 151_936 * 5120),
    "qwen3-32b": (32_762_123_264, 151_936 * 5120),
    "qwen2.5-0.5b": (494_032_768, None),
    "qwen2.5-1.5b": (1_543_714_304, None),
    "qwen2.5-7b": (7_615_616_512, 152_064 * 3584),
    "qwen2.5-72b": (72_706_203_648, 152_064 * 8192),
    "llama-3.2-1b": (1_235_814_400, None),
    "llama-3.2-3b": (3_212_749_824, None),
    "llama-3.1-8b": (8_030_261_248, 128_256 * 4096),
    "llama-3.1-70b": (70_553_706_496, 128_256 * 8192),
    "llama-3.1-405b": (405_853_388_800, 128_256 * 16_384),
    "llama-2-7b": (6_738_415_616, 32_000 * 4096),
    "llama-2-13b": (13_015_864_320, 32_000 * 5120),
    "mistral-7b": (7_241_732_096, 32_000 * 4096),
    "gemma-2-2b": (2_614_341_888, None),
    "gemma-2-9b": (9_241_705_984, None),
    "gemma-2-27b": (27_227_128_320, None),
    "gemma-3-1b": (999_885_952, None),
}
SMALL = "layers=2,hidden=64,heads=4,kv_heads=2,intermediate=128,vocab=100"


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_shape_has_the_published_parameters_with_one_output_for_the_head(name):
    shape = shapes.named(name)
    total, head = PUBLISHED[name]
    assert shape.parameters == total - (head or 0) + shape.hidden


def test_a_name_is_known_in_any_case_and_under_its_other_names():
    assert shapes.named("Llama-3.1-8B") is not None
    assert shapes.config_values("llama-3.3-70b") == shapes.CONFIGS["llama-3.1-70b"]
    assert shapes.named("llama-3.1-9b") is None


def test_a_shape_in_numbers_is_a_llamas():
    shape = shapes.named(SMALL)
    attention, mlp = 64 * 64 * 2 + 64 * 32 * 2, 3 * 64 * 128
    assert shape.matrices == attention + mlp
    assert shape.parameters == 2 * (attention + mlp + 2 * 64) + 100 * 64 + 64 + 64
    assert (shape.queries, shape.keys) == (64, 32)


def test_heads_share_no_keys_and_divide_the_width_unless_told():
    without = shapes.named("layers=1,hidden=64,heads=4,intermediate=128,vocab=100")
    assert (without.kv_heads, without.head_dim) == (4, 16)
    assert shapes.named(f"{SMALL},head_dim=32").queries == 128


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layers=2,hidden=64", r"lacks heads, intermediate, vocab; give them"),
        (f"{SMALL},depth=3", r"'depth=3' is not understood; write name=number, with the names layers, hidden"),
        (f"{SMALL},vocab=7", r"vocab is given twice, as 100 and 7; leave one out"),
        (SMALL.replace("hidden=64", "hidden=wide"), r"hidden is 'wide', but must be a number"),
        (SMALL.replace("hidden=64", "hidden=-64"), r"hidden is -64, but must be above 0"),
        (SMALL.replace("hidden=64", "hidden=64.5"), r"hidden is 64.5, but must be a whole number"),
        (SMALL.replace("kv_heads=2", "kv_heads=3"), r"heads is 4, which kv_heads 3 does not divide"),
        (SMALL.replace("hidden=64", "hidden=66"), r"hidden is 66, which heads 4 does not divide; give head_dim"),
        (SMALL.replace("layers=2", "layers=nan"), r"layers is nan, but must be above 0"),
        (SMALL.replace("layers", "layer"), r"'layer=2' is not understood; did you mean 'layers'\?"),
    ],
)
def test_numbers_that_make_no_model_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        shapes.named(text)


def test_an_adapters_parameters_are_its_two_matrices_and_the_head():
    shape = shapes.named(SMALL)
    q_and_v = 8 * (64 + 64) + 8 * (64 + 32)
    assert shape.lora_parameters(8, ("q_proj", "v_proj")) == 2 * q_and_v + 64
    every = sum(8 * (one.inputs + one.outputs) for one in shape.linears)
    assert shape.lora_parameters(8, ("all-linear",)) == 2 * every + 64


def test_an_adapter_on_a_matrix_that_is_not_there_names_the_nearest():
    with pytest.raises(ValueError, match=r"no matrix 'q_prj'; did you mean 'q_proj'\?; its layers have q_proj, k_proj"):
        shapes.named(SMALL).lora_targets(("q_prj",))

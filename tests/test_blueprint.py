"""A model's shape from its config alone."""

from dataclasses import replace

import pytest
from transformers import AutoConfig, AutoModelForSequenceClassification

from plaudit import blueprint, shapes

TINY = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}


def saved(folder, family, **sizes):
    AutoConfig.for_model(family, **sizes).save_pretrained(folder)
    assert [file.name for file in folder.iterdir()] == ["config.json"], "there are no weights"
    return str(folder)


@pytest.mark.parametrize("name", ["qwen3-8b", "qwen2.5-7b", "llama-3.1-70b", "mistral-7b", "gemma-2-9b", "gemma-3-1b"])
def test_a_published_config_has_the_shape_that_is_known_by_name(tmp_path, name):
    values = dict(shapes.CONFIGS[name])
    found = blueprint.read(saved(tmp_path, values.pop("model_type"), **values))
    assert replace(found.shape, name=name) == shapes.named(name)
    assert found.targets == ("q_proj", "v_proj")
    assert found.padded_because is None


@pytest.mark.parametrize("family", ["gpt2", "phi3", "mixtral", "qwen3_moe", "olmo2", "opt"])
def test_other_families_have_their_own_number_of_parameters(tmp_path, family):
    sizes = {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 50} if family == "gpt2" else dict(TINY)
    if family == "opt":
        sizes |= {"ffn_dim": 64, "word_embed_proj_dim": 32}
    found = blueprint.read(saved(tmp_path, family, **sizes, pad_token_id=0))
    model = AutoModelForSequenceClassification.from_config(found.config)
    assert found.shape.parameters == model.num_parameters()
    assert (found.shape.layers, found.shape.hidden, found.shape.heads) == (2, 32, 4)
    layer = 32 * 32 * 4 if family in ("gpt2", "opt", "olmo2") else 32 * 32 * 2
    assert found.shape.matrices > layer


def test_a_token_meets_its_experts_and_no_others(tmp_path):
    sizes = {**TINY, "num_local_experts": 8, "num_experts_per_tok": 2, "num_key_value_heads": 4}
    shape = blueprint.read(saved(tmp_path, "mixtral", **sizes)).shape
    assert shape.experts == 8 * 3 * 32 * 64
    assert shape.matrices == 4 * 32 * 32 + 8 * 32 + 2 * 3 * 32 * 64
    assert shape.intermediate == 2 * 64


def test_an_encoder_is_padded_and_why_is_said(tmp_path):
    found = blueprint.read(saved(tmp_path, "bert", **TINY))
    assert "BertForSequenceClassification is not a decoder" in found.padded_because


def test_a_directory_without_a_config_says_what_can_be_given(tmp_path):
    with pytest.raises(ValueError, match=r"its config cannot be read as a classifier's .*give layers=\.\.,hidden=\.\."):
        blueprint.read(str(tmp_path))


@pytest.mark.parametrize(
    ("family", "sizes", "reason"),
    [
        (
            "t5",
            {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2},
            "it has an encoder and a decoder",
        ),
        (
            "fnet",
            {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 50},
            "its layers have no heads",
        ),
        ("squeezebert", {**TINY, "embedding_size": 32}, "its layers are not alike"),
        ("albert", TINY, "it has no list of layers"),
    ],
)
def test_a_model_whose_layers_one_layer_does_not_show_is_refused(tmp_path, family, sizes, reason):
    with pytest.raises(ValueError, match=rf"cannot be planned, because {reason}.*; give the sizes of a model like it"):
        blueprint.read(saved(tmp_path, family, **sizes))


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", r"adapter_config\.json of '.*' cannot be read"), ('{"peft_type": "LORA"}', "does not say which base it belongs to"),
     ('{"peft_type": "LORA", "base_model_name_or_path": "./none"}', r"the directory './none' does not exist")],
)  # fmt: skip
def test_an_adapter_without_its_base_is_refused(tmp_path, content, message):
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        blueprint.read(str(tmp_path))


def test_a_config_of_too_many_levels_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="its config cannot be read"):
        blueprint.read(str(tmp_path))


def test_code_of_the_model_is_not_run_unless_asked_for(tmp_path):
    """The code would leave a file behind."""
    left = tmp_path / "left"
    (tmp_path / "own.py").write_text(f"open({str(left)!r}, 'w').close()\nclass Config: pass\n")
    (tmp_path / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}')
    with pytest.raises(ValueError, match="trust_remote_code"):
        blueprint.read(str(tmp_path))
    assert not left.exists()


def test_an_adapters_shape_is_its_bases(tmp_path):
    base = saved(tmp_path, "llama", **TINY)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(f'{{"peft_type": "LORA", "base_model_name_or_path": "{base}"}}')
    assert blueprint.read(str(adapter)).shape.parameters == blueprint.read(base).shape.parameters

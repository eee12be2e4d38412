"""Plans: from names and figures to a setting, what it costs, and a command that can be run."""

import json
import shlex
import subprocess
import sys

import pytest
from transformers import AutoConfig

from plaudit import cli, workload
from plaudit.options import parse_train
from plaudit.plan import Plan, plan

FIGURES = "pairs=100000,prompt=300,answer=100"
SMALL = "layers=2,hidden=64,heads=4,kv_heads=2,intermediate=128,vocab=500"


def run(capsys, *arguments):
    """Return the exit code, and what was printed to stdout and stderr."""
    code = cli.main(["plan", *map(str, arguments)])
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def of_8b():
    return plan("llama-3.1-8b", FIGURES, "h100", gpus=8)


def test_figures_and_a_known_shape_need_neither_torch_nor_transformers():
    code = (
        "import sys; from plaudit.plan import run; "
        f"print(run(model='llama-3.1-8b', data='{FIGURES}', gpu='h100', gpus=8)); "
        "print(*sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("llama-3.1-8b (7.5 billion parameters), ")
    assert done.stdout.splitlines()[-1] == ""


def test_the_advised_setting_fits_and_no_other_that_fits_is_much_faster(of_8b):
    best = of_8b["advised"]
    assert best["fits"]
    assert best["memory"]["total"] <= 0.92 * 80e9
    fitting = [one["step_seconds"]["total"] for one in of_8b["engines"].values() if one["fits"]]
    assert best["step_seconds"]["total"] <= min(fitting) / 0.9
    assert best["micro_batch"] * best["accumulation"] * 8 == 64


def test_the_tree_computes_fewer_tokens_in_less_time_and_room(of_8b):
    padded, in_tree = of_8b["layouts"]["padded"], of_8b["layouts"]["tree"]
    for figure in ("tokens_a_step", "hours", "gpu_hours"):
        assert in_tree[figure] < 0.8 * padded[figure]
    assert in_tree["memory"]["activations"] < padded["memory"]["activations"]
    assert of_8b["advised"]["layout"] == "tree"


def test_the_tokens_are_those_of_the_batches_that_are_drawn(of_8b):
    best = of_8b["advised"]
    loads = workload.read(FIGURES, 1024).loads(best["micro_batch"])["tree"]
    assert best["micro_batch_tokens"] == pytest.approx(workload.mean(loads).tokens)
    assert best["tokens_a_step"] == pytest.approx(workload.mean(loads).tokens * best["accumulation"] * 8)
    assert best["largest_micro_batch_tokens"] >= workload.largest(loads).tokens


def test_a_longer_run_meets_a_larger_micro_batch():
    short, long = (workload.read(FIGURES, 1024).largest(2, number) for number in (10, 20_000))
    for layout in ("padded", "tree"):
        assert long[layout].tokens > short[layout].tokens


def test_an_epoch_is_its_steps(of_8b):
    best, pairs = of_8b["advised"], of_8b["data"]["pairs"]
    assert best["steps_an_epoch"] == -(-pairs // 64)
    assert best["hours"] == pytest.approx(best["steps_an_epoch"] * best["step_seconds"]["total"] / 3600)
    assert best["gpu_hours"] == pytest.approx(8 * best["hours"])
    twice = plan("llama-3.1-8b", FIGURES, "h100", gpus=8, epochs=2)
    assert twice["advised"]["hours"] == pytest.approx(2 * best["hours"])


def test_ddp_of_8b_does_not_fit_and_a_divided_engine_does(of_8b):
    assert not of_8b["engines"]["ddp"]["fits"]
    assert of_8b["engines"]["fsdp2"]["fits"]
    assert of_8b["advised"]["engine"] != "ddp"
    assert plan("qwen3-0.6b", FIGURES, "h100", gpus=8, batch_pairs=512)["advised"]["engine"] == "ddp"


def test_half_the_share_of_the_peak_takes_twice_the_arithmetic():
    slow, fast = (plan("llama-3.1-8b", FIGURES, "h200", gpus=8, mfu=mfu, micro_batch=4, engine="fsdp2",
                       gradient_checkpointing="true") for mfu in (0.2, 0.4))  # fmt: skip
    seconds = [one["advised"]["step_seconds"]["computing"] for one in (slow, fast)]
    assert seconds[0] == pytest.approx(2 * seconds[1])


def test_an_adapter_fits_where_all_weights_do_not():
    whole, adapter = (plan("llama-3.1-8b", FIGURES, "rtx4090", use_peft=use, dtype="bfloat16") for use in (False, True))
    assert whole["advised"] is None
    assert "--use_peft, a LoRA adapter" in whole["cures"]
    assert adapter["advised"]["engine"] == "single"
    assert adapter["model"]["trained"] == 32 * 16 * (2 * 4096 + 4096 + 1024) + 4096


def test_an_adapter_is_advised_on_the_matrices_that_the_model_has(tmp_path):
    AutoConfig.for_model("gpt2", n_layer=32, n_embd=4096, n_head=32).save_pretrained(tmp_path)
    found = plan(str(tmp_path), FIGURES, "rtx4090", dtype="bfloat16")
    assert found["advised"] is None
    assert "--use_peft, a LoRA adapter" in found["cures"]


def test_half_precision_weights_compute_in_half_precision():
    given = {"micro_batch": 2, "gradient_checkpointing": "true"}
    wide, narrow = (
        plan("qwen3-0.6b", FIGURES, "h200", precision=precision, dtype="bfloat16", **given)["advised"]
        for precision in ("float32", "bfloat16")
    )
    assert wide["step_seconds"] == narrow["step_seconds"]
    with pytest.raises(ValueError, match=r"does not compute in bfloat16; give --precision float32 and --dtype float32"):
        plan("qwen3-0.6b", FIGURES, "t4", dtype="bfloat16")


def test_where_nothing_fits_the_text_says_what_would(capsys):
    code, out, _ = run(capsys, "--model", "llama-3.1-70b", "--data", FIGURES, "--gpu", "h100", "--gpus", 2)
    assert code == 0
    assert "no engine fits on 2 x h100 of 80.0 GB; what would: " in out
    assert "--gpus 32" in out
    cure = plan("llama-3.1-70b", FIGURES, "h100", gpus=32)
    assert cure["advised"] is not None
    assert plan("llama-3.1-70b", FIGURES, "h100", gpus=16)["advised"] is None


@pytest.mark.parametrize(
    "options",
    [
        {"gpus": 8},
        {"gpus": 16, "epochs": 0.5, "max_length": 0},
        {"use_peft": True, "lora_r": 8, "lora_target_modules": ("q_proj", "o_proj"), "dtype": "bfloat16"},
        {"precision": "float32", "gpus": 4, "engine": "zero2"},
    ],
)
def test_the_command_is_one_that_train_understands(options):
    model = "qwen3-4b" if options.get("gpus") else "qwen3-0.6b"
    found = plan(model, FIGURES, "h200", **options)
    launcher, _, flags = found["command"].partition("plaudit train ")
    given = parse_train(shlex.split(flags))
    best = found["advised"]
    assert given["per_device_train_batch_size"] == best["micro_batch"]
    assert given.get("gradient_accumulation_steps", 1) == best["accumulation"]
    assert given["gradient_checkpointing"] is best["gradient_checkpointing"]
    assert given["max_length"] == (options.get("max_length", 1024) or None)
    assert given.get("use_peft", False) is options.get("use_peft", False)
    assert given.get("bf16") == (False if options.get("precision") == "float32" else None)
    if options.get("gpus", 1) > 1:
        assert f"--num_processes {options['gpus']}" in launcher
        assert ("--num_machines 2" in launcher) == (options["gpus"] == 16)
    else:
        assert launcher == ""


def test_the_launchers_files_are_among_the_examples():
    from pathlib import Path

    from plaudit.plan import _FILES

    there = {file.stem for file in (Path(__file__).parents[1] / "examples" / "distributed").glob("*.yaml")}
    assert set(_FILES.values()) <= there


def test_a_model_on_this_machine_is_read_from_its_config_and_its_own_command(tmp_path, capsys):
    AutoConfig.for_model(
        "qwen3", num_hidden_layers=2, hidden_size=64, num_attention_heads=4, intermediate_size=128, vocab_size=500
    ).save_pretrained(tmp_path)
    found = plan(str(tmp_path), FIGURES, "l4")
    assert found["model"]["layers"] == 2
    assert f"--model_name_or_path {tmp_path} " in found["command"]


def test_an_encoder_is_planned_padded(tmp_path):
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
    AutoConfig.for_model("bert", **sizes).save_pretrained(tmp_path)
    found = plan(str(tmp_path), FIGURES, "l4")
    assert list(found["layouts"]) == ["padded"]
    assert found["advised"]["layout"] == "padded"
    assert "is not a decoder" in found["padded_because"]


def test_rows_in_a_file_are_counted_and_named_in_the_command(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text(
        "\n".join(json.dumps({"prompt": "why? ", "chosen": f"yes {i}", "rejected": "no"}) for i in range(9))
    )
    found = plan("qwen3-0.6b", str(file), "h100", batch_pairs=4)
    assert found["data"]["pairs"] == 9
    assert found["advised"]["steps_an_epoch"] == 3
    assert f"--dataset_name {file} " in found["command"]


def test_names_in_the_command_are_for_a_shell_what_they_are(tmp_path):
    file = tmp_path / "my pairs; echo $HOME.jsonl"
    file.write_text(json.dumps({"prompt": "why? ", "chosen": "yes", "rejected": "no"}))
    command = plan("qwen3-0.6b", str(file), "h100", batch_pairs=1)["command"]
    assert str(file) in shlex.split(command)
    assert "'" in command


def test_this_machine_is_measured_on_slices_of_the_model(capsys):
    code, out, _ = run(capsys, "--model", SMALL, "--data", "pairs=100,prompt=20,answer=8", "--gpu", "here",
                       "--batch_pairs", 4, "--precision", "float32")  # fmt: skip
    assert code == 0
    assert "(measured here on slices of the model)" in out
    assert "1 x here" in out.splitlines()[0]


def test_the_plan_as_json_is_what_python_gets(tmp_path, capsys):
    file = tmp_path / "plan.json"
    flags = ["--model", "qwen3-0.6b", "--data", FIGURES, "--gpu", "l4", "--json"]
    _, text, _ = run(capsys, *flags, file)
    _, printed, _ = run(capsys, *flags, "-")
    expected = json.loads(json.dumps(plan("qwen3-0.6b", FIGURES, "l4")))
    assert json.loads(file.read_text()) == json.loads(printed) == expected
    assert text.startswith("qwen3-0.6b (596 million parameters)")


def test_a_json_file_that_cannot_be_written_is_an_error_before_anything_is_read(tmp_path, capsys):
    code, _, err = run(capsys, "--model", "x", "--data", "y", "--gpu", "z", "--json", tmp_path / "none" / "plan.json")
    assert code == 1
    assert "cannot be written; name a file in a directory that is there, or -" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpu": "h1000"}, r"gpu 'h1000' is not known; did you mean 'h100'\?"),
        ({"model": "llama-3.1-9b"}, r"is neither a directory nor a known shape; did you mean 'llama-3.1-8b'\?"),
        ({"gpus": 0}, r"gpus is 0, but must be 1 or more"),
        ({"gpus": 6}, r"batch_pairs is 64, which 6 gpus do not divide; take a multiple of 6"),
        ({"micro_batch": 3}, r"micro_batch is 3, which does not divide the 64 pairs that each of 1 gpus takes"),
        ({"mfu": 40}, r"mfu is 40, but must be a share above 0, at most 1"),
        ({"epochs": -1}, r"epochs is -1, but must be a number above 0"),
        ({"max_length": -1}, r"max_length is -1, but must be 0, for no limit, or more"),
        ({"engine": "zero4"}, r"engine is 'zero4', but must be one of 'auto', 'single'"),
        ({"gpus": "8"}, r"gpus must be a whole number, not '8'"),
        ({"mfu": 0.3, "gpu": "here"}, r"mfu is 0.3, but the share is measured where gpu is 'here'; leave one of them"),
        ({"split": "dev"}, r"split is 'dev', but data 'pairs=.*' has no rows; leave it out"),
        ({"engine": "ddp"}, r"engine 'ddp' divides work among several gpus, and gpus is 1; leave engine out"),
        ({"engine": "single", "gpus": 2}, r"engine 'single' uses one gpu, and gpus is 2"),
        ({"lora_r": 8}, r"lora_r is 8, which needs use_peft; add --use_peft"),
        (
            {"lora_target_modules": "q_proj"},
            r"lora_target_modules is given without use_peft, which it needs; add --use_peft",
        ),
        ({"use_peft": True, "lora_target_modules": "query"}, r"llama-3.1-8b has no matrix 'query'"),
        ({"gpu": "t4", "precision": "bfloat16"}, r"gpu 't4' does not compute in bfloat16; give --precision float32"),
        ({"tokenizer": "./none", "data": "FILE"}, r"tokenizer './none' cannot be loaded"),
    ],
)
def test_a_mistake_says_what_is_wrong_and_what_to_do(tmp_path, options, message):
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": "why? ", "chosen": "yes", "rejected": "no"}))
    given = {"model": "llama-3.1-8b", "data": FIGURES, "gpu": "h100", **options}
    given["data"] = str(file) if given["data"] == "FILE" else given["data"]
    with pytest.raises(ValueError, match=message):
        plan(**given)


def test_a_flag_that_is_missing_is_named(capsys):
    code, _, err = run(capsys, "--model", "qwen3-0.6b", "--data", FIGURES)
    assert (code, err.splitlines()[0]) == (2, "plaudit plan: error: --gpu is required; see plaudit plan --help")


def test_the_options_are_kept_as_they_are_given():
    asked = Plan("m", "d", "g", use_peft=True, lora_target_modules=["q_proj"])
    assert asked.lora_target_modules == ("q_proj",)
    assert asked.pairs_each == 64


@pytest.mark.parametrize("name", ["model", "data", "gpu"])
def test_a_blank_name_is_an_error_before_anything_is_looked_for(name):
    given = {"model": "llama-3.1-8b", "data": "pairs=10,prompt=5,answer=5", "gpu": "h100", name: " "}
    with pytest.raises(ValueError, match=f"^{name} is ' ', which names nothing"):
        plan(**given)

"""The command: what it prints and what it returns."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from plaudit import __version__, cli
from plaudit import run as training_run

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """A folder with a two-layer causal model of random weights, made as the examples make it."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny-model"
    sys.path.insert(0, str(EXAMPLES))
    try:
        from tiny_model import make_model
    finally:
        sys.path.remove(str(EXAMPLES))
    make_model(folder, [(EXAMPLES / "data" / "pairs.jsonl").read_text(encoding="utf-8")])
    return folder


@pytest.fixture
def pairs(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join((EXAMPLES / "data" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()[:12]))
    return file


@pytest.fixture
def options(tiny_model, pairs, tmp_path):
    """The flags of a run of one step."""
    return [
        f"--model_name_or_path={tiny_model}",
        f"--dataset_name={pairs}",
        f"--output_dir={tmp_path / 'out'}",
        *"--max_steps 1 --per_device_train_batch_size 4 --gradient_checkpointing false --save_strategy no".split(),
    ]


def spoil(file, number):
    """Take the answer out of a row."""
    lines = file.read_text().splitlines()
    lines[number] = json.dumps({**json.loads(lines[number]), "chosen": []})
    file.write_text("\n".join(lines))


def run(capsys, *arguments):
    """Return the exit code and what was printed to stdout and stderr."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        code = stopped.code
    return code, *capsys.readouterr()


# The words themselves.


def test_help_lists_the_verbs(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(f"  {verb}" in out for verb in ("train", "score", "verify", "merge", "demo"))


def test_version_is_the_packages(capsys):
    assert run(capsys, "--version")[:2] == (0, f"plaudit {__version__}\n")


def test_an_unknown_verb_names_the_nearest(capsys):
    code, _, err = run(capsys, "trian", "--config", "x.yaml")
    assert code == 2
    assert (
        "unknown verb 'trian'; did you mean 'train'?; known: train, score, evaluate, compare, report, audit, plan, doctor, verify, merge, demo"
        in err
    )


@pytest.mark.parametrize(("flag", "nearest"), [("--versoin", "--version"), ("--train", "train")])
def test_an_unknown_flag_before_the_verb_names_the_nearest(capsys, flag, nearest):
    code, _, err = run(capsys, flag)
    assert code == 2
    assert (
        f"unknown flag '{flag}'; did you mean '{nearest}'?; known: train, score, evaluate, compare, report, audit, plan, doctor, verify, merge, demo, --help, --version"
        in err
    )


def test_no_verb_is_a_usage_error(capsys):
    code, _, err = run(capsys)
    assert code == 2
    assert "VERB" in err


def test_the_module_runs_as_the_command_does():
    done = subprocess.run([sys.executable, "-m", "plaudit", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"plaudit {__version__}\n"


# Exit codes.


def stand_in(monkeypatch, error):
    def fail(arguments):
        raise error

    monkeypatch.setitem(cli.VERBS, "train", cli.Verb("", fail))


@pytest.mark.parametrize("error", [ValueError("bad row"), FileNotFoundError("bad row"), ImportError("bad row")])
def test_a_users_mistake_is_one_line_and_exit_code_1(capsys, monkeypatch, error):
    stand_in(monkeypatch, error)
    code, _, err = run(capsys, "train")
    assert code == 1
    assert err.startswith("plaudit train: error: bad row")
    assert len(err.splitlines()) == 1


def test_the_traceback_of_a_users_mistake_can_be_asked_for(monkeypatch):
    stand_in(monkeypatch, ValueError("bad row"))
    monkeypatch.setenv("PLAUDIT_TRACEBACK", "1")
    with pytest.raises(ValueError, match="bad row"):
        cli.main(["train"])


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RuntimeError("a fault"), "RuntimeError: a fault"),
        (TypeError("a fault"), "TypeError: a fault"),
        (KeyError("lost"), "KeyError: 'lost'"),
        (ZeroDivisionError(), "ZeroDivisionError:"),
        (StopIteration(), "StopIteration:"),
    ],
)
def test_an_unexpected_error_is_one_line_with_its_kind(capsys, monkeypatch, error, text):
    stand_in(monkeypatch, error)
    code, _, err = run(capsys, "train")
    assert code == 1
    assert " ".join(err.split()) == f"plaudit train: error: {text} (PLAUDIT_TRACEBACK=1 shows where)"


def test_the_traceback_of_an_unexpected_error_can_be_asked_for(monkeypatch):
    stand_in(monkeypatch, RuntimeError("a fault"))
    monkeypatch.setenv("PLAUDIT_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="a fault"):
        cli.main(["train"])


def test_a_long_error_is_cut_to_one_line_with_its_beginning_and_its_end(capsys, monkeypatch):
    stand_in(monkeypatch, ValueError("wrong here\n" + "found this\n" * 500 + "do that"))
    _, _, err = run(capsys, "train")
    assert len(err.splitlines()) == 1
    assert 500 < len(err) < 700
    assert err.startswith("plaudit train: error: wrong here found this")
    assert " … " in err
    assert "do that" in err


def test_the_error_of_a_loaders_worker_is_its_last_line(capsys, monkeypatch):
    trace = (
        'Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File "x"\n'
    )
    stand_in(monkeypatch, ValueError(trace + "ValueError: train row 5: bad\n"))
    assert run(capsys, "train")[2].startswith("plaudit train: error: ValueError: train row 5: bad (")


def test_of_several_processes_the_first_prints_a_mistake_and_each_its_own_fault(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    stand_in(monkeypatch, ValueError("bad row"))
    assert run(capsys, "train") == (1, "", "")
    stand_in(monkeypatch, RuntimeError("out of memory"))
    assert run(capsys, "train")[2].startswith("plaudit train: error (process 3): RuntimeError: out of memory")
    assert run(capsys, "demo", "--limit", "x")[0] == 2
    monkeypatch.setenv("RANK", "0")
    assert run(capsys, "train")[2].startswith("plaudit train: error: RuntimeError: out of memory")


def test_an_error_of_ours_in_a_process_that_prepares_data_is_known_as_ours(capsys, options, pairs):
    spoil(pairs, 5)
    code, _, err = run(capsys, "train", *options, "--dataset_num_proc", "2")
    assert code == 1
    assert "train row 5: 'chosen'" in err.splitlines()[-1]
    assert "PLAUDIT_TRACEBACK" not in err


def test_an_interrupted_run_says_so_without_a_traceback(capsys, monkeypatch):
    stand_in(monkeypatch, KeyboardInterrupt())
    assert run(capsys, "train")[::2] == (130, "plaudit train: interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lerning_rate", "1"], "unknown argument '--lerning_rate'; did you mean '--learning_rate'?"),
        (["--learning_rate", "fast"], "--learning_rate: invalid float value: 'fast'"),
        (["--max_length", "abc"], "--max_length: must be a whole number or none, not 'abc'"),
        (["--packing", "on"], "--packing: invalid choice: 'on'"),
        (["--dataset_format", "shargpt"], "--dataset_format: invalid choice: 'shargpt'"),
        (["--dataset_name", "x"], "--model_name_or_path is required"),
        (["--model_name_or_path", "x"], "--dataset_name is required"),
    ],
)
def test_arguments_that_cannot_be_understood_are_one_line_and_exit_code_2(capsys, arguments, message):
    code, _, err = run(capsys, "train", *arguments)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1


# Flags and files.


def test_a_missing_config_file_is_named(capsys):
    code, _, err = run(capsys, "train", "--config=nowhere.yaml")
    assert (code, err) == (1, "plaudit train: error: config file 'nowhere.yaml' does not exist\n")


def test_a_directory_as_config_file_is_named(capsys, tmp_path):
    code, _, err = run(capsys, "train", f"--config={tmp_path}")
    assert code == 1
    assert f"config file '{tmp_path}' is a directory; name the .yaml file in it" in err


# Whole runs.


def test_a_run_trains_saves_and_evaluates_on_held_out_rows(capsys, options, tmp_path):
    code, out, _ = run(capsys, "train", *options, "--test_split_size", "4")
    assert code == 0
    assert f"saved to {tmp_path / 'out'}\nreport in {tmp_path / 'out' / 'report.html'}" in out
    figures = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert 0 <= figures["eval_accuracy"] <= 1
    assert (tmp_path / "out" / "train_results.json").is_file()
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").num_labels == 1


def test_use_peft_needs_no_further_flag_and_trains_the_head(capsys, options, tmp_path):
    code, _, err = run(capsys, "train", *options, "--use_peft", "--learning_rate", "1e-2")
    assert code == 0, err
    from safetensors.torch import load_file

    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert any("score" in name for name in weights)
    assert any("lora_B" in name and bool(torch.any(value != 0)) for name, value in weights.items())


def test_a_streamed_run_trains(capsys, options, tmp_path):
    code, _, err = run(capsys, "train", *options, "--dataset_streaming")
    assert code == 0, err
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_run_continues_from_its_last_checkpoint(capsys, options, tmp_path):
    assert run(capsys, "train", *options, "--save_strategy", "steps", "--save_steps", "1")[0] == 0
    more = ["--save_strategy", "steps", "--save_steps", "1", "--max_steps", "2", "--resume_from_checkpoint", "true"]
    assert run(capsys, "train", *options, *more)[0] == 0
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == 2


def test_the_output_directory_is_named_after_the_model(capsys, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "train", *[option for option in options if not option.startswith("--output_dir")])
    assert code == 0
    assert "saved to tiny-model-Reward\n" in out
    assert (tmp_path / "tiny-model-Reward" / "config.json").is_file()


def test_a_format_by_name_is_converted_with_its_margins(capsys, options, tmp_path, caplog):
    rows = [
        {"prompt": f"Question {number}?", "responses": ["Good.", "Bad."], "scores": [4.0, 1.0]} for number in range(8)
    ]
    (tmp_path / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["--dataset_name", tmp_path / "votes.jsonl", "--dataset_format", "ratings", "--dataset_margins"]
    code, _, err = run(capsys, "train", *options, *data)
    assert code == 0, err
    assert "rated answers" in caplog.text


@pytest.mark.parametrize(
    "flags",
    [
        ["--eval_strategy", "steps"],
        ["--do_eval"],
        ["--dataset_test_split", "validation"],
        ["--dataset_test_split", "validation", "--do_eval", "--eval_benchmarks", "rewardbench"],
    ],
)
def test_evaluation_without_test_rows_offers_to_hold_some_out(capsys, options, flags):
    code, _, err = run(capsys, "train", *options, *flags)
    assert code == 1
    assert "evaluation was asked for" in err
    assert "--test_split_size 0.1" in err


def test_a_bad_row_is_one_line_and_nothing_is_left(capsys, options, pairs, tmp_path):
    spoil(pairs, 5)
    code, _, err = run(capsys, "train", *options)
    assert code == 1
    last = err.splitlines()[-1]
    assert last.startswith("plaudit train: error: train row 5: 'chosen'")
    assert "Traceback" not in err
    assert not list(tmp_path.glob("out/*"))


def test_a_bad_row_is_named_by_its_number_in_the_file_also_when_rows_are_held_out(capsys, options, pairs):
    lines = pairs.read_text().splitlines()
    pairs.write_text("\n".join(lines[number % 12] for number in range(200)))
    spoil(pairs, 176)
    code, _, err = run(capsys, "train", *options, "--test_split_size", "0.1")
    assert code == 1
    assert "row 176: 'chosen'" in err.splitlines()[-1]


@pytest.mark.parametrize("option", ["--model_name_or_path=./nowhere", "--dataset_name=nowhere.jsonl"])
def test_a_path_that_does_not_exist_is_one_line(capsys, options, option):
    code, _, err = run(capsys, "train", *options, option)
    assert code == 1
    assert "nowhere" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--metric_for_best_model", "eval_acuracy"], "metric_for_best_model='eval_acuracy' is not a metric of the"),
        (["--metric_for_best_model", "acuracy"], "did you mean 'accuracy'?; known: min_reward"),
        (["--dataset_streaming", "--max_steps", "-1"], "--dataset_streaming needs --max_steps"),
        (
            ["--dataset_streaming", "--dataset_num_proc", "2"],
            "--dataset_num_proc has no effect with --dataset_streaming",
        ),
        (["--dataset_test_split", "train"], "--dataset_test_split and --dataset_train_split are both 'train'"),
        (["--do_train", "false"], "nothing to do: do_train is false, and data set"),
        (["--dataset_margins"], "--dataset_margins has no effect on data set"),
        (["--dataset_config", "small"], "has no configurations, so dataset_config='small' has no effect; leave it out"),
    ],
)
def test_options_that_cannot_work_are_one_line_before_the_model_is_loaded(capsys, options, flags, message):
    code, _, err = run(capsys, "train", *options, "--model_name_or_path=./nowhere", *flags)
    assert code == 1
    assert message in err.splitlines()[-1]
    assert "PLAUDIT_TRACEBACK" not in err


@pytest.mark.parametrize("streams", [False, True])
def test_margins_of_a_format_without_ratings_are_an_error(capsys, options, tmp_path, streams):
    side = "\n\nHuman: Hello?\n\nAssistant: {}"
    file = tmp_path / "said.jsonl"
    file.write_text(json.dumps({"chosen": side.format("Hello."), "rejected": side.format("No.")}) + "\n")
    flags = ["--dataset_name", file, "--dataset_format", "transcript", "--dataset_margins"]
    code, _, err = run(capsys, "train", *options, *flags, *["--dataset_streaming"] * streams)
    assert code == 1
    assert f"--dataset_margins has no effect on data set '{file}': their format has no ratings; leave it out" in err


def test_every_metric_of_an_evaluation_is_known_and_training_leaves_those_of_its_last_interval_out(
    capsys, options, tmp_path
):
    assert run(capsys, "train", *options, "--test_split_size", "4")[0] == 0
    figures = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    for name in set(figures) - {"epoch"}:
        training_run._check_best_metric(name)
    train = json.loads((tmp_path / "out" / "train_results.json").read_text())
    assert {"train_loss", "train_runtime", "num_tokens", "epoch", "total_flos"} <= set(train)
    assert not set(train) & set(training_run._pair_figures())


def test_evaluation_alone_takes_any_split_and_saves_no_model(capsys, options, tmp_path):
    code, _, err = run(capsys, "train", *options, "--do_train", "false", "--dataset_test_split", "train")
    assert code == 0, err
    assert (tmp_path / "out" / "eval_results.json").is_file()
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_an_older_name_trains_with_a_warning(capsys, options):
    with pytest.warns(FutureWarning, match="warmup_ratio"):
        assert run(capsys, "train", *options, "--warmup_ratio", "0.1")[0] == 0


def test_a_plain_run_warns_of_no_older_names(capsys, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        assert run(capsys, "train", *options)[0] == 0


def test_the_demo_prints_its_summary(capsys, monkeypatch, tmp_path):
    from plaudit import demo

    asked = {}

    def run_demo(output_dir, *, seed, limit):
        asked.update(output_dir=output_dir, seed=seed, limit=limit)
        return {}

    monkeypatch.setattr(demo, "run", run_demo)
    monkeypatch.setattr(demo, "describe", lambda summary: "the summary")
    code, out, _ = run(capsys, "demo", "--output_dir", tmp_path, "--seed", "3", "--limit", "50")
    assert (code, out) == (0, "the summary\n")
    assert asked == {"output_dir": str(tmp_path), "seed": 3, "limit": 50}

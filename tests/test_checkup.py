"""The examination of a run from its options: nothing is trained, nothing written, and what refuses the data is a finding too."""

import json

import pytest
import torch
from conftest import conversations, text_pairs

from plaudit.checkup import check_up, read_history


def given(model_path, folder, rows, **values):
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    defaults = {
        "model_name_or_path": model_path,
        "dataset_name": str(file),
        "output_dir": str(folder / "run"),
        "use_cpu": True,
        "learning_rate": 1e-3,
        "gradient_checkpointing": False,
    }
    return {**defaults, **values}


def test_a_healthy_run_has_no_finding_and_leaves_nothing_behind(model_path, tmp_path):
    options = given(model_path, tmp_path, text_pairs(40))
    diagnosis = check_up(options)
    assert diagnosis.healthy, str(diagnosis)
    assert any(line.startswith("overfit test") for line in diagnosis.evidence)
    assert not (tmp_path / "run").exists()
    assert "report_to" not in options


def test_an_adapter_is_examined_as_it_would_be_trained(model_path, tmp_path):
    diagnosis = check_up(
        given(model_path, tmp_path, conversations(40), use_peft=True, lora_target_modules=["all-linear"])
    )
    assert diagnosis.healthy, str(diagnosis)
    assert any("modules_to_save" in line for line in diagnosis.evidence)


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"learning_rate": 0.0}, "the learning rate is 0"),
        ({"warmup_steps": 10_000}, "the learning rate never gets near its value"),
    ],
)
def test_options_that_train_nothing_are_named(model_path, tmp_path, values, cause):
    assert [one.cause for one in check_up(given(model_path, tmp_path, text_pairs(40), **values)).findings] == [cause]


def test_a_foreign_template_is_named(model_path, tmp_path):
    template = tmp_path / "chatml.jinja"
    template.write_text("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}")
    options = given(model_path, tmp_path, conversations(40), chat_template_path=str(template))
    assert [one.cause for one in check_up(options).findings] == ["wrong chat template"]


def test_a_margin_that_is_refused_is_a_finding_with_its_row_and_cure(model_path, tmp_path):
    rows = [{**row, "margin": 0.5} for row in text_pairs(12)]
    rows[7]["margin"] = float("nan")
    (finding,) = check_up(given(model_path, tmp_path, rows)).findings
    assert finding.cause == "a margin is not a finite number"
    assert "row 7" in finding.evidence
    assert finding.cure.startswith(("mend", "give", "drop"))
    assert not (tmp_path / "run").exists()


def test_data_that_are_refused_are_a_finding(model_path, tmp_path):
    rows = [{**row, "rejected": row["chosen"]} for row in text_pairs(4)]
    (finding,) = check_up(given(model_path, tmp_path, rows)).findings
    assert finding.cause == "the data or the options are refused"
    assert "identical" in finding.evidence


@pytest.mark.parametrize("place", ["run", "run/checkpoint-20"])
def test_the_log_of_a_run_is_judged(model_path, tmp_path, place):
    (tmp_path / place).mkdir(parents=True)
    history = [{"step": step, "loss": 0.6931, "learning_rate": 0.0} for step in (25, 50)]
    (tmp_path / place / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    diagnosis = check_up(given(model_path, tmp_path, text_pairs(40)))
    (finding,) = diagnosis.findings
    assert finding.cause == "the learning rate is 0"
    assert "all 2 logged learning rates are 0 up to step 50" in finding.evidence
    assert any("within 1 % of ln 2" in line for line in diagnosis.evidence)
    assert (tmp_path / place / "trainer_state.json").exists()


def test_a_log_that_cannot_be_read_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "trainer_state.json").write_text("{")
    with pytest.raises(ValueError, match=r"trainer_state.json' holds no log of a training .*; remove or restore it"):
        read_history(tmp_path)
    assert read_history(tmp_path / "nowhere") == []


def test_the_examination_sets_nothing_of_the_run(model_path, tmp_path):
    state = torch.get_rng_state()
    options = given(model_path, tmp_path, text_pairs(40))
    first, second = str(check_up(options)), str(check_up(options))
    assert first == second
    assert len(state) == len(torch.get_rng_state())


def test_a_template_that_leaves_the_answers_out_is_named_and_not_the_pairs_that_it_makes_the_same(model_path, tmp_path):
    template = tmp_path / "prompts.jinja"
    template.write_text("{% for m in messages if m.role == 'user' %}<|user|>{{ m.content }}<|end|>{% endfor %}")
    options = given(model_path, tmp_path, conversations(40), chat_template_path=str(template))
    (finding,) = check_up(options).findings
    assert finding.cause == "wrong chat template"
    assert "it leaves the answer out" in finding.evidence
    assert "(40 whose two sides are identical)" in finding.evidence
    assert not (tmp_path / "run").exists()


def test_pairs_that_are_the_same_by_themselves_are_no_fault_of_the_template(model_path, tmp_path):
    rows = [{**row, "rejected": row["chosen"]} for row in conversations(6)]
    (finding,) = check_up(given(model_path, tmp_path, rows)).findings
    assert finding.cause == "the data or the options are refused"


def test_a_margin_that_is_missing_is_named_as_one(model_path, tmp_path):
    rows = [{**row, "margin": None if i == 4 else 1.0} for i, row in enumerate(text_pairs(8))]
    (finding,) = check_up(given(model_path, tmp_path, rows)).findings
    assert finding.cause == "a margin is not a finite number"
    assert finding.evidence == "train row 4: 'margin' is missing"


@pytest.mark.parametrize("content", ["[]", "{}", '{"log_history": 3}', '{"log_history": [3]}', "[" * 100_000, "{"])
def test_a_state_that_holds_no_log_is_an_error_that_names_the_file(tmp_path, content):
    (tmp_path / "trainer_state.json").write_text(content)
    with pytest.raises(ValueError, match="trainer_state.json' holds no log of a training"):
        read_history(tmp_path)

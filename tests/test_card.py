"""The model card: its header parses, its code returns the trained reward, its tables hold whatever names come."""

import contextlib
import io
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import transformers
import yaml
from conftest import conversations, make_model, make_tokenizer, text_pairs
from datasets import Dataset
from processes import config

from plaudit import RewardTrainer
from plaudit.card import CardFacts, model_card, snippet

KINDS = ["standard", "conversational", "tokenized"]


def tokenized(rows, tokenizer):
    ids = {
        side: [[*tokenizer(row["prompt"] + row[side])["input_ids"], tokenizer.eos_token_id] for row in rows]
        for side in ("chosen", "rejected")
    }
    return [
        {"chosen_ids": chosen, "rejected_ids": rejected}
        for chosen, rejected in zip(ids["chosen"], ids["rejected"], strict=True)
    ]


def rows_of(kind, text_rows, conversation_rows):
    if kind == "conversational":
        return Dataset.from_list(conversation_rows)
    return Dataset.from_list(text_rows if kind == "standard" else tokenized(text_rows, make_tokenizer()))


# The pair whose first side the card's code scores.
ASKED = (
    [{"prompt": "The sky is", "chosen": " blue.", "rejected": " a cat."}],
    [
        {
            "prompt": [{"role": "user", "content": "What color is the sky?"}],
            "chosen": [{"role": "assistant", "content": "It is blue."}],
            "rejected": [{"role": "assistant", "content": "A cat."}],
        }
    ],
)


@pytest.fixture(scope="module")
def saved(language_model_path, tmp_path_factory):
    """A function from ("full" or "adapter", a kind of rows) to a saved directory, its trainer and the asked reward."""
    made = {}

    def save(form, kind):
        if (form, kind) not in made:
            folder = str(tmp_path_factory.mktemp(form))
            trainer = RewardTrainer(
                language_model_path,
                config(folder, max_steps=2, learning_rate=1e-2),
                train_dataset=rows_of(kind, text_pairs(8), conversations(8)),
                eval_dataset={"fair": rows_of(kind, text_pairs(4, 1), conversations(4, 1))},
                peft_config=peft.LoraConfig() if form == "adapter" else None,
            )
            trainer.train()
            trainer.evaluate()
            trainer.save_model()
            reward = trainer.predict(rows_of(kind, *ASKED)).predictions[0, 0]
            card = (Path(folder) / "README.md").read_text(encoding="utf-8")
            made[form, kind] = SimpleNamespace(path=folder, trainer=trainer, reward=reward, card=card)
        return made[form, kind]

    return save


def code_of(card):
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return code


def header_of(card):
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize("form", ["full", "adapter"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_cards_code_prints_the_trained_reward(form, kind, saved):
    case = saved(form, kind)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code_of(case.card), "README.md", "exec"), {})
    np.testing.assert_allclose(float(printed.getvalue()), case.reward, atol=1e-5)


@pytest.mark.parametrize("form", ["full", "adapter"])
@pytest.mark.parametrize("kind", ["standard", "conversational"])
def test_the_cards_pipeline_returns_the_trained_reward(form, kind, saved):
    case = saved(form, kind)
    (call,) = re.findall(r"`(transformers\.pipeline\(.*?\))` returns", case.card)
    pipe = eval(call, {"transformers": transformers})
    text = "The sky is blue.<|eos|>"
    if kind == "conversational":
        conversation = ASKED[1][0]["prompt"] + ASKED[1][0]["chosen"]
        text = case.trainer.processing_class.apply_chat_template(conversation, tokenize=False)
    options = {"add_special_tokens": False} if "add_special_tokens=False" in case.card.split("## Training")[0] else {}
    np.testing.assert_allclose(pipe(text, **options)[0]["score"], case.reward, atol=1e-5)


def test_the_cards_ways_to_score_are_right_where_template_and_tokenizer_both_write_a_bos(tmp_path):
    template = "<|bos|>{% for message in messages %}{{ message.role }}: {{ message.content }}<|end|>{% endfor %}"
    tokenizer = make_tokenizer(chat_template=template, bos="<|bos|>")
    folder = tmp_path / "model"
    make_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows = Dataset.from_list(conversations(4))
    trainer = RewardTrainer(str(folder), config(tmp_path / "out", max_steps=1), train_dataset=rows)
    trainer.train()
    trainer.save_model()
    conversation = rows[0]["prompt"] + rows[0]["chosen"]
    text = trainer.processing_class.apply_chat_template(conversation, tokenize=False)
    pipe = transformers.pipeline("text-classification", model=str(tmp_path / "out"))
    expected = trainer.predict(rows).predictions[0, 0]
    np.testing.assert_allclose(pipe(text, add_special_tokens=False)[0]["score"], expected, atol=1e-5)
    assert "`add_special_tokens=False`" in (tmp_path / "out" / "README.md").read_text()


def test_a_merged_adapter_needs_no_keyword_arguments_in_a_pipeline(saved, tmp_path):
    from plaudit import model as models

    case = saved("adapter", "standard")
    models.load(case.path).merge_and_unload().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    found = transformers.pipeline("text-classification", model=str(tmp_path))("The sky is blue.<|eos|>")[0]["score"]
    np.testing.assert_allclose(found, case.reward, atol=1e-5)


@pytest.mark.parametrize("form", ["full", "adapter"])
def test_the_header_is_yaml_with_the_tags_and_no_local_path(form, saved):
    case = saved(form, "standard")
    header = header_of(case.card)
    assert header["tags"] == ["reward-trainer", "plaudit"]
    assert header["library_name"] == {"full": "transformers", "adapter": "peft"}[form]
    assert header["pipeline_tag"] == "text-classification"
    assert "base_model" not in header
    assert "/" not in yaml.safe_dump(header)


def test_the_evaluation_table_holds_the_newest_figures_of_each_set(saved):
    case = saved("full", "standard")
    figures = case.trainer.state.log_history[-1]
    head, _, row = re.search(r"## Evaluation\n\n(.*)\n(.*)\n(.*)\n", case.card).groups()
    cells = dict(zip(head.split(" | "), row.split(" | "), strict=True))
    assert cells["| set"] == "| fair"
    assert float(cells["mean_reward"]) == pytest.approx(figures["eval_fair_mean_reward"], rel=1e-3)
    assert float(cells["accuracy"]) == pytest.approx(figures["eval_fair_accuracy"], rel=1e-3)
    assert "runtime" not in head


def facts(**values):
    return CardFacts(**{"path": "out", "model_name": "judge", "tags": ("plaudit",), **values})


def test_bars_and_line_breaks_in_names_do_not_break_tables_or_header():
    card = model_card(
        facts(
            model_name="a|b\nc: d",
            datasets=("x|y\nz",),
            data={"rows|of": "p|q\nr"},
            evaluation={"set|one\ntwo": {"accuracy": 0.5, "own|figure": 1.0}},
        )
    )
    assert header_of(card)["model_name"] == "a|b\nc: d"
    assert "\n# a|b c: d\n" in card
    assert "| data set | x\\|y z |" in card
    assert "| rows\\|of | p\\|q r |" in card
    assert "| set | accuracy | own\\|figure |\n|---|---|---|\n| set\\|one two | 0.5 | 1 |" in card


@pytest.mark.parametrize(
    "name", ["/gone/model", "./here", "C:\\models\\m", "a/b/c", "data set.json", str(Path(__file__).parent)]
)
def test_local_paths_never_reach_the_header(name):
    header = header_of(model_card(facts(base_model=name, datasets=(name,))))
    assert "base_model" not in header
    assert "datasets" not in header


def test_a_directory_that_looks_like_a_hub_name_does_not_reach_the_header(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "model").mkdir(parents=True)
    assert "base_model" not in header_of(model_card(facts(base_model="owner/model")))


def test_hub_names_reach_the_header():
    header = header_of(model_card(facts(base_model="Qwen/Qwen3-0.6B", datasets=("owner/pairs.v1", "imdb"))))
    assert header["base_model"] == "Qwen/Qwen3-0.6B"
    assert header["datasets"] == ["owner/pairs.v1", "imdb"]


def test_the_code_writes_any_path_as_a_python_string():
    path = 'quo"te\\back'
    assert compile(snippet(facts(path=path)), "card", "exec")
    assert 'path = "quo\\"te\\\\back"' in snippet(facts(path=path))


def test_grown_embeddings_are_grown_in_the_code_too():
    values = {"base_model": "owner/base", "base_values": {"num_labels": 1}}
    assert "base.resize_token_embeddings(402)" in snippet(facts(**values, vocabulary_size=402))
    assert "resize" not in snippet(facts(**values))


def test_create_model_card_takes_a_name_a_data_set_tags_and_header_keys(saved):
    case = saved("full", "standard")
    readme = Path(case.path) / "README.md"
    case.trainer.create_model_card("judge", "owner/pairs", ["mine", "plaudit"], license="mit", language=None)
    card = readme.read_text(encoding="utf-8")
    readme.write_text(case.card, encoding="utf-8")
    header = header_of(card)
    assert header["model_name"] == "judge"
    assert header["datasets"] == ["owner/pairs"]
    assert header["tags"] == ["reward-trainer", "plaudit", "mine"]
    assert header["license"] == "mit"
    assert "language" not in header
    assert "\n# judge\n" in card
    assert code_of(card) == code_of(case.card)


class Hub:
    """Stands in for the Hub's API; keeps what it was sent."""

    def __init__(self):
        self.sent = {}

    def create_repo(self, name, **kwargs):
        return SimpleNamespace(repo_id=f"owner/{name.split('/')[-1]}")

    def upload_folder(self, folder_path, **kwargs):
        self.sent = {**kwargs, "card": (Path(folder_path) / "README.md").read_text(encoding="utf-8")}
        return "the future" if kwargs["run_as_future"] else "the address"


@pytest.mark.parametrize(("blocking", "returned"), [(True, "the address"), (False, "the future")])
def test_push_to_hub_uploads_the_card_and_returns_what_the_upload_returned(
    blocking, returned, saved, language_model_path, tmp_path, monkeypatch
):
    hub = Hub()
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda: hub)
    trainer = RewardTrainer(
        language_model_path,
        config(tmp_path / "judge"),
        train_dataset=Dataset.from_list(text_pairs(4)),
        peft_config=peft.LoraConfig(),
    )
    found = trainer.push_to_hub(blocking=blocking, dataset_name="owner/pairs", tags="mine", license="mit")
    assert found == returned
    assert hub.sent["repo_id"] == "owner/judge"
    header = header_of(hub.sent["card"])
    assert header["model_name"] == "judge"
    assert header["datasets"] == ["owner/pairs"]
    assert header["tags"] == ["reward-trainer", "plaudit", "mine"]
    assert header["license"] == "mit"
    assert 'path = "owner/judge"' in code_of(hub.sent["card"])

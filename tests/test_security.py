"""The promises of docs/security.md, each attacked."""

import ast
import contextlib
import gzip
import io
import json
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import chromium
import jinja2
import pytest
import torch
import yaml
from conftest import conversations, make_tokenizer, text_pairs
from made_results import HOSTILE
from test_card import facts, header_of

import plaudit
from plaudit import RewardConfig, RewardModel, RewardTrainer, cli, inside, loading, redaction, tokens, trust
from plaudit import model as models
from plaudit.card import model_card
from plaudit.say import say

SOURCE = Path(plaudit.__file__).parent
SAY_NO = r"brings Python code of its own.*which was not run.*trust_remote_code=True"
# What a test plants and then looks for: no token of the Hub's form is needed for it to be hidden.
TOKENS = {"hub_token": "plantedhubtoken1", "init_token": "plantedinittoken2", "HF_TOKEN": "hf_plantedEnvironment3"}


class Payload:
    """What runs when it is unpickled: it makes a file."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


@pytest.fixture
def marker(tmp_path):
    """The file that an attack makes where it gets through."""
    return tmp_path / "attacked"


@pytest.fixture
def data(tmp_path):
    """A file of pairs."""
    return write(tmp_path / "pairs.jsonl", text_pairs(8))


@pytest.fixture(scope="module")
def trained(model_path, tmp_path_factory):
    """A directory with a tiny reward model, its head included, and one with an adapter on it; each saved by its library."""
    from peft import LoraConfig, get_peft_model

    place = tmp_path_factory.mktemp("trained")
    shutil.copytree(model_path, place / "whole")
    model = models.load(model_path)
    wrapped = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"]))
    wrapped.save_pretrained(place / "adapter")
    make_tokenizer().save_pretrained(place / "adapter")
    return place


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def changed(folder, file, **values):
    """Change entries of a JSON file in a directory."""
    path = Path(folder) / file
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**known, **values}), encoding="utf-8")


def with_code(folder, marker, *, only_tokenizer=False):
    """Make a model's directory one whose own code runs, where it does, on import: config, model, tokenizer, processor."""
    code = f"open({str(marker)!r}, 'w').close()\n"
    for kind in ("configuration", "modeling", "tokenization", "processing"):
        (Path(folder) / f"{kind}_evil.py").write_text(code)
    if not only_tokenizer:
        classes = {"AutoConfig": "configuration_evil.Evil", "AutoModelForSequenceClassification": "modeling_evil.Evil"}
        changed(folder, "config.json", model_type="evil", auto_map=classes)
    own = {"AutoTokenizer": [None, "tokenization_evil.Evil"], "AutoProcessor": "processing_evil.Evil"}
    changed(folder, "tokenizer_config.json", auto_map=own, tokenizer_class="EvilTokenizer")
    (Path(folder) / "tokenizer.json").unlink(missing_ok=True)
    return str(folder)


@pytest.fixture
def evil(trained, tmp_path, marker):
    return with_code(shutil.copytree(trained / "whole", tmp_path / "evil"), marker)


@pytest.fixture(autouse=True)
def willing_user(monkeypatch):
    """Whoever is asked at the terminal says yes, as transformers would ask where nothing is said about trust."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")


# 1. No code of a model or a data set runs.


def test_the_planted_code_runs_where_it_is_trusted(evil, marker, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(ValueError, match="Evil"):
        models.load(evil, trust_remote_code=True)
    assert marker.exists(), "or the tests below would pass whatever plaudit did"


VERBS = {
    "train": ("--model_name_or_path", "EVIL", "--dataset_name", "DATA", "--use_cpu", "--max_steps", "1"),
    "doctor": ("--model_name_or_path", "EVIL", "--dataset_name", "DATA", "--use_cpu"),
    "verify": ("EVIL",),
    "merge": ("EVIL", "--output_dir", "OUT"),
    "score": ("--model", "EVIL", "--data", "DATA", "--output", "OUT.jsonl"),
    "evaluate": ("--model", "EVIL", "--benchmark", "DATA", "--output_dir", "OUT"),
    "audit": ("DATA", "--tokenizer", "EVIL"),
    "plan": ("--model", "EVIL", "--data", "DATA", "--gpu", "h100"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_runs_code_of_a_model(verb, evil, marker, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    places = {"EVIL": evil, "DATA": str(data), "OUT": str(tmp_path / "out"), "OUT.jsonl": str(tmp_path / "out.jsonl")}
    assert cli.main([verb, *(places.get(word, word) for word in VERBS[verb])]) == 1
    printed = capsys.readouterr()
    assert not marker.exists()
    assert re.search("brings Python code of its own", printed.out + printed.err)
    assert "trust_remote_code" in printed.out + printed.err
    assert "read files and tokens, delete, send" in printed.out + printed.err


@pytest.mark.parametrize("through", ["the model's own", "chat_template_path", "audit"])
def test_no_code_of_a_tokenizer_runs(through, trained, tmp_path, marker, data):
    from plaudit.audit import audit

    evil = with_code(shutil.copytree(trained / "whole", tmp_path / "evil"), marker, only_tokenizer=True)
    load = {
        "audit": lambda: audit(str(data), tokenizer=evil),
        "chat_template_path": lambda: tokens.adopt_chat_template(make_tokenizer(), evil),
        "the model's own": lambda: RewardModel.from_pretrained(evil),
    }[through]
    with pytest.raises(ValueError, match=SAY_NO):
        load()
    assert not marker.exists()


def test_a_tokenizer_that_is_read_without_its_code_is_said_to_be(trained, tmp_path, marker, caplog):
    folder = shutil.copytree(trained / "whole", tmp_path / "evil")
    kept = (folder / "tokenizer.json").read_text()
    with_code(folder, marker, only_tokenizer=True)
    (folder / "tokenizer.json").write_text(kept)
    RewardModel.from_pretrained(str(folder))
    assert "brings code for its tokenizer (tokenization_evil.Evil), which was not run" in caplog.text
    assert not marker.exists()


def test_what_only_looks_at_a_config_does_not_ask_whether_to_run_its_code(evil, marker):
    assert models.stored_vocabulary_size(evil) is None
    assert not marker.exists()


def test_an_adapter_cannot_bring_a_base_with_code(trained, evil, tmp_path, marker, data):
    adapter = shutil.copytree(trained / "adapter", tmp_path / "adapter")
    changed(adapter, "adapter_config.json", base_model_name_or_path=evil)
    with pytest.raises(ValueError, match=rf"the base of the adapter '{adapter}': .*{SAY_NO}"):
        RewardModel.from_pretrained(str(adapter))
    # The file of ours beside an adapter says what its base is loaded with, and could have said this too.
    for own in (
        {"trust_remote_code": True},
        {"use_safetensors": False},
        {"weights_only": False},
        {"quantization_config": {}},
    ):
        changed(adapter, "reward_base.json", num_labels=1, **own)
        with pytest.raises(ValueError, match=rf"reward_base\.json of '{adapter}' holds '{next(iter(own))}'"):
            RewardModel.from_pretrained(str(adapter))
        (adapter / "reward_base.json").unlink()
    assert not marker.exists()


def test_a_language_models_adapter_cannot_bring_a_base_with_code_either(language_model_path, evil, marker):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    language_model = AutoModelForCausalLM.from_pretrained(language_model_path)
    wrapped = get_peft_model(language_model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    wrapped.peft_config["default"].base_model_name_or_path = evil
    with pytest.raises(ValueError, match=SAY_NO):
        models.check(wrapped)
    assert not marker.exists()


@pytest.mark.parametrize(
    "planted",
    [
        {"auto_mapping": {"base_model_class": "Evil", "parent_library": "planted_module"}},
        {"megatron_config": {"a": 1}, "megatron_core": "planted_module"},
        {"peft_type": "planted_module.Evil"},
        {"custom_modules": {"Linear": "planted_module.Evil"}, "lora_bias": "planted_module"},
    ],
    ids=lambda planted: next(iter(planted)),
)
def test_an_adapters_config_imports_nothing(planted, trained, tmp_path, marker, monkeypatch):
    (tmp_path / "planted_module.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    # As a script's or `python -m`'s current directory is.
    monkeypatch.syspath_prepend(str(tmp_path))
    adapter = shutil.copytree(trained / "adapter", tmp_path / "adapter")
    changed(adapter, "adapter_config.json", **planted)
    try:
        RewardModel.from_pretrained(str(adapter))
    except ValueError as error:
        assert str(adapter) in str(error)  # noqa: PT017  # some are of no effect, and load
    assert not marker.exists()
    monkeypatch.delitem(sys.modules, "planted_module", raising=False)
    __import__("planted_module")
    monkeypatch.delitem(sys.modules, "planted_module")
    assert marker.exists(), "the module is one that could have been imported"


@pytest.mark.parametrize(
    "planted",
    [
        {"_attn_implementation": "owner/kernel"},
        {"attn_implementation": {"": "owner/kernel@main:f"}},
        {"text_config": {"attn_implementation": "owner/kernel"}},
        {"experts_implementation": "owner/kernel"},
    ],
    ids=str,
)
def test_a_config_cannot_have_kernels_fetched_and_run(planted, trained, tmp_path):
    folder = str(shutil.copytree(trained / "whole", tmp_path / "model"))
    changed(folder, "config.json", **planted)
    with pytest.raises(
        trust.Refused, match=r"asks for \w+ 'owner/kernel.*code from the Hub, and it was not run.*trust_remote_code"
    ):
        models.load(folder)


def test_a_proof_is_read_as_data(trained, tmp_path, marker):
    folder = shutil.copytree(trained / "whole", tmp_path / "model")
    (folder / "reward_model.json").write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(ValueError, match=r"reward_model\.json cannot be used"):
        RewardModel.from_pretrained(str(folder))
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_a_config_file_is_read_as_data(suffix, tmp_path, marker, capsys):
    file = tmp_path / f"run{suffix}"
    file.write_text(f"output_dir: !!python/object/apply:builtins.open [{str(marker)!r}, w]\n")
    assert cli.main(["train", "--config", str(file)]) == 1
    assert "python/object/apply:builtins.open is not for options" in capsys.readouterr().err
    assert not marker.exists()


def scripted(folder, marker, name):
    code = f"open({str(marker)!r}, 'w').close()\nimport datasets\nclass Evil(datasets.GeneratorBasedBuilder): pass\n"
    (folder / f"{name}.py").write_text(code)


@pytest.mark.parametrize(
    "planted", ["loading script", "script of the name", "pickles", "pandas metadata", "arrow extension", "features"]
)
def test_no_code_of_a_data_set_runs(planted, tmp_path, marker, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "corpus"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    rows = text_pairs(4)
    payload = pickle.dumps(Payload(marker))
    name, reads = str(folder), True
    if planted == "loading script":
        scripted(folder, marker, "corpus")
        write(folder / "train.jsonl", rows)
        reads = False
    elif planted == "script of the name":
        scripted(tmp_path, marker, "json")
        scripted(tmp_path, marker, "corpus")
        name = str(write(folder / "train.jsonl", rows))
    elif planted == "pickles":
        (folder / "train.pkl").write_bytes(payload)
        (folder / "dataset_info.pkl").write_bytes(payload)
        reads = False
    elif planted == "pandas metadata":
        table = pa.Table.from_pylist(rows)
        metadata = {
            b"pandas": payload,
            b"huggingface": json.dumps({"info": {"features": None}}).encode(),
        }
        name = str(folder / "train.parquet")
        pq.write_table(table.replace_schema_metadata(metadata), name)
    elif planted == "arrow extension":
        metadata = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": payload}
        fields = [pa.field(key, pa.string(), metadata=metadata) for key in rows[0]]
        name = str(folder / "train.arrow")
        table = pa.Table.from_arrays(
            [pa.array([row[key] for row in rows]) for key in rows[0]], schema=pa.schema(fields)
        )
        with pa.OSFile(name, "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    else:
        write(folder / "train.jsonl", rows)
        lines = f"dataset_info:\n  features: !!python/object/apply:builtins.open [{str(marker)!r}, w]\n"
        (folder / "README.md").write_text(f"---\n{lines}---\n")
        reads = False
    if reads:
        assert len(loading.load_splits(name)["train"]) == 4
    else:
        with pytest.raises((ValueError, FileNotFoundError)):
            loading.load_splits(name)
    assert not marker.exists()


# 2. Safetensors only.


def pickled(folder, marker=None, *, sharded=False):
    """Turn a directory's safetensors into pickles, with a payload among the weights where a marker is given."""
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    if marker is not None:
        weights["score.weight"] = Payload(marker)
    (folder / "model.safetensors").unlink()
    name = "pytorch_model-00001-of-00001.bin" if sharded else "pytorch_model.bin"
    torch.save(weights, folder / name)
    if sharded:
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, name)}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return str(folder)


@pytest.mark.parametrize("sharded", [False, True])
def test_pickled_weights_are_refused_with_the_line_that_converts_them(sharded, trained, tmp_path, tokenizer):
    folder = pickled(shutil.copytree(trained / "whole", tmp_path / "it's a model"), sharded=sharded)
    wanted = RewardModel.from_pretrained(str(trained / "whole")).score(["a cat", "a dog"])
    with pytest.raises(
        trust.Refused, match=r"has its weights in pytorch_model\.bin.*a pickle.*use_safetensors"
    ) as caught:
        RewardModel.from_pretrained(folder)
    asked = RewardModel.from_pretrained(folder, use_safetensors=False)
    assert asked.score(["a cat", "a dog"]) == pytest.approx(wanted)
    line = shlex.split(str(caught.value).split("safetensors: ")[1].split("; or, where")[0])
    assert line[:2] == ["python", "-c"]
    if not sharded:  # the line is the same
        forked(lambda: exec(line[2]))
        assert RewardModel.from_pretrained(folder).score(["a cat", "a dog"]) == pytest.approx(wanted)


def forked(work):
    """Run a function in a copy of this process, which the test's own state does not see."""
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("ask", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_payload_among_pickled_weights_does_not_run_even_where_pickles_are_asked_for(
    ask, sharded, trained, tmp_path, marker
):
    folder = pickled(shutil.copytree(trained / "whole", tmp_path / "model"), marker, sharded=sharded)
    options = {"use_safetensors": False} if ask else {}
    with pytest.raises(ValueError, match="cannot be loaded" if ask else "a pickle, which can hold code"):
        models.load(folder, options)
    assert not marker.exists()
    name = "pytorch_model-00001-of-00001.bin" if sharded else "pytorch_model.bin"
    torch.load(Path(folder) / name, weights_only=False)
    assert marker.exists(), "the payload is one that would have run"


def test_pickles_are_not_read_with_all_that_they_may_run_whatever_is_asked(trained):
    with pytest.raises(ValueError, match="weights_only=False would run whatever code"):
        models.load(str(trained / "whole"), {"use_safetensors": False, "weights_only": False})


def test_what_transformers_is_given_is_cautious_also_for_names_on_the_hub():
    assert trust.cautious({}) == {"use_safetensors": True, "trust_remote_code": False}
    assert trust.cautious({"use_safetensors": None, "trust_remote_code": "yes"}) == trust.cautious({})
    asked = trust.cautious({"use_safetensors": False, "trust_remote_code": True, "revision": "x"})
    assert asked == {"use_safetensors": None, "trust_remote_code": True, "revision": "x"}


def test_an_index_of_safetensors_leads_to_no_pickle_and_out_of_no_directory(trained, tmp_path, marker):
    folder = shutil.copytree(trained / "whole", tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    torch.save({"score.weight": Payload(marker)}, folder / "part.bin")
    for name, problem in (
        ("part.bin", "has its weights in part.bin, a pickle"),
        ("../outside.safetensors", "names '../outside.safetensors', which is outside the directory; mend the index"),
        (str(tmp_path / "outside.safetensors"), "which is outside the directory"),
    ):
        changed(folder, "model.safetensors.index.json", metadata={}, weight_map={"score.weight": name})
        with pytest.raises(ValueError, match=problem):
            models.load(str(folder))
    (folder / "model.safetensors.index.json").unlink()
    torch.save({"score.weight": Payload(marker)}, folder / "adapter_model.bin")
    changed(folder, "config.json", transformers_weights="adapter_model.bin")
    with pytest.raises(trust.Refused, match="has its weights in adapter_model.bin, a pickle"):
        models.load(str(folder))
    assert not marker.exists()


def test_a_pickled_adapter_is_refused_with_the_line_that_converts_it(trained, tmp_path, marker):
    from safetensors.torch import load_file

    folder = shutil.copytree(trained / "adapter", tmp_path / "adapter")
    wanted = RewardModel.from_pretrained(str(folder)).score(["a cat"])
    weights = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(weights, folder / "adapter_model.bin")
    with pytest.raises(trust.Refused, match=r"has its weights in adapter_model\.bin, a pickle") as caught:
        RewardModel.from_pretrained(str(folder))
    # The base has safetensors, which are read all the same.
    assert RewardModel.from_pretrained(str(folder), use_safetensors=False).score(["a cat"]) == pytest.approx(wanted)
    line = shlex.split(str(caught.value).split("safetensors: ")[1].split("; or, where")[0])
    forked(lambda: exec(line[2]))
    assert RewardModel.from_pretrained(str(folder)).score(["a cat"]) == pytest.approx(wanted)
    (folder / "adapter_model.safetensors").unlink()
    torch.save({**weights, "evil": Payload(marker)}, folder / "adapter_model.bin")
    with pytest.raises(ValueError, match="has no weights that can be read"):
        RewardModel.from_pretrained(str(folder), use_safetensors=False)
    assert not marker.exists()


def test_an_adapter_on_a_pickled_base_is_refused(trained, tmp_path):
    base = pickled(shutil.copytree(trained / "whole", tmp_path / "base"))
    adapter = shutil.copytree(trained / "adapter", tmp_path / "adapter")
    changed(adapter, "adapter_config.json", base_model_name_or_path=base)
    with pytest.raises(
        trust.Refused, match=rf"the base of the adapter '{adapter}': '{base}' has its weights in pytorch_model\.bin"
    ):
        models.load(str(adapter))


def trainer_of(model_path, folder, **options):
    from datasets import Dataset

    args = RewardConfig(
        output_dir=str(folder), use_cpu=True, per_device_train_batch_size=2, max_steps=2, save_steps=1, **options
    )
    return RewardTrainer(model_path, args, train_dataset=Dataset.from_list(text_pairs(8)))


@pytest.fixture(scope="module")
def run_with_checkpoint(model_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    trainer_of(model_path, folder, hub_token=TOKENS["hub_token"]).train()
    return folder


def unlisted(folder):
    """Take away the list by which plaudit knows its own checkpoints: what is left is as any tool's is."""
    for each in folder.glob("checkpoint-*/checkpoint_files.json"):
        each.unlink()
    return folder


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_payload_in_a_checkpoint_does_not_run_on_resume(file, run_with_checkpoint, model_path, tmp_path, marker):
    folder = unlisted(shutil.copytree(run_with_checkpoint, tmp_path / "run"))
    (folder / "checkpoint-1" / file).write_bytes(b"")
    torch.save(Payload(marker), folder / "checkpoint-1" / file)
    # What it says of a checkpoint that cannot be read is tested with the checkpoints; here, that nothing runs.
    with contextlib.suppress(Exception):
        trainer_of(model_path, folder).train(resume_from_checkpoint=str(folder / "checkpoint-1"))
    assert not marker.exists()
    torch.load(folder / "checkpoint-1" / file, weights_only=False)
    assert marker.exists(), "the payload is one that would have run"


def test_a_checkpoint_with_pickled_weights_is_refused_on_resume(run_with_checkpoint, model_path, tmp_path, marker):
    folder = unlisted(shutil.copytree(run_with_checkpoint, tmp_path / "run"))
    pickled(folder / "checkpoint-1", marker)
    with pytest.raises(Exception, match=r"has its weights in pytorch_model\.bin, a pickle") as caught:
        trainer_of(model_path, folder).train(resume_from_checkpoint=str(folder / "checkpoint-1"))
    assert isinstance(caught.value, ValueError)
    assert not marker.exists()


# 3. Chat templates run in a sandbox.

ESCAPES = (
    "{{ cycler.__init__.__globals__.os.popen('touch MARKER').read() }}",
    "{{ lipsum.__globals__['os'].popen('touch MARKER').read() }}",
    "{{ joiner.__init__.__globals__.os.system('touch MARKER') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''|attr('__class__')|attr('__mro__') }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ raise_exception.__globals__['__builtins__']['open']('MARKER', 'w') }}",
    "{{ strftime_now.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as p %}{{ p }}",
    "{{ messages.append({'role': 'user', 'content': 'x'}) }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
)


@pytest.mark.parametrize("template", ESCAPES, ids=range(len(ESCAPES)))
def test_a_chat_template_cannot_leave_its_sandbox(template, marker):
    template = template.replace("MARKER", str(marker))
    conversation = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    tokenizer = make_tokenizer(chat_template=template)
    try:
        ids = tokens.encode_conversations(tokenizer, [conversation], [None], [{}], lambda _: "row 1")
    except ValueError as error:
        assert re.search("row 1: the chat template refuses|is not valid Jinja", str(error))  # noqa: PT017
    else:
        # An attribute that the sandbox hides is undefined, and prints as nothing.
        assert not tokenizer.decode(ids[0]).strip()
    assert not marker.exists()
    assert len(conversation) == 2


@pytest.mark.parametrize("template", ESCAPES[:3], ids=range(3))
def test_these_templates_would_leave_a_plain_environment(template, marker):
    jinja2.Environment().from_string(template.replace("MARKER", str(marker))).render()
    assert marker.exists()


@pytest.mark.parametrize(
    "through", ["score", "evaluate --template", "train --chat_template_path", "a row's own template"]
)
def test_every_way_to_a_template_ends_in_the_sandbox(through, trained, tmp_path, marker):
    from datasets import Dataset

    from plaudit.evaluation import evaluate

    text = ESCAPES[0].replace("MARKER", str(marker))
    file = tmp_path / "evil.jinja"
    file.write_text(text)
    model = RewardModel.from_pretrained(str(trained / "whole"))
    data = write(tmp_path / "data.jsonl", conversations(4))
    one = conversations(1)[0]
    one = one["prompt"] + one["chosen"]
    args = RewardConfig(output_dir=str(tmp_path / "out"), use_cpu=True, chat_template_path=str(file))

    def score_with_it():
        model.tokenizer.chat_template = text
        model.score([one])

    attack = {
        "score": score_with_it,
        "evaluate --template": lambda: evaluate(model, str(data), template=str(file), num_resamples=100),
        "train --chat_template_path": lambda: RewardTrainer(
            str(trained / "whole"), args, train_dataset=Dataset.from_list(conversations(4))
        ),
        "a row's own template": lambda: model.score(
            [{"messages": one, "chat_template_kwargs": {"chat_template": text}}]
        ),
    }[through]
    with pytest.raises(ValueError, match="the chat template refuses this conversation|'chat_template_kwargs' sets"):
        attack()
    assert not marker.exists()


# 4. and 5. What the code may not say.

FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads", "marshal.loads", "dill.load",
    "dill.loads", "joblib.load", "shelve.open", "pd.read_pickle", "jinja2.Template", "Template", "commands.getoutput",
    "os.execv", "os.execvp", "os.spawnl", "os.spawnv", "tempfile.mktemp", "Markup", "markupsafe.Markup",
}  # fmt: skip
NETWORK = {"socket", "requests", "urllib", "http", "httpx", "aiohttp", "ftplib", "smtplib", "wandb", "telnetlib"}


# What a data loader's worker sends to the process that started it, and nobody else can reach.
ALLOWED = {"batches.py": ["imports pickle", "pickle.loads"]}


def faults(text, file):
    """Return what a source file says that no source file may: code from texts, unsafe readers, a shell, the network."""
    found = []
    for node in ast.walk(ast.parse(text)):
        where = f"{file}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [
                f"{where}: imports {name}"
                for name in names
                if name.split(".")[0] in NETWORK | {"pickle", "marshal", "dill"}
            ]
        if not isinstance(node, ast.Call):
            continue
        name, words = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        arguments = [ast.unparse(argument) for argument in node.args]
        if name in FORBIDDEN_CALLS:
            found.append(f"{where}: {name}")
        if name.endswith("torch.load") and words.get("weights_only") != "True":
            found.append(f"{where}: {name} without weights_only=True")
        if name == "yaml.load" and arguments[1:] not in (["yaml.BaseLoader"], ["yaml.SafeLoader"]):
            found.append(f"{where}: {name} without a safe loader")
        if words.get("shell", "False") != "False":
            found.append(f"{where}: a shell")
        if words.get("allow_pickle", "False") != "False":
            found.append(f"{where}: allow_pickle")
        if (
            name.endswith("Environment")
            and not name.endswith("SandboxedEnvironment")
            and words.get("autoescape") != "True"
        ):
            found.append(f"{where}: {name} without autoescape")
        # Left open, transformers asks at the terminal; two stars bring what trust.cautious has decided.
        is_loaded = re.search(r"\bAuto\w+\.from_pretrained$", name) is not None
        if is_loaded and "trust_remote_code" not in words and words.get(None) != "cautious" and file != "demo.py":
            found.append(f"{where}: {name} without trust_remote_code")
    return found


@pytest.mark.parametrize("file", sorted(path.name for path in SOURCE.glob("*.py")))
def test_no_file_runs_texts_reads_pickles_starts_a_shell_or_opens_the_network(file):
    found = [line.split(": ", 1)[1] for line in faults((SOURCE / file).read_text(encoding="utf-8"), file)]
    assert found == ALLOWED.get(file, [])


@pytest.mark.parametrize(
    "line",
    ["eval(x)", "os.system(x)", "subprocess.run(x, shell=True)", "pickle.loads(x)", "import pickle", "torch.load(x)", "yaml.load(x)",
     "yaml.load(x, yaml.Loader)", "torch.load(x, weights_only=False)", "jinja2.Environment()", "from urllib import request", "Template(x)",
     "AutoTokenizer.from_pretrained(x)", "AutoConfig.from_pretrained(x, **kwargs)", "np.load(x, allow_pickle=True)"],
)  # fmt: skip
def test_the_check_sees_what_is_forbidden(line):
    assert faults(line, "made_up.py")


def test_only_our_own_pictures_stand_in_a_page_as_they_are():
    for page in SOURCE.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert re.findall(r"[\w.]+\|safe|autoescape|<script|javascript:", text) == (
            ["picture.svg|safe"] if page.stem == "page" else []
        )


def test_a_shared_statement_holds_no_name_of_the_data(tmp_path):
    from plaudit.audit import audit

    names = ('"; DROP TABLE pairs; --', "row'); COPY pairs TO 'pwned.csv'; --", "x FROM read_csv('/etc/passwd') --")
    rows = [
        {**row, **dict.fromkeys(names, "'; ATTACH 'pwned.db'; --"), "source": names[k % 3]}
        for k, row in enumerate(text_pairs(30))
    ]
    file = write(tmp_path / "'; COPY (SELECT 1) TO 'pwned.csv'; --.jsonl", rows)
    found = audit(str(file))
    assert found["pairs"] == 30
    assert {one["source"] for one in audit(str(file), source="source")["sources"]["listed"]} == set(names)
    assert not list(tmp_path.glob("pwned*"))
    assert not list(Path.cwd().glob("pwned*"))


# 4. Links that lead out.


@pytest.mark.parametrize("name", ["README.md", "reward_model.json", "config.json", "model.safetensors", "checkpoint-1"])
def test_a_link_out_of_the_output_directory_is_refused_before_anything_is_trained(name, model_path, tmp_path):
    out, outside = tmp_path / "out", tmp_path / "outside"
    out.mkdir()
    if name.startswith("checkpoint"):
        outside.mkdir()
    else:
        outside.write_text("mine")
    (out / name).symlink_to(outside)
    with pytest.raises(
        ValueError, match=rf"output_dir: '{name}' in '{out}' is a link to '{outside}', so that saving would write there"
    ):
        trainer_of(model_path, out)
    assert outside.is_dir() or outside.read_text() == "mine"


def test_links_that_stay_inside_and_directories_that_are_links_are_the_users_own_affair(tmp_path):
    (tmp_path / "real" / "checkpoint-1").mkdir(parents=True)
    (tmp_path / "run").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "checkpoint-2").symlink_to("checkpoint-1")
    (tmp_path / "real" / "data").symlink_to(tmp_path)
    inside.require_no_way_out(tmp_path / "run")
    inside.require_no_way_out(tmp_path / "not there")


def test_a_link_planted_later_is_seen_when_it_would_be_written_to(run_with_checkpoint, model_path, tmp_path):
    trainer = trainer_of(model_path, tmp_path / "out")
    (tmp_path / "outside.txt").write_text("mine")
    (tmp_path / "out" / "README.md").symlink_to(tmp_path / "outside.txt")
    with pytest.raises(ValueError, match="is a link to"):
        trainer.save_model()
    assert (tmp_path / "outside.txt").read_text() == "mine"


def test_scoring_and_reports_replace_a_link_and_leave_what_it_led_to(trained, data, tmp_path):
    from plaudit.bulk import score_data

    (tmp_path / "mine.jsonl").write_text("mine")
    (tmp_path / "scored.jsonl").symlink_to(tmp_path / "mine.jsonl")
    score_data(str(trained / "whole"), str(data), str(tmp_path / "scored.jsonl"), overwrite=True, device="cpu")
    assert (tmp_path / "mine.jsonl").read_text() == "mine"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "again.jsonl.parts").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"again\.jsonl\.parts' is a link"):
        score_data(str(trained / "whole"), str(data), str(tmp_path / "again.jsonl"), device="cpu")
    assert not list((tmp_path / "elsewhere").iterdir())


# 6. Tokens.


def test_tokens_are_hidden_wherever_they_stand(monkeypatch, caplog):
    monkeypatch.setenv("HF_TOKEN", "environmenttoken")
    monkeypatch.setattr(redaction, "_known", {"remembered"})
    text = "x environmenttoken remembered hf_abcdefghijklmnopqrst https://me:secret@host/data and hf_hub_download"
    assert redaction.redact(text) == "x *** *** *** https://***@host/data and hf_hub_download"
    say(text)
    assert "secret" not in caplog.text
    assert "environmenttoken" not in caplog.text


@pytest.mark.parametrize("door", ["model", "data set", "benchmark", "tokenizer"])
def test_a_name_with_a_password_is_refused_without_showing_it(door):
    from plaudit.benchmarks import load_benchmark
    from plaudit.token_sample import load_tokenizer

    load = {
        "model": models.load,
        "data set": loading.load_splits,
        "benchmark": load_benchmark,
        "tokenizer": load_tokenizer,
    }[door]
    with pytest.raises(
        ValueError, match=rf"{door} 'https://\*\*\*@host/x\.jsonl' has a password or a token in it.*HF_TOKEN"
    ) as caught:
        load("https://user:verysecret@host/x.jsonl")
    assert "verysecret" not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--model_init_kwargs", "{'token': 'verysecret'", "--model_name_or_path", "m", "--dataset_name", "d"),
        ("train", "--hub_tokn=verysecret"),
        ("train", "--config", "CONFIG"),
        (
            "score",
            "--model",
            "https://u:verysecret@h/m",
            "--data",
            "https://u:verysecret@h/d.jsonl",
            "--output",
            "o.jsonl",
        ),
        ("audit", "https://u:verysecret@h/d.jsonl"),
        ("evaluate", "--model", "m", "--benchmark", "https://u:verysecret@h/d.jsonl"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_no_error_of_the_command_shows_a_token(words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "run.yaml"
    config.write_text("model_name_or_path: x\nhub_token: verysecret: [\n")
    assert cli.main([str(config) if word == "CONFIG" else word for word in words]) in (1, 2)
    printed = capsys.readouterr()
    assert printed.err
    assert "verysecret" not in printed.out + printed.err


def test_a_config_shows_and_saves_no_token_and_keeps_it_for_its_copies(tmp_path):
    import copy
    import dataclasses

    config = RewardConfig(
        output_dir=str(tmp_path), hub_token="verysecret", model_init_kwargs={"token": "alsosecret", "revision": "x"}
    )
    stored = io.BytesIO()
    torch.save(config, stored)
    shown = [str(config), repr(config), config.to_json_string(), str(config.to_dict()), str(config.to_sanitized_dict())]
    for text in (*shown, stored.getvalue().decode("latin-1")):
        assert "verysecret" not in text
        assert "alsosecret" not in text
    assert "'revision': 'x'" in str(config.to_dict())
    for same in (copy.copy(config), copy.deepcopy(config), dataclasses.replace(config, seed=1)):
        assert same.hub_token == "verysecret"
        assert same.model_init_kwargs == {"token": "alsosecret", "revision": "x"}
    assert copy.deepcopy(config).model_init_kwargs is not config.model_init_kwargs


# 7. and 8. Pages and cards.


class Page(HTMLParser):
    """What a browser would make of a page: its elements, and the attributes that could do something."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.dangerous, self.policies = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.add(tag)
        for name, value in attributes:
            outside = name in ("href", "src", "action", "formaction", "data", "xlink:href") and not (
                value or ""
            ).startswith(("#", "data:,"))
            if name.startswith("on") or outside or "javascript:" in (value or "").lower():
                self.dangerous.append((tag, name, value))
        if dict(attributes).get("http-equiv") == "Content-Security-Policy":
            self.policies.append(dict(attributes)["content"])


def require_harmless(text):
    page = Page(text)
    assert not page.elements & {
        "script",
        "iframe",
        "object",
        "embed",
        "img",
        "base",
        "form",
        "foreignobject",
        "marquee",
    }
    assert page.dangerous == []
    assert len(page.policies) == 1
    assert "default-src 'none'" in page.policies[0]
    assert "script-src" not in page.policies[0]


ATTACKS = (
    "<script>document.title='pwned'</script>",
    '"><img src=x onerror="document.title=\'pwned\'">',
    "</style><script>document.title='pwned'</script>",
    "]]><svg onload=document.title='pwned'>",
    "{{7*7}}{% raw %}<b>",
    "$\\frac{a}{$ ^_{",
    "[x](javascript:document.title='pwned')",
    "a\x00\x07\x1b[31m\u202eb\ud800",
    "../../pwned",
    "$(touch pwned)`touch pwned`;touch pwned",
)


def test_names_make_no_markup_no_link_and_no_second_header_in_a_card():
    for attack in (
        *ATTACKS,
        HOSTILE,
        "a\n---\nlicense: evil\n---\n# b",
        "x | y\n|z|",
        "https://evil.example www.evil.example",
        "`code`",
        "`<b>x`",
    ):
        made = facts(
            path=f"/runs/{attack}",
            model_name=attack,
            base_model=attack,
            datasets=(attack,),
            tags=(attack,),
            data={attack: attack},
            training={attack: attack},
            evaluation={attack: {attack: 0.5, "accuracy": 0.5}},
            base_values={"pad_token_id": 1, "problem_type": attack},
        )
        card = model_card(made)
        assert (
            header_of(card)["model_name"] == attack.encode("utf-8", "backslashreplace").decode() or "\ud800" in attack
        )
        body = card.split("\n---\n", 1)[1]
        assert not re.search(r"^---$|^license:", body, re.M)
        fences = re.split(r"^```(?:python)?$", body, flags=re.M)
        assert len(fences) == 3, "one block of code"
        ast.parse(fences[1].replace("\ud800", ""))
        prose = re.sub(r"(`+).*?\1", "", fences[0] + fences[2])
        prose = prose.replace("https://www.jstor.org", "")
        assert not re.search(r"<[a-z!/]|(?<!\\)\]\(javascript|://|www\.", prose, re.I)


def test_what_a_card_and_a_message_offer_for_a_shell_is_quoted():
    card = model_card(facts(path="runs/$(touch pwned) x", base_values={"pad_token_id": 1}))
    assert "plaudit verify 'runs/$(touch pwned) x'" in card
    assert "plaudit merge 'runs/$(touch pwned) x' --output_dir" in card


# 4. to 9. together: every verb, watched.

NASTY = "$(touch pwned)`touch pwned`;touch pwned<b>"
NAMES = {
    "run": f"../../../pwned/{NASTY}",
    "set": f"../../../pwned {NASTY}\n---\nx",
    "html": f"{ATTACKS[1]}\x1b[31m\u202e",
    "card": "a\n---\nlicense: evil\n---\n<script>alert(1)</script>",
    "benchmark": f"../../../pwned<script>alert(1)</script>{NASTY}",
    **TOKENS,
}


@pytest.fixture(scope="module")
def watched(model_path, tmp_path_factory):
    """A folder in which watched_run.py has used every verb on hostile names; its `seen.json`, and what was there before."""
    root = tmp_path_factory.mktemp("watched")
    for name in ("in", "out", "home", "cwd", "tmp"):
        (root / name).mkdir()
    model = root / "in" / f"model {NASTY}"
    shutil.copytree(model_path, model)
    # Half a surrogate pair is refused by the readers of JSON.
    readable = [attack.replace("\ud800", "?") for attack in ATTACKS]
    pairs = [
        {
            **row,
            "source": readable[k % len(readable)],
            '"; DROP TABLE pairs; --': NASTY,
            "../../pwned": "../../pwned",
        }
        for k, row in enumerate(text_pairs(24))
    ]
    write(root / "in" / "pairs.jsonl", pairs)
    rows = [
        {**row, "id": f"{readable[k % len(readable)]} {k}", "subset": readable[k % len(readable)]}
        for k, row in enumerate(text_pairs(40, seed=1))
    ]
    for row in rows[::3]:
        row["prompt"] = row["prompt"] + "".join(readable)
    write(root / "in" / "benchmark.jsonl", rows)
    (root / "in" / "names.json").write_text(json.dumps({**NAMES, "model": str(model)}))
    before = tree_of(root)
    environment = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("PATH", "LANG", "LC_", "VIRTUAL", "COVERAGE"))
    }
    environment |= {
        "HOME": str(root / "home"),
        "TMPDIR": str(root / "tmp"),
        "HF_TOKEN": TOKENS["HF_TOKEN"],
        "OMP_NUM_THREADS": "1",
    }
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(SOURCE.parent)}
    with (root / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("watched_run.py")), str(root)],
            cwd=root / "cwd", env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(timeout=300)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    said = (root / "log.txt").read_text(encoding="utf-8", errors="replace")
    assert process.returncode == 0, said[-800:]
    return root, json.loads((root / "seen.json").read_text()), before


def tree_of(root):
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def test_every_verb_of_the_watched_run_ends_well(watched):
    root, seen, _ = watched
    assert seen["failed"] == [], (root / "log.txt").read_text(errors="replace")[-800:]
    made = ["whole/reward_model.json", "adapter/adapter_config.json", "merged/model.safetensors", "scored.jsonl", "one/report.html",
            "compared/comparison.html", "whole/audit.json", "whole/report.html"]  # fmt: skip
    assert [name for name in made if not (root / "out" / name).is_file()] == []


def test_nothing_is_written_outside_the_output_directories_and_the_caches(watched):
    root, seen, before = watched
    allowed = (root / "out", root / "home" / ".cache", root / "home" / ".config", root / "tmp")
    outside = [path for path in seen["written"] if not any(Path(path).is_relative_to(place) for place in allowed)]
    assert [path for path in outside if not path.startswith(("/dev/", "/proc/"))] == []
    # Rust and C++ write files that Python does not see opened.
    after = tree_of(root)
    new = {name for name, changed in after.items() if before.get(name) != changed} - {"log.txt", "seen.json"}
    assert [name for name in new if not name.startswith(("out/", "home/.cache/"))] == []
    assert not before.keys() - after.keys()
    assert any(path.endswith("trainer_state.json") for path in seen["written"]), "the watch saw something"


def test_no_name_becomes_a_file_or_reaches_a_shell(watched):
    root, seen, _ = watched
    assert [
        path
        for path in (*root.glob("out/**/*"), *root.glob("cwd/*"), *root.parent.glob("*pwned*"))
        if "pwned" in path.name
    ] == []
    assert [words for words in seen["started"] if "pwned" in words or "/bin/sh" in words] == []


def test_no_name_sends_a_control_code_to_the_terminal(watched):
    shown = (watched[0] / "log.txt").read_bytes()
    # Bars move the cursor up; what colours, hides or reorders could only come from a name.
    assert re.findall(rb"\x1b(?!\[A)[^a-zA-Z]*.|\x00|\x07|\xe2\x80\xae", shown) == []
    assert b"\xe2\x9f\xa8U+001B\xe2\x9f\xa9[31m" in shown, "the names are there"


def test_no_address_is_looked_up_or_connected_to(watched):
    assert watched[1]["asked"] == []


def texts_in(path):
    """Give all that can be read in a file: its bytes, and those packed in it."""
    data = path.read_bytes()
    yield data
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as packed:
            yield from (packed.read(name) for name in packed.namelist())
    elif path.suffix == ".gz":
        yield gzip.decompress(data)
    elif path.suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        yield (str(table.to_pydict()) + str(table.schema.metadata)).encode()


def test_no_planted_token_is_in_anything_written_or_printed(watched):
    root = watched[0]
    files = [path for place in ("out", "home", "tmp", "cwd") for path in (root / place).rglob("*") if path.is_file()]
    files.append(root / "log.txt")
    assert len(files) > 50
    found = [
        (str(path), secret)
        for path in files
        for text in texts_in(path)
        for secret in TOKENS.values()
        if secret.encode() in text
    ]
    assert found == []


def test_the_search_for_tokens_sees_into_packed_files(tmp_path):
    torch.save({"token": TOKENS["hub_token"]}, tmp_path / "args.bin")
    assert any(TOKENS["hub_token"].encode() in text for text in texts_in(tmp_path / "args.bin"))


PAGES = ("one/report.html", "compared/comparison.html", "whole/report.html", "adapter")


@pytest.mark.parametrize("name", PAGES[:3])
def test_hostile_names_make_no_element_in_a_page(name, watched):
    text = (watched[0] / "out" / name).read_text(encoding="utf-8")
    require_harmless(text)
    assert "pwned" in text, "the names are there"
    assert "{{7*7}}" in text, "and no template has computed them"


def test_the_check_of_pages_sees_what_is_dangerous():
    policy = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\">"
    require_harmless(f"{policy}<a href='#x'>x</a>")
    for part in ("<script>", "<p onclick=x>", "<a href='javascript:x'>", "<a href='https://x'>", "<img src=x>", policy):
        with pytest.raises(AssertionError):
            require_harmless(policy + part)


def test_a_browser_runs_nothing_in_the_pages(watched, tmp_path):
    if chromium.find() is None:
        pytest.skip("there is no Chromium to look at the pages with")
    with chromium.Browser(tmp_path / "profile") as browser:
        for name in PAGES[:3]:
            page = browser.open(watched[0] / "out" / name)
            assert page.value("document.title") != "pwned"
            assert page.value("document.scripts.length") == 0
            assert page.value("document.querySelectorAll('img, iframe, object, embed').length") == 0
            assert [url for url in page.requests() if not url.startswith(("file:", "data:"))] == []
            # What of an attack got past the escaping would still not run: the page's own policy says no.
            page.call(
                "Runtime.evaluate",
                expression="document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran=1\">')",
            )
            page.call("Runtime.evaluate", expression="new Promise(r => setTimeout(r, 100))", awaitPromise=True)
            assert page.value("window.ran") is None
            page.close()


def test_the_cards_of_the_watched_run_hold_one_header_and_no_markup(watched):
    for folder in ("whole", "adapter", "merged"):
        card = (watched[0] / "out" / folder / "README.md").read_text(encoding="utf-8")
        header, body = card.removeprefix("---\n").split("\n---\n", 1)
        assert isinstance(yaml.safe_load(header), dict)
        assert not re.search(r"^---$|^license: evil", body, re.M)
        assert not re.search(r"<script|<img|<b>", re.sub(r"(`+).*?\1", "", body, flags=re.S))


# 9. No telemetry.


def test_nothing_reports_anywhere_unless_asked(tmp_path, monkeypatch):
    # Merely being installed, or being named in the environment, turns no reporter on.
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", "http://cluster.example")
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: True)
    assert RewardConfig(output_dir=str(tmp_path)).report_to == []
    assert RewardConfig(output_dir=str(tmp_path), report_to="kubeflow").report_to == ["kubeflow"]

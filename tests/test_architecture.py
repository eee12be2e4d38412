"""The promises that no single module can keep: the order of the files, and what importing costs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import plaudit

SOURCE = Path(plaudit.__file__).parent
# Reading order: a file imports only from files above it.
ORDER = """
redaction say hub caches memory faults values inside compat argument_checks config converters records formats loading config_file options tree losses metrics running checkpoints preemption calibration
resampling suites score_rows outcomes best_of ties strata behaviour agreement sheet composites figures readable comparison
attention plots wording gallery versus listing audit_page page report results card trust patience tokens schemas benchmarks columns
tables sides measures census overlap token_sample audit_text conditions audit prepare collate batches partitioned rewards probe
adapters model proof diagnosis scorable rendering inference scoring sequences evaluation checks case read_outs
trials doctor scored sharding setup facts benchmark_sets shortage evaluator kept attempts saving resumable watch trainer training_results run checkup
machines shapes workload footprint duration blueprint slices plan_text plan blocks job
bulk merging demo cli __main__ __init__
""".split()


def imported_modules(name: str) -> set[str]:
    """Return which of our modules a file imports, also inside functions; what only a type checker reads is left out."""
    tree = ast.parse((SOURCE / f"{name}.py").read_text(encoding="utf-8"))
    only_types = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if node in only_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("plaudit.")}
        elif isinstance(node, ast.ImportFrom) and node.module == "plaudit":
            found |= {alias.name for alias in node.names if alias.name in ORDER}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("plaudit."):
            found.add(node.module.split(".")[1])
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{name}.py: imports are absolute here"
    return found


def test_the_list_names_every_file_and_no_other():
    assert sorted(ORDER) == sorted(file.stem for file in SOURCE.glob("*.py"))


def test_the_package_is_one_flat_folder():
    assert not [path for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"]


@pytest.mark.parametrize("name", ORDER)
def test_a_file_imports_only_from_files_above_it(name):
    above = ORDER[: ORDER.index(name)]
    assert imported_modules(name) <= set(above)


def test_the_check_sees_imports():
    assert {"config", "trainer"} <= imported_modules("demo")
    assert "run" in imported_modules("cli"), "imports inside functions count too"


@pytest.mark.parametrize("name", ORDER)
def test_a_file_opens_with_a_sentence_that_says_what_it_is(name):
    docstring = ast.get_docstring(ast.parse((SOURCE / f"{name}.py").read_text(encoding="utf-8")))
    assert docstring
    assert docstring.splitlines()[0].rstrip().endswith((".", ","))


def test_contributing_gives_the_same_order():
    text = (SOURCE.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("| group | files, in order |")[2].partition("\n\n")[0]
    assert re.findall(r"`(\w+)`", table) == ORDER


@pytest.mark.parametrize(
    "statement",
    [
        "import plaudit",
        "import plaudit.say, plaudit.compat, plaudit.converters, plaudit.formats, plaudit.loading, plaudit.metrics, plaudit.cli",
        "import plaudit; dir(plaudit); plaudit.formats; plaudit.__version__",
    ],
)
def test_importing_loads_neither_torch_nor_transformers_nor_datasets(statement):
    code = f"import sys; {statement}; print(*sorted({{'torch', 'transformers', 'datasets'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_every_public_name_can_be_had():
    for name in plaudit.__all__:
        assert getattr(plaudit, name) is not None
    assert set(plaudit.__all__) <= set(dir(plaudit))


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'plaudit' has no attribute 'Rewarder'"):
        _ = plaudit.Rewarder

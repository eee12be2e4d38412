"""Config files in YAML: what each key is, and that none is read for ever, or otherwise than it was written."""

import datetime

import pytest

from plaudit import config_file
from plaudit.config_file import Entry, read_config


@pytest.fixture
def read(tmp_path):
    def of(content):
        file = tmp_path / "run.yaml"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_config(file)

    return of


def test_a_key_has_the_word_that_was_written_and_what_yaml_makes_of_it(read):
    assert read("rate: 1e-4\nbf16: no\nday: 2020-01-02\nnames: [a, 2]\nmore: {x: 1}\nnothing:\n") == [
        Entry("rate", "1e-4", "1e-4"),
        Entry("bf16", "no", False),
        Entry("day", "2020-01-02", datetime.date(2020, 1, 2)),
        Entry("names", ["a", "2"], ["a", 2]),
        Entry("more", {"x": "1"}, {"x": 1}),
        Entry("nothing", "", None),
    ]


def test_json_is_read_too(read):
    assert read('{"seed": 1, "names": ["a"]}') == [Entry("seed", "1", 1), Entry("names", ["a"], ["a"])]


@pytest.mark.parametrize("content", ["", "# a comment\n", "---\n", "null\n", "\ufeff"])
def test_a_file_without_keys_holds_none(read, content):
    assert read(content) == []


def test_an_alias_is_what_it_names(read):
    assert read("a: &x [p, q]\nb: *x\n")[1] == Entry("b", ["p", "q"], ["p", "q"])


def laughs(levels):
    text = "&a0 [x, x]"
    for level in range(1, levels):
        text = f"&a{level} [{text}, *a{level - 1}]"
    return text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (f"names: {laughs(40)}\n", "written out, its aliases are more than 10,000 values"),
        (f"more: {{a: {laughs(40)}}}\n", "written out, its aliases are more than 10,000 values"),
        ("a: &x [*x]\n", "line 1: an alias stands inside what it names"),
        ("a: &x {b: *x}\n", "line 1: an alias stands inside what it names"),
        ("base: &b {x: 1}\nmore:\n  <<: *b\n", "line 3: '<<' merges nothing here"),
        ("seed: 1\nseed: 2\n", "key 'seed' is there twice"),
        ("max-steps: 1\nmax_steps: 2\n", "key 'max_steps' is there twice"),
        ("more: {a: 1, a: 2}\n", "key 'a' is there twice"),
        ("seed: " + "[" * 5_000, "nested too deeply"),
        ("- " * 5_000, "nested too deeply"),
        ("a: !!python/object/apply:os.system ['true']\n", "line 1: !!python/object/apply:os.system is not for options"),
        ("a: !!python/name:os.system\n", "is not for options"),
        ("a: !!binary aGk=\n", "!!binary is not for options"),
        ("a: !!set {b, c}\n", "!!set is not for options"),
        ("a: !own b\n", "!own is not for options"),
        ("? [a, b]\n: c\n", "line 1: a key must be one word, not a sequence"),
        ("more:\n  ? {a: b}\n  : c\n", "line 2: a key must be one word, not a mapping"),
        ("day: 2020-13-45\n", "day: YAML cannot read its value"),
        ("a: !!int x\n", "a: YAML cannot read its value"),
        ("a: !!bool maybe\n", "a: YAML cannot read its value"),
        ("a: !!timestamp x\n", "a: YAML cannot read its value"),
        ("a: b: c\n", "is not YAML: mapping values are not allowed here"),
        ("\ta: b\n", "is not YAML"),
        ("a: b\n---\nc: d\n", "is not YAML"),
        (b"a: \xff\n", "is not YAML"),
        (b"a: \x00\n", "is not YAML"),
        ("just a text\n", "holds a text, but must hold 'option: value' lines"),
        ("[a, b]\n", "holds a list, but must hold 'option: value' lines"),
    ],
)
def test_what_is_no_plain_set_of_options_is_an_error_that_names_the_file(read, content, said):
    with pytest.raises(ValueError, match=r"^config file '.*run.yaml'") as error:
        read(content)
    assert said in str(error.value)


def test_a_file_too_large_for_options_is_not_read(read, monkeypatch):
    monkeypatch.setattr(config_file, "LARGEST_BYTES", 10)
    with pytest.raises(ValueError, match="has 16 bytes, and options take a few thousand"):
        read("seed: 123456789\n")


def test_a_missing_file_and_a_directory_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.yaml' does not exist"):
        read_config(tmp_path / "nothing.yaml")
    with pytest.raises(ValueError, match="is a directory; name the .yaml file in it"):
        read_config(tmp_path)

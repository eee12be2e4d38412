"""Beside tests/test_faults.py, which trains where nothing can be written, what a directory that can be written gets."""

import datasets
import pytest

from plaudit import caches


def test_a_cache_that_can_be_written_is_used_and_nothing_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "new" / "cache")
    assert caches.directory() is None
    assert (tmp_path / "new" / "cache").is_dir()
    assert not caplog.records


def test_a_cache_whose_place_is_a_file_is_replaced_by_a_temporary_one_and_said_once(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    first, second = caches.directory(), caches.directory()
    assert first == second
    assert not first.startswith(str(tmp_path))
    assert [record.message for record in caplog.records] == [
        f"the cache of datasets, '{tmp_path / 'file' / 'cache'}', cannot be written (Not a directory): rows are kept in "
        f"{first.rpartition('/')[0]!r} until the run ends, and prepared anew the next time; set HF_DATASETS_CACHE to a directory "
        "that can be written to keep them"
    ]


def test_a_data_set_in_memory_needs_no_cache():
    with caches.beside(datasets.Dataset.from_list([{"a": 1}])):
        assert datasets.is_caching_enabled()


def test_caching_comes_back_after_an_error(tmp_path, monkeypatch):
    rows = datasets.Dataset.from_list([{"a": 1}])
    monkeypatch.setattr(datasets.Dataset, "cache_files", [{"filename": "/dev/null/rows.arrow"}])
    during = []

    def prepare():
        during.append(datasets.is_caching_enabled())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), caches.beside(rows):
        prepare()
    assert during == [False]
    assert datasets.is_caching_enabled()


def test_a_user_who_turned_caching_off_is_left_alone(monkeypatch):
    rows = datasets.Dataset.from_list([{"a": 1}])
    monkeypatch.setattr(datasets.Dataset, "cache_files", [{"filename": "/dev/null/rows.arrow"}])
    datasets.disable_caching()
    try:
        with caches.beside(rows):
            pass
        assert not datasets.is_caching_enabled()
    finally:
        datasets.enable_caching()

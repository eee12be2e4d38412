import errno
import gc

import numpy as np
import pytest
import torch
from accelerate.utils import find_executable_batch_size

from plaudit import memory


@pytest.fixture(scope="module", autouse=True)
def little_garbage():
    """accelerate collects garbage at each size, which would go through all that was imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. Error code 12"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("std::bad_alloc"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)  # fmt: skip
def test_memory_that_ran_out_is_recognised_and_told_so_that_a_search_for_a_batch_size_goes_on(error):
    sizes = []

    @find_executable_batch_size(starting_batch_size=4)
    def train(batch_size):
        sizes.append(batch_size)
        with memory.explained(lambda: "step 1 of training. The batch: 4 pairs"):
            if batch_size > 2:
                raise error

    train()
    assert sizes == [4, 3, 2]


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes cannot be multiplied"), ValueError("out of memory"), OSError(errno.ENOSPC, "full")]
)
def test_other_errors_pass_as_they_are(error):
    with pytest.raises(type(error)) as found, memory.explained(lambda: "never"):
        raise error
    assert found.value is error


def test_the_text_says_how_much_was_wanted_and_is_chained():
    with (
        pytest.raises(torch.OutOfMemoryError) as error,
        memory.explained(lambda: "step 3 of training. The batch: 4 pairs"),
    ):
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes. Error code 12"
        )
    assert str(error.value) == "step 3 of training ran out of memory. 4,096 MiB more were wanted. The batch: 4 pairs"
    assert isinstance(error.value.__cause__, RuntimeError)


def test_an_error_that_is_told_already_is_not_told_again():
    with (
        pytest.raises(torch.OutOfMemoryError, match="^inner ran out of memory. ") as error,
        memory.explained(lambda: "outer. x"),
        memory.explained(lambda: "inner. x"),
    ):
        raise MemoryError
    assert "outer" not in str(error.value)


def test_where_no_search_may_go_on_it_does_not():
    sizes = []

    @find_executable_batch_size(starting_batch_size=4)
    def train(batch_size):
        sizes.append(batch_size)
        with memory.explained(lambda: "step 1 of training. The batch: 4 pairs", lambda: False):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    with pytest.raises(torch.OutOfMemoryError, match="step 1 of training ran out of memory: 2.00 GiB more were wanted"):
        train()
    assert sizes == [4]


def test_what_the_failed_step_held_is_let_go_before_the_message_is_made():
    import weakref

    held = []

    def forward():
        activations = torch.zeros(10)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def describe():
        assert held[0]() is None
        return "step 1. x"

    with pytest.raises(torch.OutOfMemoryError, match="step 1 ran out of memory"), memory.explained(describe):
        forward()


@pytest.mark.parametrize(
    ("size", "accumulation", "expected"),
    [(8, 1, (4, 2)), (6, 3, (3, 6)), (9, 1, (3, 3)), (7, 2, (1, 14)), (2, 1, (1, 2)), (1, 4, None)],
)
def test_fewer_pairs_a_batch_make_the_same_steps(size, accumulation, expected):
    assert memory.fewer_pairs(size, accumulation) == expected
    assert expected is None or expected[0] * expected[1] == size * accumulation


def test_max_length_is_proposed_with_what_it_drops():
    lengths = np.array([[100, 90]] * 19 + [[80, 900]])
    assert memory.shorter(lengths, 900) == "max_length=104 (drops 1 of 20 pairs)"


def test_max_length_is_not_proposed_where_it_would_drop_no_part_of_the_batch():
    assert memory.shorter(np.array([[100, 100]] * 20), 100) is None


def test_max_length_of_a_stream_is_proposed_without_a_count():
    assert memory.shorter(None, 900) == "max_length below 900"

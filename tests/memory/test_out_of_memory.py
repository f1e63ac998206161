from __future__ import annotations

import errno
import signal
import subprocess
import sys

import pytest
import torch

from lowmem_seq.memory.out_of_memory import TABLE, died_for_memory, is_out_of_memory, tells_of_memory
from tests.builders import end, start_python

MESSAGES = {
    "torch on Linux and macOS, CPU": "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't "
    "allocate memory: you tried to allocate 4000000000 bytes. Error code 12 (Cannot allocate memory)",
    "torch on Windows, CPU": "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you "
    "tried to allocate 4000000000 bytes.",
    "torch, MPS": "MPS backend out of memory (MPS allocated: 8.00 GB, max allowed: 9.07 GB).",
    "torch, CUDA's allocator": "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has 8.00 GiB",
    "CUDA itself": "CUDA error: out of memory",
    "cuBLAS": "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN": "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "C++": "std::bad_alloc",
    "Python": "Traceback (most recent call last):\nMemoryError",
    "numpy": "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 7.45 GiB for an array",
    "OpenBLAS, while it is loaded": "OpenBLAS error: Memory allocation still failed after 10 retries, giving up.",
    "Linux and macOS (ENOMEM)": "[Errno 12] Cannot allocate memory",
    "Windows (error 8)": "[WinError 8] Not enough memory resources are available to process this command",
    "Windows (error 14)": "[WinError 14] Not enough storage is available to complete this operation",
    "Windows (error 1455)": "[WinError 1455] The paging file is too small for this operation to complete",
    "Windows (error 1450)": "[WinError 1450] Insufficient system resources exist to complete the requested service",
    "Metal": "Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
    "Python, a thread without room for its stack": "can't start new thread",
    "OpenMP, a thread without room for its stack": "libgomp: Thread creation failed: no resources",
    "others, in plain words": "terminated: Out of Memory",
}
"""As the systems and libraries print them."""


@pytest.mark.parametrize("speaker", MESSAGES)
def test_each_system_s_words_are_understood(speaker: str) -> None:
    assert tells_of_memory(MESSAGES[speaker])
    assert is_out_of_memory(RuntimeError(MESSAGES[speaker]))
    assert [words.speaker for words in TABLE if words.text in MESSAGES[speaker].lower()].count(speaker) == 1


def test_every_line_of_the_table_has_its_message() -> None:
    assert {words.speaker for words in TABLE if not words.only_under_a_limit} == set(MESSAGES)


@pytest.mark.parametrize("words", [words for words in TABLE if words.only_under_a_limit], ids=lambda one: one.text)
def test_what_may_mean_anything_means_memory_under_a_limit_alone(words: object) -> None:
    text = f"RuntimeError: {getattr(words, 'text')}"  # noqa: B009 (the ids above need the object)
    assert tells_of_memory(text, limited=True)
    assert not tells_of_memory(text)


def test_other_errors_are_none_of_memory() -> None:
    for error in (
        RuntimeError("mat1 and mat2 do not fit"),
        ValueError("out of memory"),
        OSError(28, "full"),
    ):
        assert not is_out_of_memory(error, limited=True)


def test_errors_that_need_no_words_are_understood() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(OSError(errno.ENOMEM, "no words"))


def test_what_torch_really_says_here_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA is Linux's")
def test_what_torch_says_at_a_limit_is_understood() -> None:
    code = """
import resource, torch
from lowmem_seq.memory.out_of_memory import is_out_of_memory
resource.setrlimit(resource.RLIMIT_DATA, (2**29, -1))
try:
    torch.ones(2**29, dtype=torch.uint8)
except RuntimeError as error:
    print(is_out_of_memory(error))
"""
    assert end(start_python(code))[:2] == (0, "True\n")


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS"])
def test_a_crash_under_a_limit_is_for_memory_and_one_without_a_limit_is_not(name: str) -> None:
    code = -getattr(signal, name)
    assert died_for_memory(code, limited=True)
    assert not died_for_memory(code, limited=False)
    assert not died_for_memory(-signal.SIGKILL, limited=True)
    assert not died_for_memory(1, limited=True)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_real_abort_is_one() -> None:
    ended = subprocess.run([sys.executable, "-c", "import os; os.abort()"], check=False, stderr=subprocess.DEVNULL)
    assert died_for_memory(ended.returncode, limited=True)


def test_windows_has_codes_of_its_own() -> None:
    assert died_for_memory(0xC0000005, limited=True, platform="win32")
    assert not died_for_memory(0xC0000005, limited=False, platform="win32")
    assert not died_for_memory(1, limited=True, platform="win32")

"""What both tests with damaged files use: how many inputs, what each may do, and damage to bytes."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import warnings

from conftest import limited_memory
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from vision_wrapper.errors import VisionWrapperError

TIMES = int(os.environ.get("VISION_WRAPPER_FUZZ_EXAMPLES", "1"))
SECONDS = 10  # for an input; most take a millisecond or two
MEMORY = 2**30  # bytes of address space beyond what the test process has; the inputs are below 100 kB


def inputs(count):
    """Settings for so many inputs."""
    return settings(
        max_examples=count * TIMES,
        derandomize=TIMES == 1,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


class Hang(BaseException):
    """An input took too long. Not an Exception, so that nothing catches it."""


@contextlib.contextmanager
def only_own_errors():
    """Let the library's errors pass, and no others; none at all is fine too."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow and of skip_unreadable
            yield
    except VisionWrapperError as error:
        assert str(error)
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)


def open_files():
    gc.collect()
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


@contextlib.contextmanager
def contained():
    """Fail where inputs leave a file open, take too long or want too much memory."""

    def hang(*_):
        raise Hang

    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, hang)
    before = open_files()
    with limited_memory(MEMORY):
        yield
    assert open_files() <= before


byte_edits = st.lists(
    st.tuples(
        st.sampled_from(["overwrite", "overwrite", "flip", "insert", "delete", "repeat", "cut"]),
        st.integers(0, 300) | st.integers(0, 2**17),  # the beginning is where headers are
        st.binary(min_size=1, max_size=6) | st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"]),
    ),
    min_size=1,
    max_size=4,
)


def edited_bytes(blob, edits):
    blob = bytearray(blob)
    for kind, at, content in edits:
        at %= len(blob) + 1
        if kind == "overwrite":
            blob[at : at + len(content)] = content
        elif kind == "flip":
            blob[at : at + 1] = bytes(value ^ (1 << content[0] % 8) for value in blob[at : at + 1])
        elif kind == "insert":
            blob[at:at] = content
        elif kind == "delete":
            del blob[at : at + len(content)]
        elif kind == "repeat":
            blob[at:at] = blob[at : at + 16 * content[0]]
        else:
            del blob[at:]
    return bytes(blob)

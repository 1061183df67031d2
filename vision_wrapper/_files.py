"""Atomic, checked files.

A tensor file is a plain safetensors file: tensors, and in the header's metadata a JSON text, a format version and a
SHA-256 of the whole file (taken with the digest's own 64 characters as zeros). Nothing in it is ever unpickled.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch

from vision_wrapper.errors import (
    CheckpointError,
    DamagedFileError,
    DataNotFoundError,
    FileWriteError,
    NewerFormatError,
    OtherRunError,
    VisionWrapperError,
)

FORMAT_VERSION = 1
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit; a larger claim is damage or an attack
_FORSAKEN = 24 * 3600  # seconds; nothing is written for so long
_NO_DIGEST = "0" * 64
_DIGEST_KEY = b'"sha256":"'  # only the header's own: quotes inside its texts are escaped

PathLike: TypeAlias = str | os.PathLike[str]


@contextlib.contextmanager
def replacing(path: PathLike, size: int) -> Iterator[BinaryIO]:
    """A file to write `size` bytes to: afterwards `path` is the old one or the whole new one, whatever happens.

    The content goes to a neighbour, is synced and renamed. Permissions follow the umask. Raises `FileWriteError`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{_host()}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except VisionWrapperError:
        raise  # of what was to be written
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise FileWriteError(
            error.errno,
            f"Could not write {path} ({size:,} bytes): {error.strerror}. "
            f"{'Free some room, or choose' if full else 'Choose'} another folder; the file that was there before, if "
            "any, is unharmed",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()  # already renamed when all went well


def check_writable(path: PathLike) -> None:
    """Raise `FileWriteError` where a file, or the first missing folder above it, cannot be made. Nothing is written."""
    path = Path(path).absolute()
    there = next((parent for parent in path.parents if os.path.exists(parent)), path)
    if os.path.isdir(path):
        why = "it is a folder"
    elif not os.path.isdir(there):
        why = f"{there} is a file, not a folder"
    elif not os.access(there, os.W_OK):
        why = f"the folder {there} may not be written to"
    else:
        return
    raise FileWriteError(errno.EACCES, f"Cannot write {path}: {why}. Choose another path")


def write_bytes(path: PathLike, content: bytes) -> None:
    """Write a whole file; see `replacing`."""
    with replacing(path, len(content)) as file:
        file.write(content)


def remove_leftovers(folder: PathLike) -> None:
    """Remove what processes that were killed while they wrote left in a folder; of other machines after a day."""
    for part in Path(folder).glob(".*.part"):
        writer = re.search(r"\.([0-9a-f]{8})\.(\d+)-[0-9a-f]{8}\.part$", part.name)
        if writer is None:
            continue
        with contextlib.suppress(FileNotFoundError):  # its writer has ended meanwhile
            dead = writer[1] == _host() and not _is_running(int(writer[2]))
            if dead or time.time() - part.stat().st_mtime > _FORSAKEN:
                part.unlink()


def _host() -> str:
    """This machine, in eight hexadecimal digits: on a shared disk others may be writing."""
    return hashlib.blake2b(platform.node().encode(errors="replace"), digest_size=4).hexdigest()


def _is_running(process: int) -> bool:
    if os.name == "nt":  # there, signal 0 would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass  # somebody else's
    return True


def write_text(path: PathLike, text: str) -> None:
    """`write_bytes` for a UTF-8 text; see `printable`."""
    write_bytes(path, printable(text).encode())


def printable(text: str) -> str:
    """The text as UTF-8 can hold it; a file's name may have bytes that it cannot, which are spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()


def one_line(text: object) -> str:
    """The text, `printable`, with a space in place of each stretch of white space and ends of lines."""
    return printable(" ".join(str(text).split()))


def write_json(path: PathLike, value: Any) -> None:
    """`write_bytes` for a value that JSON can hold."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_bytes(path: PathLike) -> bytes:
    """A file's content. Raises `DataNotFoundError` where it is not there, is a folder, or may not be read."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise DataNotFoundError(f"There is no file {path}.") from error
    except IsADirectoryError as error:
        inside = Path(path) / "best.safetensors"
        hint = f"; the classifier in it is {inside}" if inside.exists() else ""
        raise DataNotFoundError(f"{path} is a folder, a file was expected{hint}.") from error
    except OSError as error:
        raise DataNotFoundError(f"{path} cannot be read: {error.strerror}.") from error


def read_json(path: PathLike) -> Any:
    """The value in a JSON file. Raises `DataNotFoundError` or `DamagedFileError`."""
    content = read_bytes(path)
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is not readable as JSON: {error}.") from error


@contextlib.contextmanager
def exclusive(path: PathLike) -> Iterator[None]:
    """Hold the lock of a file, made if it is not there; it ends with the process, however that ends.

    Raises `OtherRunError` where another process holds it. Where the system has no such locks, there is none.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with open(path, "ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise OtherRunError(
                    f"Another process is at work in {Path(path).parent}. Wait for its end, or choose another folder."
                ) from error
        yield


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_tensors(path: PathLike, kind: str, tree: Any, **metadata: str) -> None:
    """Write a nested value (dicts, lists, tuples, numbers, strings, tensors, numpy arrays) as a tensor file.

    `kind` ("checkpoint", "classifier") is checked again on reading. `metadata` adds plain strings to the header.
    Tensors are named by their path ("optimizer.state.0.exp_avg"); an empty key adds nothing to it.
    Raises `CheckpointError` for a value of any other type, `FileWriteError` where the disk refuses.
    """
    from safetensors.torch import save

    tensors: dict[str, torch.Tensor] = {}
    header = {
        **metadata,
        "format": "pt",  # what other readers of safetensors expect
        "vision_wrapper": kind,
        "format_version": str(FORMAT_VERSION),
        "sha256": _NO_DIGEST,
        "content": json.dumps(_encode(tree, tensors, "")),
    }
    blob = bytearray(save(tensors, header))
    at = blob.index(_DIGEST_KEY + _NO_DIGEST.encode()) + len(_DIGEST_KEY)
    blob[at : at + 64] = hashlib.sha256(blob).hexdigest().encode()
    write_bytes(path, bytes(blob))


def check_savable(tree: Any) -> None:
    """Raise `CheckpointError` for a value that `write_tensors` cannot hold."""
    _encode(tree, {}, "")


def read_tensors(path: PathLike, kind: str) -> tuple[Any, dict[str, str]]:
    """What `write_tensors` wrote, with tensors on the CPU, and the header's metadata.

    Raises `DataNotFoundError`, `DamagedFileError` (truncated, altered, not such a file) or `NewerFormatError`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    blob = read_bytes(path)
    header = _read_header(path, blob)
    if header.get("vision_wrapper") != kind:
        raise DamagedFileError(f"{path} is no {kind} of vision_wrapper (it says: {header.get('vision_wrapper')!r}).")
    digest = header.get("sha256", "").encode(errors="replace")
    at = blob.find(_DIGEST_KEY + digest) + len(_DIGEST_KEY)
    unsigned = blob[:at] + _NO_DIGEST.encode() + blob[at + 64 :]
    if len(digest) != 64 or hashlib.sha256(unsigned).hexdigest().encode() != digest:
        raise DamagedFileError(f"{path} is damaged: its content does not fit its checksum. Use an earlier copy.")
    version = header.get("format_version", "")
    if version not in map(str, range(1, FORMAT_VERSION + 1)):
        raise NewerFormatError(
            f"{path} has format version {version}; this vision_wrapper reads up to {FORMAT_VERSION}. Update it: "
            "pip install -U vision-wrapper"
        )
    try:
        return _decode(json.loads(header["content"]), load(blob)), header
    except (SafetensorError, KeyError, ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise DamagedFileError(f"{path} is damaged: {error}.") from error  # deep nesting is a RuntimeError


def _read_header(path: PathLike, blob: bytes) -> dict[str, str]:
    size = int.from_bytes(blob[:8], "little")
    if len(blob) < 8 or not 2 <= size <= min(MAX_HEADER_BYTES, len(blob) - 8):
        raise DamagedFileError(f"{path} is truncated, or is not a file of vision_wrapper.")
    try:
        metadata = json.loads(blob[8 : 8 + size])["__metadata__"]
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata must be strings")
        return metadata
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedFileError(f"{path} is damaged, or is not a file of vision_wrapper: {error}.") from error


# A nested value is kept as JSON in which a one-key dict marks what JSON has no word for. Dicts are lists of pairs,
# because an optimizer's state has whole numbers as keys.


def _encode(value: Any, tensors: dict[str, torch.Tensor], name: str) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    while name in tensors and isinstance(value, (torch.Tensor, np.ndarray)):
        name += "_"  # a key with a dot can spell another's path
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, np.ndarray):
        tensors[name] = torch.from_numpy(np.array(value, order="C"))  # a copy; zero dimensions stay zero
        return {"array": name}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        for key in value:
            if not (key is None or isinstance(key, (bool, int, float, str))):
                raise CheckpointError(
                    f"{name or 'the value'} has the key {key!r}, a {type(key).__name__}, which a checkpoint cannot "
                    "hold. Use numbers and strings as keys."
                )
        return {"dict": [[k, _encode(v, tensors, f"{name}.{k}".lstrip("."))] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_encode(v, tensors, f"{name}.{i}".lstrip(".")) for i, v in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    raise CheckpointError(
        f"{name or 'the value'} is a {type(value).__name__}, which a checkpoint cannot hold without pickling. Let "
        "state_dict() return numbers, strings, tensors, and lists, tuples and dicts of these."
    )


def _decode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    ((mark, content),) = value.items()
    if mark == "tensor":
        return tensors[content]
    if mark == "array":
        return tensors[content].numpy()
    if mark == "tuple":
        return tuple(_decode(v, tensors) for v in content)
    if mark == "dict":
        return {k: _decode(v, tensors) for k, v in content}
    raise ValueError(f"unknown mark {mark!r}")

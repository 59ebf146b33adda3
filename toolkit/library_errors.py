"""What the system and libraries raise, as one line: where, what, what to do.

`reading` stands where a file or folder is opened: whatever is raised within is the fault of what
stands there. `explain` is the last resort of the command line. It never takes an error of our own
for somebody else's: an error counts as a library's where its class is one's, or where it was raised
in one's code and is no sign of a wrong call.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import re
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType

from toolkit.errors import CheckpointError, ConfigError, ToolkitError

_PACKAGE = str(Path(__file__).parent)
_STANDARD = sysconfig.get_paths()["stdlib"]
_PLACES = ("path", "file", "folder", "place", "source", "directory", "reference")
"""Names under which our functions hold what they read or write, or the last words of such names."""

_ADVICE = {
    errno.EACCES: ("permission is denied", "Change its rights, or give another place."),
    errno.EPERM: ("the system does not permit it", "Change its rights, or give another place."),
    errno.EROFS: ("the disk may not be written to", "Give a place on another disk."),
    errno.ENOENT: ("there is no such file or folder", "Check the path."),
    errno.ENOTDIR: ("a file stands where a folder is needed", "Check the path."),
    errno.EISDIR: ("is a folder, not a file", "Give the file."),
    errno.EEXIST: ("stands there already", "Move it away, or give another place."),
    errno.ENOTEMPTY: ("holds something already", "Move it away, or give another place."),
    errno.ENOSPC: ("the disk is full", "Make room and run the same command again."),
    errno.EDQUOT: ("the disk is full for you", "Make room and run the same command again."),
    errno.EFBIG: ("is larger than the disk takes", "Give a place on another disk."),
    errno.ENAMETOOLONG: ("the name is too long for the disk", "Take a shorter one."),
    errno.ELOOP: ("links lead in a circle", "Mend the links."),
    errno.EMFILE: ("too many files are open", "Raise the limit (ulimit -n)."),
    errno.EIO: ("the disk fails (input/output error)", "Check the disk, then run again."),
    errno.ESTALE: ("the network disk lost it", "Mount it again, then run again."),
    errno.EBUSY: ("is in use", "Run again when it is free."),
    errno.ETXTBSY: ("is in use", "Run again when it is free."),
    errno.ENODEV: ("cannot be mapped into memory", "Give a regular file."),
    errno.EXDEV: ("cannot be moved between disks", "Give a place on the same disk."),
    errno.ECONNREFUSED: ("the connection is refused", "Check the address, then run again."),
    errno.ECONNRESET: ("the connection broke off", "Run the same command again."),
    errno.ETIMEDOUT: ("the connection timed out", "Run the same command again."),
    errno.ENOMEM: ("memory is exhausted", "Run it on a machine with more."),
}
_DATA_ERRORS = frozenset(
    {"json.decoder", "zipfile", "tarfile", "zlib", "lzma", "_lzma", "_csv", "csv", "sqlite3", "re"}
    | {
        "struct",
        "binascii",
        "pickle",
        "_pickle",
        "gzip",
        "bz2",
        "xml.parsers.expat",
        "configparser",
    }
)
"""Modules of Python whose own error classes speak of data, wherever they are raised."""

_WRONG_CALLS = (TypeError, AttributeError, NameError, AssertionError, LookupError)
"""Raised in a library, these may be its fault or the caller's: only `reading` knows."""

# Libraries raise a plain RuntimeError here, so that only the words tell.
_MEMORY = ("can't allocate memory", "out of memory", "not enough memory", "Cannot allocate memory")
_DISK = ("No space left on device", "os error 28")


_EXTRAS = {"lm_eval": "tasks", "mergekit": "mergekit"}
"""Libraries that only one stage needs, and the extra of the package that brings each."""


def missing_library(module: str) -> str | None:
    """What is missing, and how to install it; None where the library is there.

    Args:
        module: name that one of `_EXTRAS` is imported by.
    """
    # Looked for, not imported: that would take seconds.
    if importlib.util.find_spec(module) is not None:
        return None
    name = module.replace("_", "-")
    return f"needs {name}, which is not installed; pip install 'cpt-toolkit[{_EXTRAS[module]}]'"


def first_line(error: BaseException, most: int = 240) -> str:
    """What an error says, in one line; its class where it says nothing."""
    # The text of a KeyError is the bare key in quotes, which says nothing by itself.
    if type(error) is KeyError and len(error.args) == 1:
        text = f"there is no {error.args[0]!r}"
    else:
        text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    text = text.rstrip(":. ") or type(error).__name__
    return text if len(text) <= most else text[: most - 3] + "..."


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, whoever says so."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, (RuntimeError, OSError)) and any(w in str(error) for w in _MEMORY)


def is_panic(error: BaseException) -> bool:
    """Whether it is the end of a library written in Rust, which Python's `Exception` is not."""
    return type(error).__name__ == "PanicException"


@contextlib.contextmanager
def reading(
    place: object,
    kind: type[ToolkitError] = CheckpointError,
    what: str = "cannot be read",
    advice: str = "copy or download it again",
) -> Iterator[None]:
    """Blame whatever is raised in the block on what stands at a place.

    Args:
        place: file or folder.
        kind: of what is raised.
        what: is the matter with it.
        advice: what to do; ends the sentence.

    Raises:
        kind: in place of any error but our own, and but a lack of memory.
    """
    try:
        yield
    except ToolkitError:
        raise
    except RecursionError as error:
        raise kind(f"{place}: {what} (it is nested too deeply); {advice}.") from error
    except Exception as error:
        if is_out_of_memory(error) or _is_disk_full(error):
            raise
        raise kind(f"{place}: {what} ({_words(error)}); {advice}.") from error
    # Panics of Rust libraries (tokenizers, safetensors) derive from BaseException.
    except BaseException as error:
        if not is_panic(error):
            raise
        raise kind(f"{place}: {what} ({first_line(error)}); {advice}.") from error


@contextlib.contextmanager
def computing(
    place: object,
    kind: type[ToolkitError] = CheckpointError,
    what: str = "cannot be computed with",
    advice: str = "its files contradict each other: copy or download them again",
) -> Iterator[None]:
    """Blame what a library raises while it computes with a model on the model.

    What our own code raises in the block passes: it may be our fault. See `reading` for the rest.
    """
    try:
        yield
    except ToolkitError:
        raise
    except Exception as error:
        trace_frames = _frames(error.__traceback__)
        # The innermost frame tells whose code raised it.
        is_foreign = bool(trace_frames) and _is_foreign(trace_frames[-1].f_code.co_filename)
        system = isinstance(error, OSError) or is_out_of_memory(error) or _is_disk_full(error)
        if system or not is_foreign:
            raise
        raise kind(f"{place}: {what} ({_words(error)}); {advice}.") from error


def check_writable(folder: Path, advice: str = "Change its rights, or give another place.") -> None:
    """Refuse a folder in which no file can be made; it is made where it is not there.

    Raises:
        ToolkitError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A file is really made: rights say nothing of read-only mounts and full quotas.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ToolkitError(
            f"{folder}: cannot be written to ({error.strerror or error}). {advice}"
        ) from error


def _words(error: Exception) -> str:
    """A system error in the system's words, another's class where its words alone say little."""
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        file = error.filename2 or error.filename
        return f"{file}: {error.strerror}" if file else str(error.strerror)
    text = first_line(error)
    return f"{type(error).__name__}: {text}" if isinstance(error, _WRONG_CALLS) else text


def explain(error: BaseException) -> ToolkitError | None:
    """The system's or a library's error as one of ours; None for what may be our own fault."""
    if isinstance(error, ToolkitError):
        return error
    blamed_place = place_of(error)
    where = f"{blamed_place}: " if blamed_place else ""
    # Memory and disk first: whoever raises the error, what to do about it is the same.
    if is_out_of_memory(error):
        return ToolkitError(
            f"{where}memory is exhausted ({first_line(error)}). Run it on a machine with more, or "
            "with smaller settings; see `toolkit plan`."
        )
    if isinstance(error, RecursionError):
        # With nothing in hand that could be nested, endless recursion is our own fault.
        if not blamed_place:
            return None
        return ToolkitError(f"{where}is nested too deeply to be read. Check what stands there.")
    if isinstance(error, OSError) and error.errno is not None:
        return ToolkitError(_system_words(error, blamed_place))
    if _is_disk_full(error):
        return ToolkitError(f"{where}the disk is full. Make room and run the same command again.")
    library_name = _library_of(error)
    if library_name is None:
        return None
    kind = ConfigError if library_name == "yaml" else ToolkitError
    return kind(f"{where}{first_line(error)} (says {library_name}). Check what stands there.")


def _is_disk_full(error: BaseException) -> bool:
    """Libraries wrap the system's error in their own; its text is what they have in common."""
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return True
    return any(words in str(error) for words in _DISK)


def _system_words(error: OSError, place: str) -> str:
    file = error.filename2 or error.filename  # a copy names its source first
    where = os.fsdecode(file) if isinstance(file, (str, bytes)) else str(file or place)
    number = error.errno or 0
    words, advice = _ADVICE.get(number, (error.strerror or f"error {number}", "Check the place."))
    return f"{where}: {words}. {advice}" if where else f"{words}. {advice}"


def _library_of(error: BaseException) -> str | None:
    """The library that an error is of, or None where it may be our own."""
    module = type(error).__module__ or ""
    if is_panic(error) or type(error) is Exception:  # the tokenizers library has no class
        return _raised_in(error) or "a library"
    if module in _DATA_ERRORS or isinstance(error, UnicodeError):
        return module.partition(".")[0] if module in _DATA_ERRORS else "Python"
    if module != "builtins" and not module.startswith("toolkit"):
        return module.partition(".")[0]
    text = _text_of_worker(error)
    if text is not None:  # it came from another process, with its traceback as text
        source_files = re.findall(r'File "([^"]+)", line', text)
        if not source_files or not _is_foreign(source_files[-1]):
            return None
        return None if isinstance(error, _WRONG_CALLS) else _name_of(source_files[-1])
    frames = _frames(error.__traceback__)
    if not frames or not _is_foreign(frames[-1].f_code.co_filename):
        return None
    return None if isinstance(error, _WRONG_CALLS) else _raised_in(error)


def _text_of_worker(error: BaseException) -> str | None:
    cause = error.__cause__
    return str(cause) if type(cause).__name__ in {"_RemoteTraceback", "RemoteTraceback"} else None


def _frames(trace: TracebackType | None) -> list[FrameType]:
    frames = []
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    return frames


def _is_foreign(file: str) -> bool:
    """Whether code is of a library, of Python's own or a template's."""
    # Before the rest: where this package is installed, it lies in site-packages too.
    if file.startswith(_PACKAGE):
        return False
    parts = {"site-packages", "dist-packages"} & set(Path(file).parts)
    # A name in angle brackets stands for code without a file, such as a compiled template.
    return file.startswith(("<", _STANDARD)) or bool(parts)


def _raised_in(error: BaseException) -> str | None:
    frames = _frames(error.__traceback__)
    return _name_of(frames[-1].f_code.co_filename) if frames else None


def _name_of(file: str) -> str:
    """The package that a source file belongs to.

    >>> _name_of("/usr/lib/python3/site-packages/safetensors/torch.py")
    'safetensors'
    """
    parts = Path(file).parts
    for folder in ("site-packages", "dist-packages"):
        if folder in parts[:-1]:
            return parts[parts.index(folder) + 1].removesuffix(".py")
    return Path(file).stem


def place_of(error: BaseException) -> str:
    """The file or folder that our innermost function had in hand, or nothing."""
    for frame in reversed(_frames(error.__traceback__)):
        if not frame.f_code.co_filename.startswith(_PACKAGE):
            continue
        local_values = frame.f_locals
        compound_names = (name for name in local_values if name.rpartition("_")[2] in _PLACES)
        for name in (*_PLACES, *compound_names):
            value = local_values.get(name)
            # A text under such a name may be a document, so only one that names something that
            # stands on the disk is believed.
            if isinstance(value, Path) or (isinstance(value, str) and _stands(value)):
                return str(value)
    return ""


def _stands(text: str) -> bool:
    try:
        return "/" in text and len(text) < 4096 and Path(text).exists()
    except (OSError, ValueError):
        return False

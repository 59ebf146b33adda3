"""What the scores of a task of lm-eval depend on beside its documents and prompts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from toolkit.file_hashes import read_hash
from toolkit.stage import hash_bytes, hash_json


def scoring_hash(task: Any, metric: str) -> str:
    """Hash of right answers, filters, settings of a metric, and code of the task's own.

    Titles, descriptions for people and other metrics do not count: they change no score.

    Args:
        task: of lm-eval, with its requests built.
        metric: name of the metric.
    """
    task_config = task.config
    metrics = task_config.metric_list or []
    return hash_json(
        {
            "lm_eval": metadata.version("lm_eval"),
            "task": _stable(type(task)),
            "requests": [
                [request.request_type, request.repeats, _stable(request.args)]
                for request in task.instances
            ],
            "targets": _targets(task),
            "filters": _stable(task_config.filter_list),
            "metric": _stable([entry for entry in metrics if _name(entry) in {metric, None}]),
            "results": _stable(task_config.process_results),
            "output_type": task_config.output_type,
        }
    )


def _name(entry: Mapping[str, object]) -> str | None:
    """Of a metric that is a function, None: its name is not known beforehand."""
    metric_name = entry.get("metric")
    return metric_name if isinstance(metric_name, str) else None


def _targets(task: Any) -> Any:
    """The right answer of every document, or how it is found where that cannot be asked."""
    # By identity: documents are dicts of any content, which do not hash.
    docs = {id(request.doc): request.doc for request in task.instances}
    try:
        return _stable([[task.doc_to_target(doc), _choices(task, doc)] for doc in docs.values()])
    except Exception:  # a task's own code; some have no single right answer
        return _stable([task.config.doc_to_target, task.config.doc_to_choice])


def _choices(task: Any, doc: Any) -> Any:
    return task.doc_to_choice(doc) if task.config.doc_to_choice is not None else None


def _stable(value: Any) -> Any:
    """A value as plain data that is the same in every process."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, Mapping):
        return [[str(key), _stable(entry)] for key, entry in sorted(value.items(), key=str)]
    if isinstance(value, (list, tuple)):
        return [_stable(entry) for entry in value]
    if isinstance(value, (bytes, bytearray)):
        return hash_bytes(bytes(value))
    if callable(value):
        return _code(value)
    # An address in memory differs from process to process, and would make every score unknown
    # again.
    value_text = repr(value)
    return type(value).__qualname__ if " at 0x" in value_text else value_text


def _code(function: Callable[..., Any]) -> list[str]:
    """Name of a function or class, and the hashes of its file and of what stands beside it.

    What a file imports is most often there; files of installed packages stand for themselves, and
    a task of this package for its version: what else its folder holds scores nothing.
    """
    inner = getattr(function, "func", function)  # of functools.partial
    if str(getattr(inner, "__module__", "")).startswith("toolkit."):
        return [inner.__qualname__, str(getattr(inner, "VERSION", ""))]
    full_name = f"{getattr(inner, '__module__', '')}.{getattr(inner, '__qualname__', '')}"
    try:
        source_file = Path(inspect.getsourcefile(inner) or "")
    except TypeError:
        source_file = Path()
    if not source_file.is_file():
        return [full_name]
    # Versions of installed packages are pinned by lm-eval's own, which stands in the hash.
    is_installed = "site-packages" in source_file.parts
    code_files = [source_file] if is_installed else sorted(source_file.parent.glob("*.py"))
    return [inner.__qualname__, *(read_hash(path) for path in code_files)]

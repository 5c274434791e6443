"""Data sets of the Hugging Face hub, by name, through the ``datasets`` package."""

from __future__ import annotations

import importlib
import re
from itertools import islice
from typing import Any

from tl_multitrace.records.tables import Record, Table

PREFIX = "hf:"
MAX_ROWS = 100_000
_NAME = re.compile(r"(?P<name>[^:@]+)(:(?P<config>[^:@]+))?(@(?P<split>[^@]+))?")


def hub_records(name: str) -> Table:
    """The rows of a data set, ``"hf:owner/name"``, with a configuration and a split where it has several.

    The split is ``train`` unless named, as in ``"hf:mib-bench/ioi:config@test[:500]"``. A local folder of CSV or JSON
    files is a data set too.

    Raises:
        ValueError: a name of another form, ``datasets`` is not installed, or the data set cannot be loaded (no network,
            no such name, several configurations); the message says which.
    """
    match = _NAME.fullmatch(name.removeprefix(PREFIX))
    if match is None:
        raise ValueError(f"{name}: expected hf:owner/name, hf:owner/name:config or hf:owner/name:config@split.")
    split = match["split"] or "train"
    rows = islice(iter(loaded := _loaded(name, match["name"], match["config"], split)), MAX_ROWS + 1)
    records = tuple(Record(name, number, dict(row)) for number, row in enumerate(rows, start=1))
    if len(records) > MAX_ROWS:
        raise ValueError(f"{name} has more than {MAX_ROWS} rows: name a part of them, such as @{split}[:1000].")
    columns = tuple(records[0].fields) if records else tuple(getattr(loaded, "column_names", None) or ())
    return Table(name, columns, records)


def _loaded(shown: str, name: str, config: str | None, split: str) -> Any:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise ValueError(f"{shown}: data sets of the hub need the package datasets: pip install datasets.") from None
    # before version 4, a data set could be a script, which some versions ran without being told to
    scripts = {} if int(datasets.__version__.partition(".")[0]) >= 4 else {"trust_remote_code": False}
    try:
        return datasets.load_dataset(name, config, split=split, **scripts)
    except Exception as error:  # of many kinds: network, hub, file formats, unknown names
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{shown}: the data set could not be loaded ({reason}). Check name, configuration and split "
            "(hf:owner/name:config@split), and that the hub can be reached or the data set is in the local cache."
        ) from None

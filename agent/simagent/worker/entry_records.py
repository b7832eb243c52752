"""What is written down about the runs of a member: it outlives the agent.

Each run has a folder: ``entry.json`` from before its start until its end, ``ended.json`` from then
until nobody asks for it any more, and beside it what the runtime and the run itself write.
"""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from simagent.cluster.messages import Enter, Exited
from simagent.domain.events import Event
from simagent.domain.state import Record
from simagent.ports.clock import Clock
from simagent.ports.passing import passes
from simagent.transfer.removal import remove_tree
from simagent.worker.durable import write_durably
from simagent.worker.entry import Entry
from simagent.worker.entry_plans import lay_entry

FORMAT = 1
_RECORD, _ENDED = "entry.json", "ended.json"

log = structlog.get_logger()


class EntryRecord(Record):
    """What is written down about a run. ``image`` is the handle of the request's."""

    format: int = FORMAT
    request: Enter
    image: str | None = None
    exited: Exited | None = None


class NewerRunError(Exception):
    """A newer version of the agent began the run: it is left as it is."""


def begin(entry: Entry, top: Path) -> None:
    """Make the folder of a run, and write it down, before its start. Raises OSError.

    ``top`` is the folder from which on the run's user has to pass.
    """
    entry.folder.mkdir(mode=0o700, exist_ok=True)
    lay_entry(entry.request, entry.folder, top)
    _write(entry, None)
    entry.recorded = True


def conclude(entry: Entry, exited: Exited) -> None:
    """Write down how a run ended, and remove all else of it.

    Where that cannot be written, the runtime's record of it stays.
    """
    with suppress(OSError):
        _write(entry, exited)
        (entry.folder / _RECORD).unlink(missing_ok=True)
        for path in entry.folder.iterdir():
            if path.name != _ENDED:
                remove_tree(path) if path.is_dir() else path.unlink()


def read(folder: Path, clock: Clock) -> Entry | None:
    """Read what an earlier agent wrote down of a run; a folder that tells of none is removed.

    Raises `NewerRunError`, and OSError where that cannot be read just now.
    """
    for name in (_ENDED, _RECORD):
        try:
            fields = json.loads((folder / name).read_bytes())
            if isinstance(fields, dict) and fields.get("format", FORMAT) > FORMAT:
                _tell_of_newer(folder, fields)
                raise NewerRunError
            record = EntryRecord.model_validate(fields)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError) as error:
            if passes(error):
                raise  # nothing is amiss with it, nor with what it runs
            log.warning(Event.JOURNAL_SET_ASIDE, path=str(folder), error=str(error)[:200])
            break
        entry = Entry(record.request, folder, clock)
        entry.image, entry.exited, entry.recorded = record.image, record.exited, True
        return entry
    remove_tree(folder)
    return None


def _write(entry: Entry, exited: Exited | None) -> None:
    record = EntryRecord(request=entry.request, image=entry.image, exited=exited)
    name = _RECORD if exited is None else _ENDED
    write_durably(entry.folder / name, record.model_dump_json(indent=1).encode())


def _tell_of_newer(folder: Path, fields: dict[str, Any]) -> None:
    try:
        attempt = fields["request"]["attempt"]
        task, epoch = attempt["task"], attempt["epoch"]
    except (LookupError, TypeError):
        task = epoch = None
    log.warning(Event.JOURNAL_TOO_NEW, path=str(folder), task=task, epoch=epoch)

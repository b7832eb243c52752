"""Arrays: one task many times. Each element is a task of its own; they share their inputs."""

from pydantic import Field

from simagent.domain.ids import check_id
from simagent.domain.keys import ArrayKeys, TaskKeys
from simagent.domain.spec import Array, Spec
from simagent.domain.state import Record

FORMAT = 1
_LONGEST = 64
"""Characters of a task's id."""


class ArrayRecord(Record):
    """What is written down of an array, before its elements: ``spec`` is what they have in common.

    ``submitted_at`` is Unix time.
    """

    format: int = FORMAT
    size: int = Field(ge=1)
    spec: Spec
    submitted_at: float
    submitted_by: str = ""


def element(array: ArrayKeys, index: int, size: int) -> TaskKeys:
    """Name a task of an array; names sort as the indexes do."""
    return TaskKeys(array.project, f"{array.id}-{index:0{len(str(size - 1))}d}")


def elements(array: ArrayKeys, size: int) -> list[TaskKeys]:
    """Name all tasks of an array, by their indexes."""
    return [element(array, index, size) for index in range(size)]


def element_spec(array: ArrayKeys, record: ArrayRecord, index: int) -> Spec:
    """Make the spec of one task of an array."""
    of = Array(size=record.size, id=array.id, index=index)
    return record.spec.model_copy(update={"array": of})


def check_array_id(value: str, size: int) -> str:
    """Return the id if the array may have it. Raises ValueError."""
    longest = _LONGEST - 1 - len(str(size - 1))
    if len(check_id(value)) > longest:
        raise ValueError(f"{value!r} is too long for an array of {size}: use up to {longest}")
    return value

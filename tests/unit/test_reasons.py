"""Reasons of versions to come: read, kept, and in nobody's way."""

import json

from fakes.store import MemoryStore
from fakes.tasks import attempt, place
from simagent.domain.reasons import Reason
from simagent.domain.state import Status
from simagent.ledger import Ledger

TOMORROW = "an_idea_of_tomorrow"


def test_a_state_with_a_reason_of_a_newer_version_is_read_and_kept() -> None:
    ledger = Ledger(MemoryStore())
    task = place(ledger, "queued", attempts=[attempt().model_dump()])
    fields = json.loads(ledger.store.get(task.state).data)
    fields["attempts"][0]["reason"] = TOMORROW
    ledger.store.put(task.state, json.dumps(fields).encode())

    state = ledger.change(task, lambda s: s.with_(status=Status.KILLED, reason=Reason.KILLED))
    assert state.attempts[0].reason == TOMORROW
    written = json.loads(ledger.store.get(task.state).data)
    assert [one["reason"] for one in written["attempts"]] == [TOMORROW]


def test_an_unknown_reason_is_explained_and_equals_none_that_is_known() -> None:
    reason = Reason(TOMORROW)
    assert (reason.value, str(reason)) == (TOMORROW, TOMORROW)
    assert reason.explanation
    assert reason == Reason(TOMORROW)
    assert reason not in list(Reason)

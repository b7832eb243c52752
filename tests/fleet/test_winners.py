"""Of many who write one object at the same time under a condition, one wins, whatever the load."""

import json
from functools import partial

import pytest

from fakes.actors import Actor, create, increment, together
from fakes.s3 import Bucket, make_store

pytestmark = pytest.mark.timeout(900)

WRITERS = 8


def test_each_new_object_has_one_winner_of_many(any_bucket: Bucket) -> None:
    opener = partial(make_store, any_bucket)
    wanted = [f"race/{number:03d}" for number in range(100)]
    names = [f"w{number}" for number in range(WRITERS)]
    won = together(*(Actor(create, opener, wanted, name) for name in names))
    assert sorted(key for mine in won for key in mine) == wanted
    store = opener()
    written = {key: store.get(key).data.decode() for key in wanted}
    assert written == {key: name for name, mine in zip(names, won, strict=True) for key in mine}


def test_no_change_of_many_writers_is_lost(any_bucket: Bucket) -> None:
    opener = partial(make_store, any_bucket)
    opener().put("n", b"0")
    together(*(Actor(increment, opener, "n", 10) for _ in range(WRITERS)))
    assert json.loads(opener().get("n").data) == 10 * WRITERS

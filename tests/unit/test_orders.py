"""Which of several orders an attempt obeys."""

import threading

import pytest

from simagent.worker.orders import Detached, Interrupted, LeaseLost, Orders, Partitioned, Preempted

SOON, LATE = Preempted("a notice", 10.0), Preempted("the machine is shut down", 80.0)


@pytest.mark.parametrize(
    ("first", "second", "stands"),
    [
        (LATE, SOON, SOON),
        (SOON, LATE, SOON),
        (Preempted("by hand"), SOON, SOON),
        (SOON, Preempted("by hand"), SOON),
        (SOON, Detached("stop"), Detached),
        (LeaseLost("gone"), SOON, LeaseLost),
        (Partitioned("cut off"), LATE, LATE),
    ],
)
def test_the_order_stands_that_outweighs_the_others_or_leaves_less_time(
    first: Interrupted, second: Interrupted, stands: Interrupted | type[Interrupted]
) -> None:
    orders = Orders()
    orders.interrupt(first)
    orders.interrupt(second)
    if isinstance(stands, Interrupted):
        assert orders.interrupted is stands
    else:
        assert isinstance(orders.interrupted, stands)


def test_an_order_that_comes_while_another_is_weighed_is_not_lost() -> None:
    orders = Orders()
    meanwhile = threading.Thread(target=orders.interrupt, args=(LeaseLost("gone"),))

    class Weighed(Preempted):
        def outweighs(self, other: Interrupted | None) -> bool:
            heavier = super().outweighs(other)
            meanwhile.start()
            meanwhile.join(0.3)  # in vain where it has to wait for its turn
            return heavier

    orders.interrupt(Weighed("a notice"))
    meanwhile.join(10)
    assert isinstance(orders.interrupted, LeaseLost)

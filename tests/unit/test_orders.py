"""Which of several orders an attempt obeys."""

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

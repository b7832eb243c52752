"""The watch for notices: what it makes of them, and that failures do no harm."""

from collections.abc import Mapping

import pytest

from fakes.clock import FakeClock
from simagent.ports.clock import Wake
from simagent.ports.cloud import CloudError, Notice
from simagent.worker.notices import NoticeWatch
from simagent.worker.orders import Preempted


class Cloud:
    """Answers the questions for a notice one after the other; then the watch is over."""

    name = "test"
    poll_every = 5.0

    def __init__(self, stop: Wake, *answers: Notice | CloudError | None) -> None:
        self._stop = stop
        self._answers = list(answers)
        self.finished = False

    def facts(self) -> Mapping[str, str]:
        return {}

    def done(self) -> None:
        self.finished = True

    def notice(self) -> Notice | None:
        answer = self._answers.pop(0)
        if not self._answers:
            self._stop.set()
        if isinstance(answer, CloudError):
            raise answer
        return answer


def watched(*answers: Notice | CloudError | None) -> tuple[list[Preempted], FakeClock]:
    stop, clock, orders = Wake(), FakeClock(), list[Preempted]()
    NoticeWatch(Cloud(stop, *answers), clock, orders.append).run(stop)
    return orders, clock


def test_a_notice_is_an_order_with_its_time() -> None:
    orders, clock = watched(None, None, Notice("it goes", 110.0), None)
    assert [str(order) for order in orders] == ["it goes"]
    assert orders[0].until == clock.now() + 90.0


@pytest.mark.parametrize(
    ("left", "acts"), [(120.0, 100.0), (30.0, 10.0), (29.0, 9.0), (27.0, 8.0), (12.0, 4.0)]
)
def test_all_is_over_20_s_before_but_for_the_shortest_notices(left: float, acts: float) -> None:
    orders, clock = watched(Notice("it goes", left), None)
    assert orders[0].until == clock.now() + acts


def test_the_cloud_is_told_when_nothing_is_left_to_be_done() -> None:
    stop, orders = Wake(), list[Preempted]()
    cloud = Cloud(stop, Notice("it goes", 60.0))
    NoticeWatch(cloud, FakeClock(), orders.append).run(stop)
    assert not cloud.finished
    orders[0].over()
    assert cloud.finished


def test_a_risk_is_no_order() -> None:
    assert watched(Notice("it may go", 0.0, certain=False), None)[0] == []


def test_failures_are_borne() -> None:
    orders, clock = watched(
        CloudError("no answer"), CloudError("no answer"), Notice("goes", 60.0), None
    )
    assert len(orders) == 1
    assert orders[0].until == clock.now() + 40.0

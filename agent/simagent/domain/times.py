"""The protocol's times, in seconds. All agents of a group should use the same."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Times(BaseModel):
    """How long the protocol waits for what. The defaults are those of docs/configuration.md."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lease_ttl: _Seconds = Field(60.0, description="Silence after which a holder counts as dead.")
    renew_every: _Seconds = Field(15.0, description="Between two renewals of a lease.")
    renew_retry: _Seconds = Field(2.0, description="Between tries while the store is unreachable.")
    bell_visibility: _Seconds = Field(120.0, description="How long a received bell stays hidden.")
    bell_extend: _Seconds = Field(40.0, description="Between two extensions of a bell in flight.")
    bell_renew: _Seconds = Field(36_000.0, description="Age at which a bell is replaced.")
    hide_submitted: _Seconds = Field(60.0, description="Until an incomplete task is looked at.")
    hide_refused: _Seconds = Field(30.0, description="Least time until another agent is asked.")
    hide_alive: _Seconds = Field(900.0, description="Until a task seen alive is looked at again.")
    heartbeat_every: _Seconds = Field(60.0, description="Between two heartbeats of an agent.")
    agent_ttl: _Seconds = Field(180.0, description="Silence after which an agent counts as gone.")
    sweep_every: _Seconds = Field(300.0, description="Between two sweeps of a group.")
    ring_after: _Seconds = Field(180.0, description="Age of a bell after which it counts as lost.")
    submit_limit: _Seconds = Field(7 * 86_400.0, description="How long a submission may take.")
    marker_limit: _Seconds = Field(86_400.0, description="How long a marker may lack a state.")
    set_aside_keep: _Seconds = Field(86_400.0, description="How long set-aside files are kept.")

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.lease_ttl < 3 * self.renew_every:
            raise ValueError(
                f"lease_ttl ({self.lease_ttl:g}) has to be at least three times renew_every "
                f"({self.renew_every:g}), or agents that live would count as dead"
            )
        if self.bell_visibility <= self.bell_extend:
            raise ValueError(
                f"bell_visibility ({self.bell_visibility:g}) has to be more than bell_extend "
                f"({self.bell_extend:g}), or bells in flight would come again"
            )
        if self.agent_ttl < 3 * self.heartbeat_every:
            raise ValueError(
                f"agent_ttl ({self.agent_ttl:g}) has to be at least three times heartbeat_every "
                f"({self.heartbeat_every:g}), or agents that live would count as gone"
            )
        return self

    @property
    def suspect(self) -> float:
        """How long a bell of a held task is hidden before it is judged again."""
        return self.lease_ttl + 5.0

"""The protocol's times, in seconds. All agents of a group should use the same."""

from pydantic import BaseModel, ConfigDict, Field


class Times(BaseModel):
    """How long the protocol waits for what. The defaults are those of DESIGN.md."""

    model_config = ConfigDict(frozen=True)

    lease_ttl: float = Field(60.0, description="Silence after which a holder counts as dead.")
    renew_every: float = Field(15.0, description="Between two renewals of a lease.")
    renew_retry: float = Field(2.0, description="Between tries while the store is unreachable.")
    bell_visibility: float = Field(120.0, description="How long a received bell stays hidden.")
    bell_extend: float = Field(40.0, description="Between two extensions of a bell in flight.")
    bell_renew: float = Field(36_000.0, description="Age at which a bell is replaced.")
    hide_submitted: float = Field(60.0, description="Until a task not yet complete is looked at.")
    hide_refused: float = Field(30.0, description="Least time until another agent is asked.")
    hide_alive: float = Field(900.0, description="Until a task seen alive is looked at again.")
    sweep_every: float = Field(300.0, description="Between two sweeps of a group.")
    ring_after: float = Field(180.0, description="Age of a bell after which it counts as lost.")
    submit_limit: float = Field(7 * 86_400.0, description="How long a submission may take.")
    marker_limit: float = Field(86_400.0, description="How long a marker may lack a state.")
    set_aside_keep: float = Field(86_400.0, description="How long set-aside files are kept.")

    @property
    def suspect(self) -> float:
        """How long a bell of a held task is hidden before it is judged again."""
        return self.lease_ttl + 5.0

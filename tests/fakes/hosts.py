"""What the hosts of a cluster tell of themselves."""

from simagent.domain.cluster import Member


def member(host: str, beat: int = 0, **fields: object) -> Member:
    made = {
        "agent": f"agent-{host}",
        "incarnation": "i",
        "beat": beat,
        "host": host,
        "address": f"10.0.0.{ord(host[0])}",
        "port": 2222,
        "ssh_user": "sim",
        "host_key": "ssh-ed25519 AAAA",
        "slots": 2,
        "uid": 1000,
    }
    return Member.model_validate(made | fields)

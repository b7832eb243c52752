"""The relay: what the head's ssh runs on a member; leads to the member agent's socket and back.

Run as ``python -I -S relay.py SOCKET BEAT SILENT AGAIN``, with the standard library only. It passes
lines on, both ways, and each BEAT seconds sends the head a `Beat` of its own. When the member agent
goes away it connects anew for AGAIN seconds, and says the first line again, and `Leave` if the head
had said so. When the head says nothing for SILENT seconds, or closes, it ends, which the agent
sees: the connection closes without a `Leave`.
"""

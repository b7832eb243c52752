"""What goes wrong when something is asked for."""


class ClientError(Exception):
    """What was asked for cannot be done; the message says why, and what to do."""


class UsageError(ClientError):
    """What was asked for is wrong in itself: nothing was written."""

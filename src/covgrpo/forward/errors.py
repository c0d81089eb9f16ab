"""What the room's passes raise."""


class NotShareableError(Exception):
    """The model or batch cannot take the shared-prompt path; the message says why."""

"""The one error of the shared path."""


class NotShareableError(Exception):
    """The model or batch cannot take the shared-prompt path; the message says why."""

"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Bad input: one clear sentence naming the file, field and value. The command line prints it and exits with 2."""

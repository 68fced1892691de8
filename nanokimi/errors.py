"""The one exception that is the user's to fix: the command line prints it as a single line and exits with status 2."""

MAX_MESSAGE = 1200


class UserError(ValueError):
    """Bad input: the message says what is wrong, where it stands and what to do, in one line.

    Messages quote names and values from files that may come from anyone: line ends and control characters in them
    become spaces and question marks, and a very long message loses its middle.
    """

    def __init__(self, message: str) -> None:
        if not message.isprintable():
            message = "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in message)
        if len(message) > MAX_MESSAGE:
            message = f"{message[: MAX_MESSAGE - 300]} ... {message[-280:]}"
        super().__init__(message)


class TrainingError(RuntimeError):
    """A run that cannot go on (a loss that is not finite, say): one line, exit status 1."""

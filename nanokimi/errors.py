"""The one exception that is the user's to fix: the command line prints it as a single line and exits with status 2."""


class UserError(ValueError):
    """Bad input: the message says what is wrong, where it stands and what to do, in one line."""


class TrainingError(RuntimeError):
    """A run that cannot go on (a loss that is not finite, say): one line, exit status 1."""

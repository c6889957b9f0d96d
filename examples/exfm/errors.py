"""What goes wrong and has a remedy, said in one line."""


class ExfmError(RuntimeError):
    """What was expected, what came, what to do."""

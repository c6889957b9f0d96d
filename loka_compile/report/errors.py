"""What is wrong with what a report was asked of."""


class ReportError(ValueError):
    """What was expected, what came, what to do."""

"""The one error a user sees: what is wrong, where, and what to do about it."""


class UserError(Exception):
    """A mistake in the input, told in one sentence; the command line prints it without a stack trace."""


def brief(error: Exception, most: int = 80) -> str:
    """The first line of what an exception says, shortened: it may quote the file that it complains about."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return line if len(line) <= most else f"{line[:most]}..."

"""The one error a user sees: what is wrong, where, and what to do about it."""


class UserError(Exception):
    """A mistake in the input, told in one sentence; the command line prints it without a stack trace."""

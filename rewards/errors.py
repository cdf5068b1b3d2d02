"""The one exception for mistakes of the user's."""


class UserError(Exception):
    """A mistake the user can mend: `str(error)` is one line with the place, the value and the fix.

    The command line prints it on stderr after `chorus: ` and exits with status 2, without a traceback.
    """

"""The one exception for mistakes that the user can mend."""


class UserError(ValueError):
    """One clear line: the file, key or value at fault, what was allowed, and how to mend it.

    The command lines print it after ``error:`` and exit with code 2, without a traceback.
    """

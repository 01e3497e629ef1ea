"""The one exception that a user is meant to read."""


class InputError(ValueError):
    """Bad input: one clear sentence that names the file, option or particle at fault.

    Scripts print the sentence and exit with a non-zero status; anything else that
    escapes is a defect of sptjax and keeps its traceback.
    """

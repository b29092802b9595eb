"""The one error that a user of the commands is meant to see."""


class InputError(ValueError):
    """Something given to the library cannot be used.

    Its text is one line that says where, what is wrong and what to do; the commands print it
    without a traceback and end with status 2.
    """

    def __init__(self, where: object, what: str, remedy: str = ""):
        text = f"{where}: {what}" + (f"; {remedy}" if remedy else "")
        super().__init__(" ".join(text.split()))

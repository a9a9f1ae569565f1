"""Names of classes in files of weights."""


def registered_name(kind: type) -> str:
    """The class's own name for those of flowprior, with its module for others.

    A class of a user cannot take the place of one of flowprior's this way.
    """
    ours = kind.__module__.partition(".")[0] == __name__.partition(".")[0]
    return kind.__name__ if ours else f"{kind.__module__}.{kind.__qualname__}"

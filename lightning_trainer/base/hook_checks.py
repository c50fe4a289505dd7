"""Whether a project's class has all the hooks that its base asks for."""


def require_hooks(cls: type) -> None:
    """Refuses a class that leaves one of its base's abstract hooks undefined.

    Done here and not by `abc.ABC`, because the command line's parser turns such classes away with a
    message that does not name the hook.

    Raises:
        TypeError: Names the missing hooks.
    """
    hooks = [name for name in dir(cls) if hasattr(getattr(cls, name), "__isabstractmethod__")]
    if missing := [name for name in hooks if getattr(cls, name).__isabstractmethod__]:
        base = next(c for c in cls.__mro__ if missing[0] in vars(c))
        names = ", ".join(f"`{name}`" for name in missing)
        raise TypeError(
            f"`{cls.__name__}` does not define {names}: every {base.__name__} needs "
            f"{'it' if len(missing) == 1 else 'them'} "
            f"(`help({base.__module__}.{base.__name__}.{missing[0]})` says what to set)"
        )

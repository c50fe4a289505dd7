"""Leaves out of the stored settings what YAML can't hold: such a default holds again by itself."""

import copy
import warnings
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from lightning_trainer.commands.options import CommandLine
from lightning_trainer.session.secrets import check_complete, without_given
from lightning_trainer.session.settings import dump_settings, read_yaml


def config_texts(line: CommandLine, stored: dict[str, Any]) -> list[str]:
    """The values of `--config` for the parser: of a session's stored settings and of files.

    Raises:
        ValueError: If a secret was not stored and is not given again.
    """
    texts = []
    if stored:
        settings = without_given(stored, line.others)
        check_complete(settings)
        texts.append(dump_settings(settings))
    for name in line.configs:  # another file may give a secret again
        content = read_yaml(Path(name)) or {}
        known = without_given(content, line.others)
        texts.append(name if known == content else dump_settings(known))
    return texts


def storable(settings: Namespace) -> Namespace:
    """A copy of parsed settings without the defaults that YAML would not give back as they are.

    A `torch.device`, a lambda or a tensor can be the default of an argument, and a YAML can't give
    any of them. Stored as text they would be refused, or taken for text, when the session goes on.

    Raises:
        ValueError: Names a setting that YAML can't hold and that is no default.
    """
    copied = settings.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jsonargparse warns of each
        for name, value in vars(copied).items():
            _clean(value, name)
    return copied


def hyper_parameters(stored: dict[str, Any], left: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What Lightning gives the classes as hyper-parameters: the settings, and those left out."""
    given = copy.deepcopy(stored)
    for group, arguments in left.items():
        given[group].setdefault("init_args", {}).update(arguments)
    return given


def left_out(settings: Namespace, stored: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The arguments of `model` and of `data` that are in parsed settings and not among the stored.

    A project reads them as `self.hparams.NAME` all the same.
    """
    found = {}
    for group in ("model", "data"):
        given = settings[group].get("init_args")
        kept = stored[group].get("init_args") or {}
        arguments = vars(given) if isinstance(given, Namespace) else {}
        found[group] = {
            name: value.as_dict() if isinstance(value, Namespace) else value
            for name, value in arguments.items()
            if name not in kept
        }
    return found


def _clean(value: Any, name: str) -> None:
    if isinstance(value, list | dict):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _clean(item, f"{name}[{key!r}]")
    if not isinstance(value, Namespace):
        return
    arguments = value.get("init_args")
    if "class_path" not in value or not isinstance(arguments, Namespace):
        for key, item in vars(value).items():
            _clean(item, f"{name}.{key}")
        return
    for key, item in vars(arguments).items():
        _clean(item, f"{name}.{key}")
    doubtful = {key: item for key, item in vars(arguments).items() if not _is_plain(item)}
    if doubtful:
        _leave_out(value.class_path, arguments, doubtful, name)


def _leave_out(class_path: str, arguments: Namespace, doubtful: dict[str, Any], name: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_class_arguments(resolve_name(class_path), fail_untyped=False)
        defaults = parser.get_defaults()
    except (
        ImportError,
        AttributeError,
        TypeError,
        ValueError,
    ):  # a function; jsonargparse has checked its values
        return
    for key, value in doubtful.items():
        if _is_given_back(parser, key, value):
            continue
        inner = defaults.get(key)
        if _same(value, inner):
            del arguments[key]
        elif isinstance(value, Namespace) and isinstance(inner, Namespace):  # a dataclass
            for part in [part for part in vars(value) if _same(value[part], inner.get(part))]:
                del value[part]
        else:
            raise ValueError(
                f"`{name}.{key}` is {value!r}, which config.yaml can't hold: the session could not "
                "go on. Give a text or a number, of which the class makes it"
            )


def _is_plain(value: Any) -> bool:
    """Whether YAML holds the value, whatever type the argument is declared with."""
    if type(value) is list:
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(type(key) is str and _is_plain(item) for key, item in value.items())
    if isinstance(value, Namespace) and "class_path" in value:
        return True  # its own arguments are looked at
    return value is None or type(value) in (bool, int, float, str)


def _is_given_back(parser: ArgumentParser, key: str, value: Any) -> bool:
    try:
        one = Namespace(**{key: value})  # type: ignore[no-untyped-call]
        text = parser.dump(one, skip_unset=False, skip_validation=True)
        return _same(parser.parse_string(text, defaults=False)[key], value)
    except Exception:  # PyYAML, jsonargparse and the value's class have a dozen kinds
        return False


def _same(a: Any, b: Any) -> bool:
    """By type and text: tensors and modules can't be compared otherwise."""
    return type(a) is type(b) and repr(a) == repr(b)

"""HTML as values: text is escaped unless it was made here, so no prompt or file name can become markup."""

from __future__ import annotations

from html import escape

_EMPTY = {"br", "img", "meta", "hr"}


class Html(str):
    """A piece of HTML that is put in as it is. Everything else is text."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element. Children: text (escaped), Html, None (left out) or sequences of them. `class_` stands for class;
    an attribute that is True has no value, one that is None is left out."""
    written = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None)
    if name in _EMPTY:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{joined(children)}</{name}>")


def joined(children: object) -> Html:
    """Children one after the other."""
    if children is None:
        return Html("")
    if isinstance(children, Html):
        return children
    if isinstance(children, (list, tuple)):
        return Html("".join(joined(child) for child in children))
    return Html(escape(_printable(str(children)), quote=False))


def _attribute(key: str, value: object) -> str:
    key = key.rstrip("_").replace("_", "-")
    return f" {key}" if value is True else f' {key}="{escape(_printable(str(value)))}"'


def _printable(text: str) -> str:
    """Without what HTML may not hold: control characters and halves of surrogate pairs are shown as U+FFFD."""
    return "".join(
        "\ufffd" if (ord(c) < 32 and c not in "\n\t") or 0x7f <= ord(c) < 0xa0 or 0xd800 <= ord(c) <= 0xdfff else c
        for c in text)

"""An SVG file as a part of an HTML page."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from matvlm.errors import UserError

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
_REFERENCE = re.compile(r"url\(\s*['\"]?#([^)'\"]+)['\"]?\s*\)")


def inline(path: Path, prefix: str, label: str) -> str:
    """An ``<svg>`` element without prolog, metadata and style sheets, which would leak into the page.

    Args:
        prefix: put before every id, so that several pictures on a page do not clash.
        label: what the picture shows, for those who do not see it.

    Raises:
        UserError: not an SVG file, or one that runs scripts or loads anything from elsewhere.
    """
    try:
        root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not SVG: {error}") from None
    if root.tag != f"{{{SVG}}}svg":
        raise UserError(f"{path}: not SVG: its root is {root.tag}")
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        if element.tag in (f"{{{SVG}}}script", f"{{{SVG}}}foreignObject"):
            raise UserError(f"{path}: a {element.tag.removeprefix(f'{{{SVG}}}')} is not allowed in a figure")
        for name, value in element.items():
            element.set(name, _attribute(name, value, prefix, path))
    for name in ("width", "height"):  # the page sizes it; the proportions are in viewBox
        root.attrib.pop(name, None)
    # What matplotlib's style sheet says of every element; these are inherited.
    root.attrib.update({"stroke-linejoin": "round", "stroke-linecap": "butt", "role": "img", "aria-label": label})
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    return ElementTree.tostring(root, encoding="unicode")


def width(svg: str) -> float:
    """Width of an inlined picture in its own units, for matplotlib's 72 to an inch."""
    box = re.search(r'viewBox="[-\d.]+ [-\d.]+ ([\d.]+) ', svg)
    return float(box[1]) if box else 0.0


def _attribute(name: str, value: str, prefix: str, path: Path) -> str:
    if name == "id":
        return prefix + value
    if name in ("href", f"{{{XLINK}}}href"):
        if not value.startswith("#"):
            raise UserError(f"{path}: {value[:60]} is loaded from elsewhere; a figure must be self-contained")
        return f"#{prefix}{value[1:]}"
    if name.lower().startswith("on"):
        raise UserError(f"{path}: the handler {name} is not allowed in a figure")
    return _REFERENCE.sub(rf"url(#{prefix}\1)", value)

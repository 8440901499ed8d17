"""Mermaid diagrams as SVG when the site is built, so that its pages load nothing from elsewhere."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Any


def fence(source: str, language: str, css_class: str, options: Any, md: Any, **rest: Any) -> str:
    """The picture of a ```mermaid block; called by pymdownx.superfences, to which any other exception means that the
    block stays as it is."""
    from pymdownx.superfences import SuperFencesException

    try:
        return f'<div class="picture">{svg(source)}</div>'
    except RuntimeError as error:
        raise SuperFencesException(f"{error}\n{source}") from error


def svg(source: str) -> str:
    """The SVG of a diagram, with an id of its own. Raises what mermaid says of a diagram that is wrong."""
    import mermaidx

    drawn = mermaidx.render(source).svg()
    own = f"picture-{sha256(source.encode()).hexdigest()[:8]}"
    return re.sub(r">\s+<", "><", drawn.replace("my-svg", own))

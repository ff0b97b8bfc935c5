"""How results look in a notebook, and in an interactive session: short where the fields would fill pages."""

from __future__ import annotations

import html


class InNotebook:
    """A result with `to_text`: its summary in a notebook, and its first line as `repr`."""

    def to_text(self) -> str:
        """The summary for a terminal."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.to_text())}</pre>"

    def __repr__(self) -> str:
        first = self.to_text().partition("\n")[0]
        return f"<{type(self).__name__}: {first}>"


def page(text: str, height: int = 600) -> str:
    """A whole HTML page inside a notebook's cell, kept apart from the notebook's own styles."""
    escaped = html.escape(text, quote=True)
    return f'<iframe srcdoc="{escaped}" style="width:100%;height:{height}px;border:0"></iframe>'

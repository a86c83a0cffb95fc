"""Create Prefect artifacts.

The UI renders every text as Markdown, and texts come from clients and servers.
"""

from __future__ import annotations

import base64
from typing import Any

from prefect import artifacts

from exodus.safe_text import markdown
from tasks.context import Json


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float)) else markdown(value)


def create_table_artifact(*, key: str, table: list[Json], description: str) -> None:
    """Show rows with their texts escaped."""
    artifacts.create_table_artifact(
        key=key,
        table=[{name: _cell(value) for name, value in row.items()} for row in table],
        description=description,
    )


def create_plot_artifact(*, key: str, svg: str, description: str) -> None:
    """Show a plot. The image is in the address itself, so the UI asks nobody for it."""
    data = base64.b64encode(svg.encode()).decode()
    artifacts.create_image_artifact(
        key=key, image_url=f"data:image/svg+xml;base64,{data}", description=description
    )


def create_markdown_artifact(*, key: str, text: str, description: str) -> None:
    """Show Markdown whose values passed `exodus.safe_text.markdown`."""
    artifacts.create_markdown_artifact(key=key, markdown=text, description=description)

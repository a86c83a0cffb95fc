"""Great Expectations without its files, its progress bars, and its reports to its maker."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from great_expectations.data_context import EphemeralDataContext

_ANALYTICS = "GX_ANALYTICS_ENABLED"


def forbid_analytics() -> None:
    """Set what the library reads when it is imported."""
    os.environ[_ANALYTICS] = "false"


def new_context() -> EphemeralDataContext:
    """Return a context that keeps everything in memory. The first one imports for seconds."""
    forbid_analytics()
    import great_expectations as gx
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
    )

    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    context = gx.get_context(
        mode="ephemeral",
        # The library's own default makes a folder under /tmp, and leaves it there.
        project_config=DataContextConfig(store_backend_defaults=InMemoryStoreBackendDefaults()),
    )
    context.variables.progress_bars = {"globally": False}
    return context

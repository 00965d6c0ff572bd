from collections.abc import Iterator

import pytest
from blockbuster import blockbuster_ctx


@pytest.fixture
def unblocked() -> Iterator[None]:
    """Fails a test in which our code stops the loop by a blocking call."""
    with blockbuster_ctx("moorage"):
        yield

"""The stage on which the dispatcher's tests play."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.unit.dispatcher.stage import Stage


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage()
    yield stage
    await stage.close()

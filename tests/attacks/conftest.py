from support.fixtures import ground as ground
from support.fixtures import place as place
from support.fixtures import pytest_runtest_makereport as pytest_runtest_makereport

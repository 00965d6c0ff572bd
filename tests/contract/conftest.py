from support.api_fixtures import api as api
from support.api_fixtures import backend as backend
from support.fixtures import pytest_runtest_makereport as pytest_runtest_makereport
from support.fixtures import session as session
from support.fixtures import unblocked as unblocked
from support.fixtures import workspace as workspace

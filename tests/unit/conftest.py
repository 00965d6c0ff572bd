from support.fixtures import many_descriptors as many_descriptors
from support.fixtures import unblocked as unblocked

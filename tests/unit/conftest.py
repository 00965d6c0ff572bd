from support.fixtures import unblocked as unblocked

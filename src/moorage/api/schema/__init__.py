"""The objects of the API, request and response, as typed values: one definition for server, client and document.

Field names are Docker's on the wire and snake case in Python. A field that may be absent on the wire is ``UNSET`` then;
every other field of a response is always sent. Imports only msgspec, so that the client and the command line stay
quick: see ADR 39.
"""

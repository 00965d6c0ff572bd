"""Values of the OCI specifications and Docker's: references, manifests, digests. Pure."""

"""Small tools without knowledge of containers: backoff, inboxes, process watching, worker threads."""
